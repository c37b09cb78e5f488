"""The rivals do what the paper and their inventors say, and weights are served as the daemon serves them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.stats import poisson

from daemon.backends.manifest import names
from daemon.errors import ConfigError, WeightsError
from emdenoised import Denoiser
from training.data.exposure import Pair, paper_pair
from training.evaluation import methods, metrics
from training.network import FastDenoiser


def make(peak: float = 60.0, side: int = 64, seed: int = 0) -> Pair:
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(side) / 6)
    crop = (0.5 + 0.5 * wave[:, None] * wave).astype(np.float32)
    return paper_pair(rng, crop, peak)


@pytest.mark.parametrize("name", [*methods.NINE, "bm3d", "identity"])
def test_every_method_gives_counts_of_the_same_shape_and_leaves_its_input_alone(name: str) -> None:
    given = make()
    before = given.noisy.copy(), given.counts.copy()
    method = methods.methods([name])[name]
    result = method.run(given)
    assert result.shape == given.counts.shape
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    assert abs(result.mean() - given.counts.mean()) < 0.05 * given.counts.mean() or name == "bregman"
    assert (given.noisy == before[0]).all()
    assert (given.counts == before[1]).all()
    if name not in ("unfiltered", "identity", "bregman"):
        assert metrics.mse(result, given.true_counts) < 0.7 * metrics.mse(given.counts, given.true_counts)


def test_unfiltered_and_identity_are_the_counts() -> None:
    given = make()
    for method in methods.methods(["unfiltered", "identity"]).values():
        assert method.run(given) == pytest.approx(given.counts, abs=1e-4)


def test_gaussian_is_three_by_three() -> None:
    impulse = np.zeros((9, 9), np.float32)
    impulse[4, 4] = 1
    blurred = methods.gaussian(impulse)
    assert np.count_nonzero(blurred) == 9
    assert blurred[4, 4] == pytest.approx(cv2.getGaussianKernel(3, 0)[1, 0] ** 2)


def test_bilateral_on_the_unit_scale_is_a_disc_of_nine_pixels() -> None:
    """Its radiometric scale of 75 on values up to 1 weighs every neighbour alike: so the authors ran it."""
    noisy = make().noisy
    y, x = np.mgrid[-4:5, -4:5]
    disc = np.exp(-(y**2 + x**2) / (2 * 75**2)) * (np.hypot(y, x) <= 4)
    expected = cv2.filter2D(noisy, -1, disc / disc.sum(), borderType=cv2.BORDER_REFLECT_101)
    assert methods.bilateral(noisy) == pytest.approx(expected, abs=2e-3)


def test_wiener_survives_flat_neighbourhoods() -> None:
    for grey in (0.0, 0.5):
        result = methods.wiener(np.full((16, 16), grey, np.float32))
        assert result[2:-2, 2:-2] == pytest.approx(grey)  # SciPy takes zeros beyond the edges
        assert np.isfinite(result).all()


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 1, 3, 10, 60, 119, 121, 500, 3000])
def test_inverse_is_unbiased(rate: float) -> None:
    counts = np.arange(poisson.ppf(1 - 1e-14, rate) + 2)
    mean = poisson.pmf(counts, rate) @ (2 * np.sqrt(counts + 0.375))
    assert methods.unbiased_inverse(np.array(mean)) == pytest.approx(rate, rel=1e-4, abs=1e-4)


def test_inverse_rises_and_never_goes_below_zero() -> None:
    result = methods.unbiased_inverse(np.linspace(-1, 150, 5000))
    assert (np.diff(result) >= 0).all()
    assert result[0] == 0


def test_bm3d_on_counts_beats_the_nine_and_repeats_itself() -> None:
    given = make(side=96)
    ours = methods.methods(["gaussian", "chambolle", "median"])
    first = methods.bm3d(given.counts)
    assert (first == methods.bm3d(given.counts)).all()
    best = min(metrics.mse(method.run(given), given.true_counts) for method in ours.values())
    assert metrics.mse(first, given.true_counts) < best


def test_flat_image_survives_bm3d() -> None:
    assert methods.bm3d(np.full((32, 32), 7.0, np.float32)) == pytest.approx(np.full((32, 32), 7.0), abs=0.3)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"bm4d.*gaussian"):
        methods.methods(["gaussian", "bm4d"])


def test_all_nine_and_bm3d_by_default() -> None:
    made = methods.methods()
    assert list(made) == [*methods.NINE, "bm3d"]
    assert len(methods.NINE) == 9
    assert {name for name, method in made.items() if method.slow} == {"bregman", "nl_means", "bm3d"}


@pytest.mark.skipif(not names(), reason="no weights are shipped in this checkout")
def test_shipped_weights_are_what_the_daemon_serves() -> None:
    given = make(side=96)
    method = methods.weights(names()[0])
    expected = Denoiser(names()[0], gain=1.0, backend="cpu", threads=1).denoise(given.counts)
    assert (method.run(given) == expected).all()
    assert method.family == "weights"
    assert method.megabytes > 0
    assert len(method.identity.split()[0]) == 64


def run_folder(folder: Path) -> FastDenoiser:
    torch.manual_seed(0)
    network = FastDenoiser(widths=(8, 8, 8, 8))
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "record.json").write_text(json.dumps({"recipe": {"network": "fast", "arguments": {"widths": [8] * 4}}}))
    return network


def test_run_of_training_is_run_in_noise_units(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    method = methods.weights(str(tmp_path / "run"))
    given = make(side=70)  # no multiple of the network's stride
    result = method.run(given)
    assert result.shape == (70, 70)
    assert np.isfinite(result).all()
    assert result.mean() == pytest.approx(given.counts.mean(), rel=0.2)
    assert method.name == "run"


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        methods.weights(str(tmp_path))
    run_folder(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="not a finished training run"):
        methods.weights(str(tmp_path / "run"))


def test_on_counts_remembers(tmp_path: Path) -> None:
    calls = []

    def run(given: Pair) -> NDArray[np.float32]:
        calls.append(given)
        return given.counts + 1

    method = methods.Method("m", "M", "bm3d", True, "m 1", run)
    counts = make().counts
    remembered = methods.on_counts(method, tmp_path / "memory")
    for _ in range(2):
        assert (remembered(counts) == counts + 1).all()
    assert len(calls) == 1
    assert (methods.on_counts(method)(counts) == counts + 1).all()
    assert len(calls) == 2
