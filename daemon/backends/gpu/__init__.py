"""A network on an NVIDIA card, by TensorRT or TensorRT-RTX.

In: planes and a weights folder. Out: denoised images; engines in their folder, built by a child process if need be.
Front door: `tensorrt.TensorRtBackend`, opened by `daemon.backends.open_backend`; `nvidia` knows card and driver.
"""
