"""emdenoised in Python, for notebooks and scripts; `python -m emdenoised` is the command.

In: arrays. Out: denoised arrays in the same units, and a verdict on each.
Front door: `Denoiser` for many images, `denoise` for one.
"""

from typing import TYPE_CHECKING

from daemon import __version__

if TYPE_CHECKING:
    from emdenoised.denoiser import Denoiser, Result, denoise

__all__ = ["Denoiser", "Result", "__version__", "denoise"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    # Lazy, so that `python -m emdenoised --help` loads no image library.
    if name in ("Denoiser", "Result", "denoise"):
        from emdenoised import denoiser

        return getattr(denoiser, name)
    raise AttributeError(f"module 'emdenoised' has no attribute {name!r}")
