"""The error of a result without its truth, compared with the truth that only a simulation knows."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from daemon.backends import manifest
from daemon.backends.cpu import CpuBackend
from daemon.commands import main
from daemon.counts.no_specimen import NoSpecimen
from daemon.counts.plane import Denoised, Plane
from daemon.counts.prepare import plane
from daemon.counts.profiles import Choice, DoseEvidence
from daemon.counts.thinning import thin
from daemon.errors import MicrographError
from daemon.settings.profile import Profile
from daemon.verdict.halves import Assessment, assess

WEIGHTS = manifest.locate("fast")
MANIFEST = manifest.load(WEIGHTS)
PLAIN = Choice(Profile(name="p"), "test", 1.0, 0.0)


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend(WEIGHTS, MANIFEST)


def truth(dose: float, side: int = 384) -> NDArray[np.float64]:
    """Broad shapes, and a lattice of 8 pixels in a corner."""
    y, x = np.indices((side, side))
    lattice = np.sin(2 * np.pi * x / 8) * np.sin(2 * np.pi * y / 8) * (x < side // 2)
    return dose * (1 + 0.4 * np.sin(y / 31) * np.cos(x / 23) + 0.2 * lattice)


@pytest.mark.parametrize("dose", [4.0, 60.0, 1000.0])
def test_the_reported_error_is_the_true_one(backend: CpuBackend, dose: float) -> None:
    known = truth(dose)
    counts = np.random.default_rng(1).poisson(known).astype(np.uint16)
    found = assess(counts, PLAIN, MANIFEST, backend, seed=3)
    halves = thin(np.random.default_rng(3), counts.astype(np.float32), 0.5)
    done = list(backend.denoise([plane(half, PLAIN, MANIFEST.dose_range) for half in halves]))
    true = float(np.mean([np.mean(np.square(one.image - known / 2)) for one in done]))
    assert abs(found.error - true) < 3.5 * found.error_deviation
    assert found.error_deviation < 0.05 * found.raw_error
    assert found.raw_error == pytest.approx(dose / 2, rel=0.02)
    assert found.gain_db > 3
    assert found.psnr - found.raw_psnr == pytest.approx(10 * np.log10(found.raw_error / found.error))


class Inventive:
    """A backend that adds a lattice to each result."""

    name = "inventive"

    def __init__(self, backend: CpuBackend, amplitude: float) -> None:
        self._backend, self._amplitude = backend, amplitude

    def denoise(self, planes: Iterable[Plane | None]) -> Iterator[Denoised]:
        for one in self._backend.denoise(planes):
            x = np.arange(one.image.shape[1], dtype=np.float32)
            yield replace(one, image=one.image + self._amplitude * np.sin(2 * np.pi * x / 5.3).astype(np.float32))

    def close(self) -> None:
        self._backend.close()


def test_what_a_network_adds_to_both_halves_is_found(backend: CpuBackend) -> None:
    counts = np.random.default_rng(1).poisson(truth(60.0)).astype(np.uint16)
    amplitude = 3.0
    found = assess(counts, PLAIN, MANIFEST, Inventive(backend, amplitude))
    assert found.invented == pytest.approx(amplitude**2 / 2 / 30, rel=0.15)
    honest = assess(counts, PLAIN, MANIFEST, backend)
    assert honest.invented < 0.01 and "invented texture" in honest.describe()


def test_detail_ends_where_the_specimens_does(backend: CpuBackend) -> None:
    counts = np.random.default_rng(2).poisson(truth(400.0)).astype(np.uint16)
    found = assess(counts, PLAIN, MANIFEST, backend)
    period = 8 / np.sqrt(2)  # of the product of two waves; the lattice's edge is finer still
    assert found.detail_raw is not None and 0.8 * period < found.detail_raw < 1.1 * period
    assert found.detail_cross is not None and 0.8 * period < found.detail_cross < 1.1 * period
    flat = assess(np.random.default_rng(2).poisson(400.0, (384, 384)).astype(np.uint16), PLAIN, MANIFEST, backend)
    assert flat.detail_raw is None and max(flat.frc_raw) < 0.5


def test_the_empty_border_of_a_drift_corrected_image_is_no_stretching(backend: CpuBackend) -> None:
    known = truth(60.0)
    known[:60] = known[:, -30:] = 0
    found = assess(np.random.default_rng(1).poisson(known).astype(np.uint16), PLAIN, MANIFEST, backend)
    assert found.dose == pytest.approx(known.mean() / 2, rel=0.01)
    assert found.gain_db > 3


def test_a_small_image_has_a_standard_error_too(backend: CpuBackend) -> None:
    found = assess(np.random.default_rng(3).poisson(truth(60.0, 110)).astype(np.uint16), PLAIN, MANIFEST, backend)
    assert 0 < found.error_deviation < 0.1 * found.raw_error


def test_x_rays_are_no_error_of_the_network(backend: CpuBackend) -> None:
    counts = np.random.default_rng(4).poisson(truth(60.0)).astype(np.uint16)
    clean = assess(counts, PLAIN, MANIFEST, backend)
    hits = counts[::61, ::53]
    hits += np.random.default_rng(8).integers(3000, 9000, hits.shape).astype(np.uint16)
    assert assess(counts, PLAIN, MANIFEST, backend).error < clean.error + 4 * clean.error_deviation


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda counts: counts * 7, "the noise variance is"),
        (lambda counts: counts * 1.5, "not whole numbers"),
        (lambda counts: counts - 100.0, "negative"),
        (lambda counts: counts + np.roll(counts, 1, 0) + np.roll(counts, 1, 1), "correlated"),
        (lambda counts: np.where(counts == counts[0, 0], np.nan, counts), "not finite numbers"),
        (lambda counts: np.full_like(counts, 9), "constant"),
    ],
)
def test_halves_do_not_apply_to_values_that_are_no_counts(backend: CpuBackend, change: object, reason: str) -> None:
    counts = np.random.default_rng(5).poisson(truth(60.0)).astype(np.float32)
    with pytest.raises(MicrographError, match=f"not applicable: .*{reason}"):
        assess(change(counts), PLAIN, MANIFEST, backend)  # type: ignore[operator]


def test_pixels_of_the_fill_value_are_the_stated_reason(backend: CpuBackend) -> None:
    counts = np.random.default_rng(5).poisson(truth(60.0)).astype(np.uint16)
    filled = replace(PLAIN, dose_evidence=DoseEvidence(no_specimen=NoSpecimen(filled=np.arange(9))))
    with pytest.raises(MicrographError, match=r"not applicable: .*hold the fill value"):
        assess(counts, filled, MANIFEST, backend)


def test_gain_and_offset_of_the_profile_make_counts_of_values(backend: CpuBackend) -> None:
    counts = np.random.default_rng(6).poisson(truth(60.0)).astype(np.float32)
    scaled = Choice(Profile(name="p", gain=4.0, offset=100.0), "test", 4.0, 100.0)
    assert assess(4 * counts + 100, scaled, MANIFEST, backend) == assess(counts, PLAIN, MANIFEST, backend)


def test_the_command_tells_each_file_and_json_holds_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.tif", tmp_path / "bad.tif"
    counts = np.random.default_rng(7).poisson(truth(60.0, 256)).astype(np.uint16)
    tifffile.imwrite(good, counts)
    tifffile.imwrite(bad, counts * 1.5)
    assert main.main(["assess", str(good), str(bad), str(tmp_path / "none.tif")]) == 0
    said = capsys.readouterr().out
    assert "at half the dose (29.8 counts per pixel)" in said and "not applicable" in said and "No such file" in said
    assert main.main(["assess", "--json", str(good), str(bad)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        set(Assessment.__dataclass_fields__) < set(found[str(good)]) and found[str(good)]["holds"] == "at half the dose"
    )
    assert "not whole numbers" in found[str(bad)]["not applicable"]
    assert main.main(["assess", str(bad)]) == 1
