"""Training data: clean micrographs, simulated specimens, and exposures of both.

In: a folder of micrographs, and a seed. Out: batches scaled as in the daemon, each a function of its index.
Front door: `truths.load_truths` prepares them once, `samples.batch` draws.
"""
