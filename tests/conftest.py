"""What several tests need: small micrographs in files, and settings that point into a temporary folder."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from site_of_daemon import Site

from daemon.backends.gpu.nvidia import find_gpu
from daemon.settings.config import Config


def poisson(seed: int = 0, dose: float = 20.0, shape: tuple[int, int] = (64, 64)) -> NDArray[np.uint16]:
    """A smooth specimen of `dose` mean counts per pixel, counted: (H, W) uint16."""
    rng = np.random.default_rng(seed)
    y, x = (np.arange(side) / 7 for side in shape)
    return rng.poisson(dose * (1 + 0.4 * np.sin(y + seed)[:, None] * np.sin(x))).astype(np.uint16)


def save(path: Path, pixels: NDArray[Any]) -> Path:
    """Write a TIFF or an MRC, by the name's ending, in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mrc":
        with mrcfile.new(path, pixels, overwrite=True) as mrc:
            mrc.voxel_size = 1.5
    else:
        tifffile.imwrite(path, pixels)
    return path


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """The command sets up the log of its process, which here is that of all tests, and of fixtures that outlive one."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    yield
    root.setLevel(logging.WARNING)
    root.handlers[:] = [one for one in root.handlers if not type(one.formatter).__module__.startswith("daemon")]


@pytest.fixture
def counts() -> Callable[..., NDArray[np.uint16]]:
    """`counts(seed, dose, shape)`: an image of Poisson counts."""
    return poisson


@pytest.fixture
def write() -> Callable[..., Path]:
    """`write(path, seed, dose, shape)`: the same as a TIFF or MRC file."""

    def writer(path: Path, seed: int = 0, dose: float = 20.0, shape: tuple[int, int] = (64, 64)) -> Path:
        return save(path, poisson(seed, dose, shape))

    return writer


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    """`config(section={...}, ...)`: quick settings in a temporary folder, without previews."""

    def make(**sections: Any) -> Config:
        folders = {name: str(tmp_path / name) for name in ("drop", "output", "state")}
        for folder in folders.values():
            Path(folder).mkdir(exist_ok=True)
        values = {
            "folders": folders,
            "arrival": {"settle_seconds": 0.05, "rescan_seconds": 0.3, "suspicious_tail_seconds": 0.3},
            "retry": {"first_seconds": 0.2, "factor": 1.0, "longest_seconds": 0.2, "attempts": 3},
            "output": {"preview": False},
            "backend": {"kind": "cpu"},
            "monitor": {"listen": None},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        return Config.model_validate(values)

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is none, and say so."""
    if find_gpu() is None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU answers on this computer"))


@pytest.fixture
def site(tmp_path: Path, write: Callable[..., Path]) -> Iterator[Site]:
    site = Site(tmp_path, write)
    yield site
    for process in site.started:
        if process.poll() is None:
            process.kill()
            process.wait()
