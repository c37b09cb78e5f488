"""The output folder: names of its files, their records, and how they are written atomically.

In: a denoised image with its provenance. Out: image, JSON and preview, or those that an earlier run finished.
Front door: `writing.write_outputs` and `writing.find_adoptable`; `record`, `paths`, `disk`, `preview`.
"""
