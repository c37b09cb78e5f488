"""Fine-tunes shipped weights on your own micrographs, clean or noisy, and measures whether this helps.

In: a folder of micrographs and shipped weights. Out: a run that can be exported, and a report before and after.
Front door: `command.run`; `before_after.compare` measures two networks on the same held-out images.
"""
