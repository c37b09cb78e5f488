"""`Denoiser` on arrays, with the shipped weights: shapes, units, means, spikes, options, and is it any good?"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_gpu import plug_in
from numpy.typing import NDArray

from daemon import Denoiser
from daemon.backends.canary import canary
from daemon.counts import spikes
from daemon.counts.plane import Denoised, Plane, Prepared
from daemon.demo.specimen import expose, scene
from daemon.errors import BackendError, MicrographError, WeightsError

Counts = Callable[..., NDArray[np.uint16]]


@pytest.fixture(scope="module")
def denoiser() -> Iterator[Denoiser]:
    with Denoiser(backend="cpu") as loaded:
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
    with Denoiser(gain=gain, offset=offset, backend="cpu") as other:
        result = (other.denoise(image * gain + offset) - offset) / gain
    np.testing.assert_allclose(result, denoiser.denoise(image), atol=0.02)  # float32 on a pedestal of 1e5 keeps so much


@pytest.mark.parametrize("gain", [1.0, 0.05, 40.0])
def test_an_unknown_gain_is_measured(denoiser: Denoiser, counts: Counts, gain: float) -> None:
    image = counts(1, 20, (128, 128))
    with Denoiser(gain="auto", backend="cpu") as other:
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


@pytest.mark.parametrize("find_spikes", [True, False])
def test_nan_and_inf_are_filled_in(counts: Counts, find_spikes: bool) -> None:
    image = counts(3, 20, (64, 64)).astype(np.float32)
    clean = image.copy()
    image[5, 5], image[5, 6], image[40, 0] = np.nan, np.inf, -np.inf
    with Denoiser(find_spikes=find_spikes, backend="cpu") as denoiser:
        result = denoiser.denoise(image)
        assert np.isfinite(result).all()
        assert np.abs(result - denoiser.denoise(clean)).max() < 2 * np.sqrt(20)


@pytest.mark.parametrize(
    "options",
    [{"overlap": 25}, {"overlap": 160}, {"blend": 32}, {"tile": 512}, {"batch": 3, "tile": 320}]
    + [{"padding": padding} for padding in ("symmetric", "edge", "wrap")],
    ids=str,
)
def test_options_change_how_it_is_done_and_hardly_the_result(
    denoiser: Denoiser, counts: Counts, options: dict[str, Any]
) -> None:
    image = counts(4, 20, (100, 130))
    with Denoiser(backend="cpu", **options) as other:
        result = other.denoise(image)
    assert result.shape == image.shape
    inside = np.s_[40:-40, 40:-40]
    assert np.sqrt(np.mean((result - denoiser.denoise(image))[inside] ** 2)) < 0.25 * np.sqrt(20)


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


def test_bad_options_are_refused_in_words() -> None:
    with pytest.raises(WeightsError, match="leaves nothing inside halo"):
        Denoiser(tile=64, backend="cpu")
    with pytest.raises(WeightsError, match="no-such-weights"):
        Denoiser("no-such-weights", backend="cpu")


def test_a_graphics_card_is_used_and_never_passed_over_in_silence(
    monkeypatch: pytest.MonkeyPatch, counts: Counts, denoiser: Denoiser
) -> None:
    image = counts(1, 20, (256, 256))  # a tile of its own: smaller ones are reflected to fill one
    with monkeypatch.context() as patch:
        drivers = plug_in(patch)
        with Denoiser() as on_card:
            result = on_card.denoise(np.stack([image] * 5))
    assert len(drivers) == 1
    assert drivers[0].closed
    for plane in result:
        np.testing.assert_allclose(plane, denoiser.denoise(image), atol=1e-3)
    monkeypatch.setattr("daemon.backends.driver_answers", lambda patience: True)
    with pytest.raises(BackendError, match="no NVIDIA driver answers"):
        Denoiser()


def test_a_defect_of_ours_costs_one_micrograph(monkeypatch: pytest.MonkeyPatch, counts: Counts) -> None:
    def defect(*arguments: Any, **options: Any) -> None:
        raise IndexError("off by one")

    monkeypatch.setattr(spikes, "find", defect)
    with Denoiser(backend="cpu") as one, pytest.raises(MicrographError, match=r"internal error, .*off by one"):
        one.denoise(counts())


class Broken:
    name = "broken"

    def __init__(self, result: Callable[[Prepared], Any]) -> None:
        self.result = result

    def denoise(self, planes: Iterable[Plane]) -> Iterator[Denoised]:
        for plane in planes:
            prepared = plane.prepare(spikes.survey(plane.pixels, 1, 0))
            yield Denoised(self.result(prepared), prepared, self.name)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "result",
    [
        lambda one: one.pixels.astype(np.float32),
        lambda one: np.full(one.pixels.shape, np.nan, np.float32),
        lambda one: np.full(one.pixels.shape, 7.0, np.float32),
    ],
    ids=["not denoised", "nan", "wrong mean"],
)
def test_the_canary_notices_a_backend_that_does_not_denoise(result: Callable[[Prepared], Any]) -> None:
    with pytest.raises(BackendError, match="canary tile came out wrong"):
        canary(Broken(result))


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
