"""Micrographs → weights. Runs on a workstation; the daemon never imports it.

In: a folder of micrographs, a recipe and a budget. Out: a folder with weights, curve and record.
Front door: `python -m training`; `fit.fit` trains on clean micrographs, `loop.train` any network on any batches.
"""
