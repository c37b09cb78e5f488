"""`emdenoised demo`: a simulated camera writes, the real daemon denoises, every result is compared with its truth.

In: an empty folder. Out: simulated micrographs with their truths, the daemon's results, a picture and figures.
Front door: `run.run`; `camera.shoot` is the camera, `specimen.scene` and `specimen.expose` what it records.
"""
