"""The GPU's kernels: the very source, compiled for the processor, against NumPy; and as PTX, where nvcc is there."""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiled_kernels import C_TYPES, FLAGS, SOURCE, library
from numpy.typing import NDArray

from daemon.backends import tiling
from daemon.backends.gpu.cuda import kernel_names
from daemon.backends.gpu.device import CODES, SIGNATURES
from daemon.backends.gpu.pipeline import MISSING
from daemon.counts import spikes
from daemon.counts.scaling import noise_units

PTX = SOURCE.with_suffix(".ptx")
PTXAS = shutil.which("ptxas") or shutil.which("ptxas", path="/usr/local/cuda/bin")


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    return library()


def pointer(array: NDArray[Any] | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def whole(*numbers: int) -> list[ctypes.c_longlong]:
    return [ctypes.c_longlong(number) for number in numbers]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("scale_u1", np.uint8), ("scale_i1", np.int8), ("scale_u2", np.uint16), ("scale_i2", np.int16),
        ("scale_u4", np.uint32), ("scale_i4", np.int32), ("scale_f4", np.float32), ("scale_f8", np.float64),
    ],
)  # fmt: skip
def test_pixels_of_every_type_become_noise_units(kernels: ctypes.CDLL, name: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.poisson(60, (33, 47)).astype(dtype)
    scaling = noise_units(60.0, 1.0, 0.5)
    units = np.full(pixels.shape, np.nan, np.float32)
    scale = getattr(kernels, name)
    scale(pointer(pixels), pointer(units), *whole(pixels.size), ctypes.c_double(scaling.zero),
          ctypes.c_double(1 / scaling.unit))  # fmt: skip
    np.testing.assert_allclose(units, scaling.to_units(pixels), rtol=1e-5, atol=1e-5)


def test_neighbouring_large_integers_are_distinguished(kernels: ctypes.CDLL) -> None:
    pixels = np.array([2_000_000_000, 2_000_000_001, 2_000_000_002], np.uint32)
    units = np.empty(3, np.float32)
    kernels.scale_u4(pointer(pixels), pointer(units), *whole(3), ctypes.c_double(2e9), ctypes.c_double(1.0))
    assert units.tolist() == [0, 1, 2]


@pytest.mark.parametrize("code", CODES.values())
@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (3.5, 20.0)])
def test_the_survey_is_that_of_the_processor(kernels: ctypes.CDLL, code: str, gain: float, offset: float) -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(6, (67, 130)).astype(np.float64)
    counts[0, 0], counts[5, 129], counts[33, 64], counts[66, 1] = 30, 31, 28, 29
    image = (counts * gain + offset).astype(code)
    if code.startswith("f"):
        image[7, 8], image[9, 10] = np.nan, np.inf
    limit = 0.999 * spikes.limit_of(spikes.FALSE_ALARM)
    found, totals = np.zeros(1, np.uint64), np.zeros(1, np.float64)
    places = np.zeros(100, np.uint64)
    values = (pointer(image), *image.shape, offset, 1 / gain, limit, limit / log(9), 100, pointer(found),
              pointer(totals), pointer(places))  # fmt: skip
    arguments = (
        one if letter == "P" else C_TYPES[letter](one) for one, letter in zip(values, SIGNATURES["survey"], strict=True)
    )
    getattr(kernels, f"survey_{code}")(*arguments)
    listed = places[: int(found[0])]
    wanted = spikes.survey(image, gain, offset)
    assert len(wanted.suspects) >= 4
    assert len(wanted.missing) == 2 * code.startswith("f")
    assert sorted(listed[listed < MISSING].tolist()) == wanted.suspects.tolist()
    assert sorted((listed[listed >= MISSING] ^ MISSING).tolist()) == wanted.missing.tolist()
    assert totals[0] == pytest.approx(wanted.total, rel=1e-12)


def test_spikes_are_filled_in(kernels: ctypes.CDLL) -> None:
    units = np.zeros((8, 9), np.float32)
    places = np.array([0, 10, 71], np.uint64)
    values = np.array([1.5, -2.5, 3.5], np.float32)
    kernels.fill(pointer(units), pointer(places), pointer(values), *whole(3))
    expected = np.zeros(72, np.float32)
    expected[[0, 10, 71]] = values
    np.testing.assert_array_equal(units.ravel(), expected)


