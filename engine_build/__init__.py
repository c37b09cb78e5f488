"""Weights → ONNX → engine. Only `engine_build.export` needs torch; the microscope PC never runs it."""
