"""May a result be trusted, told from the micrograph and its result alone.

In: a denoised image and what it was made from. Out: a `Verdict` with its reasons, or the error of two halves.
Front door: `judge.judge` for each result, `halves.assess` for `emdenoised assess`.
"""
