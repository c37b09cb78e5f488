"""emdenoised: denoises each electron micrograph that lands in a drop folder."""

__version__ = "0.1.0"
__all__ = ["Denoiser", "__version__"]


def __getattr__(name: str) -> object:
    # Lazy, so that `from daemon import Denoiser` works and `emdenoised --help` does not load a network runtime.
    if name == "Denoiser":
        from daemon.denoiser import Denoiser

        return Denoiser
    raise AttributeError(f"module 'daemon' has no attribute {name!r}")
