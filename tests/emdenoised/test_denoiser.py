"""`Denoiser` on arrays, with the shipped weights: shapes, units, means, spikes, verdict, and is it any good?"""

import inspect
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from fake_gpu import plug_in
from numpy.typing import NDArray

import emdenoised
from daemon.backends import manifest
from daemon.commands.main import main
from daemon.counts import spikes
from daemon.demo.specimen import expose, scene
from daemon.errors import BackendError, ConfigError, MicrographError, WeightsError
from daemon.settings.profile import Profile
from emdenoised import Denoiser

Counts = Callable[..., NDArray[np.uint16]]


@pytest.fixture(scope="module")
def denoiser() -> Iterator[Denoiser]:
    """Of counts: what is asked of most images here is what the network makes of them."""
    with Denoiser(backend="cpu", gain=1.0) as loaded:
        yield loaded


@pytest.mark.parametrize("shape", [(32, 32), (33, 57), (32, 400), (3, 40, 32), (2, 2, 32, 48)])
def test_the_shape_is_kept_and_every_plane_of_a_stack_is_its_own(
    denoiser: Denoiser, counts: Counts, shape: tuple[int, ...]
) -> None:
    planes = [counts(seed, 20, shape[-2:]) for seed in range(int(np.prod(shape[:-2])))]
    result = denoiser.denoise(np.reshape(planes, shape))
    assert result.shape == shape and result.dtype == np.float32
    np.testing.assert_array_equal(result.reshape(-1, *shape[-2:])[-1], denoiser.denoise(planes[-1]))


@pytest.mark.parametrize("dtype", ["u1", "u2", ">u2", "i2", "i4", "u4", "f4", ">f4", "f8", "f2", "i8"])
def test_any_real_dtype_gives_the_same_result(denoiser: Denoiser, counts: Counts, dtype: str) -> None:
    image = counts()
    np.testing.assert_allclose(denoiser.denoise(image.astype(dtype)), denoiser.denoise(image), atol=1e-3)


def test_the_array_is_only_read(denoiser: Denoiser, counts: Counts) -> None:
    image = counts().astype(np.float32)
    image[3, 3] = np.nan
    before = image.tobytes()
    image.setflags(write=False)
    result = denoiser.denoise(image)
    assert image.tobytes() == before
    assert result.flags.writeable and not np.shares_memory(result, image)


@pytest.mark.parametrize(("gain", "offset"), [(37.0, 1e5), (0.01, 0.0), (2.0, -300.0)])
def test_the_same_micrograph_in_other_units_gives_the_same_result_in_its_own(
    denoiser: Denoiser, counts: Counts, gain: float, offset: float
) -> None:
    image = counts(1, 20, (96, 96))
    with Denoiser(Profile(name="camera", gain=gain, offset=offset), backend="cpu") as other:
        result = (other.denoise(image * gain + offset) - offset) / gain
    np.testing.assert_allclose(result, denoiser.denoise(image), atol=0.02)  # float32 on a pedestal of 1e5 keeps so much


@pytest.mark.parametrize("gain", [1.0, 0.05, 40.0])
def test_an_unknown_gain_is_measured(denoiser: Denoiser, counts: Counts, gain: float) -> None:
    image = counts(1, 20, (128, 128))
    with Denoiser(backend="cpu") as other:
        result = other.denoise((image * gain).astype(np.float32)) / gain
    assert np.sqrt(np.mean((result - denoiser.denoise(image)) ** 2)) < 0.1 * np.sqrt(20)


