"""Judges whether a result may be trusted, from the micrograph and its result alone.

In: a `Denoised` image and its input. Out: a `Verdict` with its reasons, or the error of two halves.
Front door: `judge.judge` for each result, `halves.assess` for `emdenoised assess`.
"""
