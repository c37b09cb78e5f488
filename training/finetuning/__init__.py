"""Shipped weights → better ones for your own micrographs, clean or noisy; and the measurement that says whether.

In: a folder of micrographs and shipped weights. Out: a run that can be exported, and a report before and after.
Front door: `command.run`; `before_after.compare` measures two networks on the same held-out images.
"""