@pytest.mark.parametrize("shape", [(200, 150), (64, 301), (33, 40)])
@pytest.mark.parametrize("blend", [0, 12])
def test_tiles_out_and_results_back_are_those_of_the_plan(
    kernels: ctypes.CDLL, shape: tuple[int, int], blend: int
) -> None:
    """The CPU backend's plan, carried out by the kernels: the image, scaled, comes back in the camera's units."""
    sides, unit, zero = (64, 80), 3.5, 100.0
    image = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)
    plan = tiling.plan(shape, sides, 8, 8, blend)
    out = np.full(shape, np.nan, np.float32) if not blend else np.zeros(shape, np.float32)
    height, width = shape
    for tile in plan:
        rows, columns = tile.rows, tile.columns
        cut = np.full(sides, np.nan, np.float32)
        kernels.gather(pointer(image), *whole(height, width), pointer(cut), *whole(*sides, rows.origin, columns.origin),
                       ctypes.c_float(2.0), ctypes.c_float(0.5))  # fmt: skip
        np.testing.assert_allclose(cut, (tiling.cut(tile, image) + 2) * 0.5, rtol=1e-6)
        result = cut * 2 - 2
        weights = [None, None]
        if blend:
            weights = [
                np.ones(s.core.stop - s.core.start, np.float32) if s.weight is None else s.weight
                for s in (rows, columns)
            ]  # type: ignore[misc]
        kernels.scatter(
            pointer(result), *whole(sides[1], rows.inner.start, columns.inner.start, rows.core.stop - rows.core.start,
                                    columns.core.stop - columns.core.start),
            pointer(weights[0]), pointer(weights[1]), pointer(out), *whole(width, rows.core.start, columns.core.start),
            ctypes.c_float(unit), ctypes.c_float(zero),
        )  # fmt: skip
    np.testing.assert_allclose(out, image * unit + zero, rtol=1e-5, atol=1e-4)


def test_the_shipped_ptx_is_of_this_source_and_runs_from_turing_on() -> None:
    text = PTX.read_text()
    assert text.startswith(f"// kernels.cu {hashlib.sha256(SOURCE.read_bytes()).hexdigest()}\n"), "run `make ptx`"
    assert ".target sm_75" in text
    assert ".version 7.0" in text, "a driver of CUDA 11 is to load it"
    for name in kernel_names():
        assert f".visible .entry {name}(" in text


def test_the_arguments_that_are_passed_are_those_of_the_source() -> None:
    """A wrong letter would pass garbage: CUDA does not check."""
    letters = {"long long": "q", "unsigned long long": "Q", "double": "d", "float": "f"}
    source = re.sub(r"\s+|\\\n", " ", SOURCE.read_text())
    for kind, signature in SIGNATURES.items():
        name = "NAME" if kind in ("survey", "scale") else kind
        declared = re.findall(rf"__global__ void {name}\(([^)]*)\)", source)
        matching = [
            "".join("P" if "*" in one else letters[one.strip().rsplit(" ", 1)[0]] for one in arguments.split(","))
            for arguments in declared
        ]
        assert signature in matching, kind


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")
def test_the_source_still_compiles_for_the_gpu(tmp_path: Path) -> None:
    made = tmp_path / "kernels.ptx"
    subprocess.run(["nvcc", "-ptx", "-arch=compute_75", "-o", made, SOURCE], check=True, timeout=120)
    assert made.read_text().count(".visible .entry") == PTX.read_text().count(".visible .entry")


@pytest.mark.skipif(PTXAS is None, reason="ptxas is not installed")
@pytest.mark.parametrize("target", ["75", "80", "86", "87", "89", "90", "100", "103", "110", "120", "121"])
def test_the_shipped_ptx_assembles_for_every_card(tmp_path: Path, target: str) -> None:
    """Turing to Blackwell, Jetson Orin (87) and Thor (110) among them."""
    assembled = tmp_path / "kernels.cubin"
    subprocess.run([str(PTXAS), f"-arch=sm_{target}", "-o", assembled, PTX], check=True, timeout=120)
    assert assembled.stat().st_size > 10_000


def test_no_kernel_reads_or_writes_beyond_its_memory_nor_computes_what_c_leaves_open() -> None:
    """The tests above once more, with the kernels under the address and undefined-behaviour sanitizers."""
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    if not Path(runtime.strip()).is_absolute():
        pytest.skip("this compiler has no address sanitizer")
    environment = {
        **os.environ,
        FLAGS: "-g -fsanitize=address,undefined -fno-sanitize-recover=all",
        "LD_PRELOAD": runtime.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",  # or arrays of Python's own would hide what lies beside them
    }
    chosen = "noise_units or distinguished or survey or filled or tiles_out"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen],
        env=environment, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[4],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "32 passed" in done.stdout, done.stdout
