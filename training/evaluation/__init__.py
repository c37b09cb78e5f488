"""Measures the quality of weights: the paper's table, its rivals and BM3D, on the same noisy micrographs.

In: micrographs, simulated specimens and weights. Out: `evaluation.json` with rows, tables, guards and a report.
Front door: `command.run`; `methods.weights` restores by any weights, `guards.run_all` judges one method.
"""
