"""emdenoised: denoises each electron micrograph that arrives in a drop folder."""

__version__ = "0.1.0"
