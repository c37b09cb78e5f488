"""Weights → ONNX → engine. Only `engine_build.export` needs torch; the microscope PC never runs it.

In: a finished training run, or a weights folder. Out: a weights folder with its manifest, or an engine that passed the
gate. Front door: `export.export`, `__main__.make_engine`.
"""