@pytest.mark.parametrize("shape", [(256, 256), (300, 330)])
@pytest.mark.parametrize(
    ("dose", "contrast"),
    [(0.5, 1.0), (2, 1.0), (20, 0.05), (20, 1.0), (200, 1.0), (300, 0.2), (3000, 0.2), (1000, 1.0)],
)
def test_the_mean_is_preserved_over_unflagged_pixels(
    denoiser: Denoiser, dose: float, contrast: float, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(11)
    image, _ = expose(scene(rng, 384)[: shape[0], : shape[1]], dose, contrast, rng)
    image[10, 20] = 30_000
    difference = denoiser.denoise(image).astype(float) - image
    image[10, 20] = difference[10, 20] = 0
    error = np.sqrt(dose / image.size)
    assert abs(difference.sum() / (image.size - 1)) <= max(1e-3 * dose, 3 * error)
    rows, columns = ([*range(0, side - 63, 64), side - 64] for side in shape)  # the last ones flush with the edges
    for top in rows:
        for left in columns:
            block = np.s_[top : top + 64, left : left + 64]
            counting_error = np.sqrt(image[block].mean()) / 64
            assert abs(difference[block].mean()) <= 4 * counting_error, (top, left)


def test_an_x_ray_hit_changes_nothing_outside_its_halo(denoiser: Denoiser, counts: Counts) -> None:
    image = counts(2, 20, (320, 320))
    hit = image.copy()
    hit[0, 0] = 30_000
    change = np.abs(denoiser.denoise(hit) - denoiser.denoise(image))
    halo = denoiser.manifest.halo
    change[:halo, :halo] = 0
    assert change.max() <= 0.01 * np.sqrt(20)


def test_nan_and_inf_are_filled_in(denoiser: Denoiser, counts: Counts) -> None:
    image = counts(3, 20, (64, 64)).astype(np.float32)
    clean = image.copy()
    image[5, 5], image[5, 6], image[40, 0] = np.nan, np.inf, -np.inf
    result = denoiser.denoise(image)
    assert np.isfinite(result).all()
    assert np.abs(result - denoiser.denoise(clean)).max() < 2 * np.sqrt(20)


def test_used_many_times_it_gives_the_same(denoiser: Denoiser, counts: Counts) -> None:
    image = counts(5)
    np.testing.assert_array_equal(denoiser.denoise(image), denoiser.denoise(image))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.ones(64), "an image .H, W. is needed"),
        (3.0, "an image .H, W. is needed"),
        (np.ones((0, 64)), "an image .H, W. is needed"),
        (np.ones((31, 64)), "at least 32 x 32"),
        (np.ones((64, 64, 3), np.uint8), r"colour picture \(H, W, 3\)"),
        (np.ones((2, 64, 64, 4)), r"colour picture \(H, W, 4\)"),
        ([[1, 2], [3]], "rows must be of one length"),
        (np.ones((64, 64), complex), "real numbers"),
        (np.full((64, 64), "a"), "real numbers"),
        (np.full((64, 64), None), "real numbers"),
        (np.full((64, 64), np.nan), "no pixel of the image is a finite number"),
        (np.zeros((64, 64)), "counts must be positive"),
        (np.full((64, 64), -5.0), "counts must be positive"),
    ],
)
def test_what_cannot_be_denoised_is_refused_in_words(denoiser: Denoiser, image: Any, message: str) -> None:
    with pytest.raises(MicrographError, match=message):
        denoiser.denoise(image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "gpu"}, r"backend = 'gpu': .*'auto', 'cpu' or 'tensorrt'"),
        ({"gain": 0}, "gain = 0.0: must be a number greater than 0, or auto"),
        ({"gain": -1.5}, "gain = -1.5: must be a number greater than 0"),
        ({"gain": np.nan}, "gain = nan: must be a number greater than 0"),
        ({"gain": np.float32(-2)}, "gain = -2.0: must be a number greater than 0"),
        ({"gain": "unknown"}, "gain = 'unknown': must be a number greater than 0, or auto"),
        ({"gain": None}, "gain = None: must be a number"),
        ({"gain": True}, "gain = True: must be a number"),
        ({"passes": 2}, "passes = 2: .*1 or 8"),
        ({"threads": -1}, r"threads = -1: .*must be auto \(all cores but one\), 0 \(all\) or a number up to 1024"),
        ({"weights": ""}, "weights = '': .*at least 1 character"),
        ({"weights": Profile(name="low"), "gain": 2.0}, "gain = 2.0: the profile states the gain already"),
        ({"weights": Profile(name="low"), "passes": 3}, "passes = 3: .*1 or 8"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_in_words(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Denoiser(**{"backend": "cpu", **arguments})


def test_weights_that_are_not_there_are_refused_with_those_that_are() -> None:
    with pytest.raises(WeightsError, match=r"no-such-weights.*or one of: .*fast"):
        Denoiser("no-such-weights", backend="cpu")


def test_the_front_door_is_small() -> None:
    assert sorted(emdenoised.__all__) == ["Denoiser", "Result", "__version__", "denoise"]
    for one in emdenoised.__all__:
        assert getattr(emdenoised, one) is not None
    arguments = list(inspect.signature(Denoiser).parameters)
    assert arguments == ["weights", "backend", "gain", "passes", "threads"]
    assert list(inspect.signature(emdenoised.denoise).parameters) == ["image", *arguments]
    with pytest.raises(AttributeError, match="no attribute 'Denoisers'"):
        _ = emdenoised.Denoisers  # type: ignore[attr-defined]


def test_it_is_the_command_too_and_quick_to_load(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "emdenoised", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["emdenoised", emdenoised.__version__]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "daemon.commands.main" in loaded and not {"onnxruntime", "numpy", "tifffile"} & loaded


def test_one_image_in_one_call(denoiser: Denoiser, counts: Counts) -> None:
    image = counts()
    np.testing.assert_array_equal(emdenoised.denoise(image, backend="cpu", gain=1.0), denoiser.denoise(image))


def test_weights_are_named_found_in_a_folder_or_by_a_profile(denoiser: Denoiser, counts: Counts) -> None:
    image, folder = counts(), manifest.locate("fast")
    for weights in (folder, str(folder), Profile(name="mine", weights=str(folder)), Profile(name="shipped")):
        gain: Any = "auto" if isinstance(weights, Profile) else 1.0
        with Denoiser(weights, backend="cpu", gain=gain) as other:
            np.testing.assert_array_equal(other.denoise(image), denoiser.denoise(image))


def test_use_after_close_is_an_error_with_the_remedy(counts: Counts) -> None:
    closed = Denoiser(backend="cpu")
    closed.close()
    closed.close()
    for use in (closed.denoise, closed.denoise_with_verdict):
        with pytest.raises(BackendError, match=r"is closed; make a new one"):
            use(counts())


def test_a_16_bit_image_of_unknown_gain_is_denoised_as_the_daemon_does(tmp_path: Path) -> None:
    """As most images from cameras are: their gain is in no file. With a gain of 1 hardly anything was removed."""
    rng = np.random.default_rng(7)
    counts, truth = expose(scene(rng, 384), 20, 0.6, rng)
    image = (40 * counts.astype(np.float64) + 300).clip(0, 65_535).astype(np.uint16)
    with Denoiser(backend="cpu") as front:
        result = front.denoise_with_verdict(image)
    assert np.std(result.image - image) == pytest.approx(40 * np.std(counts - truth), rel=0.1)
    assert np.sqrt(np.mean((result.image - (40 * truth + 300)) ** 2)) < 0.45 * 40 * np.std(counts - truth)
    tifffile.imwrite(tmp_path / "image.tif", image)
    assert main(["denoise", str(tmp_path / "image.tif"), "-o", str(tmp_path / "out")]) == 0
    np.testing.assert_allclose(result.image, tifffile.imread(tmp_path / "out/image.tif"), rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_the_verdict_comes_with_dose_and_gain(counts: Counts) -> None:
    image = (3.0 * counts(1, 20, (128, 128))).astype(np.float32)
    with Denoiser(backend="cpu") as front:
        result = front.denoise_with_verdict(image)
        assert result.verdict == "good" and result.reasons == ()
        assert result.dose == pytest.approx(20, rel=0.1) and result.gain == pytest.approx(3, rel=0.1)
        assert any("units per count" in remark for remark in result.warnings)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            np.testing.assert_array_equal(front.denoise(image), result.image)
        assert [str(one.message) for one in heard] == list(result.warnings)
        assert {one.filename for one in heard} == {__file__}
        with pytest.raises(MicrographError, match=r"one image \(H, W\) has one verdict"):
            front.denoise_with_verdict(np.stack([image, image]))
        with pytest.raises(MicrographError, match=r"an image \(H, W\) is needed"):
            front.denoise_with_verdict(image[0])


def test_eight_passes_average_the_eight_orientations(denoiser: Denoiser, counts: Counts) -> None:
    """Also of an image that is not square, and with a spike, which all eight see replaced alike."""
    image = counts(3, 20, (96, 128))
    image[11, 100] = 30_000
    expected = np.zeros(image.shape)
    for turns in range(4):
        for mirrored in (False, True):
            turned = np.rot90(image.T if mirrored else image, turns)
            back = np.rot90(denoiser.denoise(turned), -turns)
            expected += (back.T if mirrored else back) / 8
    with Denoiser(backend="cpu", gain=1.0, passes=8) as other:
        result = other.denoise(image)
        np.testing.assert_allclose(result, expected, atol=2e-3)
        assert other.denoise_with_verdict(image).verdict in ("good", "check")
    assert np.abs(result - denoiser.denoise(image)).max() > 0.01
    with Denoiser(Profile(name="best", passes=8), backend="cpu") as other:
        np.testing.assert_array_equal(other.denoise(image), result)


def test_a_graphics_card_is_used_and_never_passed_over_in_silence(
    monkeypatch: pytest.MonkeyPatch, counts: Counts, denoiser: Denoiser
) -> None:
    image = counts(1, 20, (256, 256))  # a tile of its own: smaller ones are reflected to fill one
    with monkeypatch.context() as patch:
        drivers = plug_in(patch)
        with Denoiser(gain=1.0) as on_card:
            result = on_card.denoise(np.stack([image] * 5))
    assert len(drivers) == 1
    assert drivers[0].closed
    for plane in result:
        np.testing.assert_allclose(plane, denoiser.denoise(image), atol=1e-3)
    monkeypatch.setattr("daemon.backends.driver_answers", lambda *_: True)
    with pytest.raises(BackendError, match="no NVIDIA driver answers"):
        Denoiser()


def test_a_defect_of_ours_costs_one_micrograph(monkeypatch: pytest.MonkeyPatch, counts: Counts) -> None:
    def defect(*arguments: Any, **options: Any) -> None:
        raise IndexError("off by one")

    monkeypatch.setattr(spikes, "find", defect)
    with Denoiser(backend="cpu") as one, pytest.raises(MicrographError, match=r"internal error, .*off by one"):
        one.denoise(counts())


def gaussian(image: NDArray[Any], sigma: float) -> NDArray[np.float64]:
    """Reflecting Gaussian filter, by Fourier transform of the mirrored image."""
    mirrored = np.block([[image, image[:, ::-1]], [image[::-1], image[::-1, ::-1]]]).astype(float)
    ky, kx = np.fft.fftfreq(mirrored.shape[0]), np.fft.rfftfreq(mirrored.shape[1])
    transfer = np.exp(-2 * (np.pi * sigma) ** 2 * (ky[:, None] ** 2 + kx**2))
    smooth = np.fft.irfft2(np.fft.rfft2(mirrored) * transfer, s=mirrored.shape)
    return np.asarray(smooth[: image.shape[0], : image.shape[1]])


@pytest.mark.parametrize(
    ("contrast", "sigmas", "margin"),
    [
        (0.05, (1, 2, 3, 4), 3.0),  # what people use; at 5 % a blur over 10 pixels and more, if one knew, does better
        (1.0, (0.7, 1, 1.4, 2, 3, 4), 0.7),  # the best width, chosen with the truth at hand
    ],
)
def test_better_than_a_gaussian_at_low_dose(
    denoiser: Denoiser, contrast: float, sigmas: tuple[float, ...], margin: float
) -> None:
    # From a family of specimens no training has seen.
    gained = []
    for seed in range(3):
        rng = np.random.default_rng([2018, seed])
        counts, truth = expose(scene(rng, 384), 20, contrast, rng)
        ours = float(np.mean((denoiser.denoise(counts) - truth) ** 2))
        theirs = min(float(np.mean((gaussian(counts, sigma) - truth) ** 2)) for sigma in sigmas)
        gained.append(10 * np.log10(theirs / ours))
    assert np.mean(gained) > margin, gained
