"""emdenoised: denoises each electron micrograph that lands in a drop folder."""

__version__ = "0.1.0"
