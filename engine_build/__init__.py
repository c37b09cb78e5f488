"""Weights → ONNX → engine. Only `engine_build.export` needs torch; the microscope PC never runs it.

In: a finished training run, or a weights folder. Out: a weights folder with its manifest, or an engine that the gate
has compared with float32. Front door: `export.export`, `__main__.make_engine`.
"""
