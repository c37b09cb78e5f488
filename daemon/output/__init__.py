"""What lies in the output folder: its names, its records, and how they are written whole or not at all.

In: a denoised image with its provenance. Out: image, JSON and preview; what an earlier run finished is found again.
Front door: `writing.write_outputs` and `writing.find_adoptable`; `record` reads a JSON, `paths` names files.
"""
