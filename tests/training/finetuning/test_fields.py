"""Files → fields of view: which belong together, what each is in counts, and why some are refused."""

import logging
from functools import cache
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tifffile
from hyperspy_file import write_hyperspy
from numpy.typing import NDArray

from daemon.errors import ConfigError
from training.data import simulate
from training.finetuning.alignment import compare
from training.finetuning.fields import GROUPS, PARTNERS, Reading, load_fields, paired
from training.finetuning.noisy import Field, batch, divide, sample

SIDE = 128


@cache
def scene(seed: int) -> simulate.Scene:
    names = ("atomic_columns", "phase_contrast", "thickness_fringes", "membranes")
    return simulate.TRAINING[names[seed % len(names)]](np.random.default_rng(seed), SIDE)


def truth(seed: int, dose: float = 20.0) -> NDArray[Any]:
    image = scene(seed)
    return dose * (1 + 0.7 * (image / image.mean() - 1))


def exposure(rng: np.random.Generator, seed: int, dose: float = 20.0) -> NDArray[np.uint16]:
    return rng.poisson(truth(seed, dose)).astype(np.uint16)


def load(folder: Path, reading: Reading) -> tuple[list[Field], dict[str, str]]:
    fields, skipped = load_fields(folder, reading, folder / "out" / "cache", folder / "out")
    return fields, dict(skipped)


def names(*files: str) -> list[tuple[str, ...]]:
    return [tuple(path.name for path in group) for group in paired([Path(file) for file in files], PARTNERS)]


def test_names_that_differ_in_their_last_word_are_pairs() -> None:
    assert names("g_01_a.tif", "g_01_b.tif", "g_02_a.tif") == [("g_01_a.tif", "g_01_b.tif"), ("g_02_a.tif",)]
    assert names("x-ODD.mrc", "x-EVN.mrc") == [("x-ODD.mrc", "x-EVN.mrc")]
    assert names("x.half1.mrc", "x.half2.mrc") == [("x.half1.mrc", "x.half2.mrc")]
    assert names("p/x_a.tif", "q/x_b.tif") == [("x_a.tif",), ("x_b.tif",)]


def test_numbers_are_pairs_only_where_there_are_two() -> None:
    assert names("x_1.tif", "x_2.tif") == [("x_1.tif", "x_2.tif")]
    assert names("x_1.tif", "x_2.tif", "x_3.tif") == [("x_1.tif",), ("x_2.tif",), ("x_3.tif",)]
    assert names("x_0001.tif", "x_0002.tif") == [("x_0001.tif",), ("x_0002.tif",)]


def test_a_pair_becomes_a_field_in_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one, two = exposure(rng, 1), exposure(rng, 1, 10.0)
    tifffile.imwrite(tmp_path / "s_a.tif", (3 * one + 100).astype(np.float32))
    tifffile.imwrite(tmp_path / "s_b.tif", (3 * two + 100).astype(np.float32))
    (field,), skipped = load(tmp_path, Reading("pairs", 3.0, 100.0))
    assert not skipped
    assert field.files == ("s_a.tif", "s_b.tif")
    np.testing.assert_allclose(field.exposures[0], one, atol=1e-3)
    assert field.doses == pytest.approx((one.mean(), two.mean()))
    assert field.measured["agreement"] > 3
    again, _ = load(tmp_path, Reading("pairs", 3.0, 100.0))
    np.testing.assert_array_equal(again[0].exposures[1], field.exposures[1])
    assert again[0].doses == pytest.approx(field.doses)


@pytest.mark.parametrize("kind", ["tiff", "imagej", "mrc", "hspy"])
def test_frames_of_a_stack_are_read_singly_and_add_up(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    frames = np.stack([exposure(rng, 2, 3.0) for _ in range(11)]).astype(np.uint16)
    if kind == "mrc":
        with mrcfile.new(tmp_path / "movie.mrc") as mrc:
            mrc.set_data(frames.astype(np.int16))
    elif kind == "hspy":
        write_hyperspy(tmp_path / "movie.hspy", frames)
    else:
        tifffile.imwrite(tmp_path / "movie.tif", frames, imagej=kind == "imagej", metadata={"axes": "TYX"})
    (field,), skipped = load(tmp_path, Reading("pairs"))
    assert not skipped
    assert len(field.exposures) == GROUPS
    np.testing.assert_array_equal(np.sum([np.asarray(e) for e in field.exposures], axis=0), frames.sum(0))
    np.testing.assert_array_equal(field.exposures[0], frames[[0, 8]].sum(0))


def test_the_gain_of_pairs_can_be_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    flat = 30 * (1 + 0.2 * np.sin(np.arange(256) / 9))[:, None] * np.ones(256)
    for end in "ab":
        tifffile.imwrite(tmp_path / f"s_{end}.tif", (5 * rng.poisson(flat)).astype(np.float32))
    (field,), _ = load(tmp_path, Reading("pairs", "auto"))
    assert field.measured["gain"] == pytest.approx(5, rel=0.15)


def test_what_cannot_be_a_pair_is_skipped_with_the_reason_and_the_rest_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)

    def put(name: str, first: NDArray[Any], second: NDArray[Any]) -> None:
        tifffile.imwrite(tmp_path / f"{name}_a.tif", first)
        tifffile.imwrite(tmp_path / f"{name}_b.tif", second)

    put("good", exposure(rng, 1), exposure(rng, 1))
    put("moved", exposure(rng, 5), np.roll(exposure(rng, 5), (4, -3), (0, 1)))
    put("other", exposure(rng, 9), exposure(rng, 7))
    put("empty", rng.poisson(5, (SIDE, SIDE)).astype(np.uint16), rng.poisson(5, (SIDE, SIDE)).astype(np.uint16))
    same = exposure(rng, 1)
    put("same", same, same)
    put("sizes", exposure(rng, 1), exposure(rng, 1)[:, :-1])
    put("small", exposure(rng, 1)[:50, :50], exposure(rng, 1)[:50, :50])
    tifffile.imwrite(tmp_path / "alone.tif", exposure(rng, 1))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "alone.tif").read_bytes()[:4000])
    with caplog.at_level(logging.WARNING):
        fields, skipped = load(tmp_path, Reading("pairs"))
    assert [field.name for field in fields] == ["good_a.tif"]
    for name, reason in {
        "moved_b.tif": "shifted by (-4, 3) pixels",
        "other_a.tif": "agree better when shifted",
        "empty_a.tif": "nothing in common above their noise",
        "same_a.tif": "one and the same",
        "sizes_a.tif": "another size",
        "small_a.tif": "at least 128",
        "alone.tif": "without a partner",
        "notes.txt": "no kind of micrograph",
        "cut.tif": "the file ends at byte 4000",
    }.items():
        assert reason in skipped[name], skipped[name]
        assert name.split("_")[0] in caplog.text


def test_fields_of_a_lattice_that_did_not_move_are_accepted() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256]
    lattice = 8 * (1 + 0.5 * np.cos(2 * np.pi * x / 12) * np.cos(2 * np.pi * y / 12))
    first, second = (rng.poisson(lattice).astype(np.float32) for _ in range(2))
    assert compare(first, second).refusal() is None
    assert "shifted" in str(compare(first, np.roll(second, 3, 1)).refusal())


@pytest.mark.parametrize("dose", [10.0, 100.0])
@pytest.mark.parametrize("shift", [0.3, 0.5])
def test_exposures_a_fraction_of_a_pixel_apart_are_refused(dose: float, shift: float) -> None:
    rng = np.random.default_rng(0)
    scene = simulate.TRAINING["thickness_fringes"](np.random.default_rng(1), 384).astype(np.float64)
    frequency = np.fft.fftfreq(384)[:, None], np.fft.rfftfreq(384)[None, :]
    spectrum = np.fft.rfft2(scene)
    moved = np.fft.irfft2(spectrum * np.exp(-2j * np.pi * shift * frequency[0]), s=scene.shape)
    rates = [dose * np.maximum(image, 0) / scene.mean() for image in (scene, scene, moved)]
    first, second, third = (rng.poisson(rate).astype(np.float32) for rate in rates)
    compared = compare(first, third)
    assert compared.offset == pytest.approx((-shift, 0), abs=max(0.05, 4 * compared.offset_error))
    assert "pixels apart" in str(compared.refusal())
    same = compare(first, second)
    assert same.refusal() is None
    assert np.hypot(*same.offset) < 0.15


def test_thinning_takes_counts_and_refuses_the_rest_by_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hot = exposure(rng, 1)
    hot[20, 30] = 40_000
    tifffile.imwrite(tmp_path / "counts.tif", hot)
    tifffile.imwrite(tmp_path / "scaled.tif", (2.5 * exposure(rng, 1)).astype(np.float32))
    (tmp_path / "out").mkdir()
    tifffile.imwrite(tmp_path / "out" / "own.tif", exposure(rng, 1))
    fields, skipped = load(tmp_path, Reading("thinning"))
    assert [field.name for field in fields] == ["counts.tif"]
    counts = fields[0].exposures[0]
    assert counts[20, 30] < 60
    assert np.array_equal(counts, np.rint(counts))
    assert list(skipped) == ["scaled.tif"]
    assert "scaled.tif: cannot be thinned" in skipped["scaled.tif"]
    assert "noise variance is 2." in skipped["scaled.tif"]
    rescued, _ = load(tmp_path, Reading("thinning", gain=2.5))
    assert [field.name for field in rescued] == ["scaled.tif"]


def test_options_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="auto"):
        Reading("thinning", gain="auto")
    with pytest.raises(ConfigError, match="gain -1"):
        Reading("pairs", gain=-1)


def a_field(number: int, dose: float = 20.0) -> Field:
    rng = np.random.default_rng(0)
    frames = [exposure(rng, 1, dose / number).astype(np.float32) for _ in range(number)]
    return Field("f", "", ("f",), frames, tuple(float(f.mean()) for f in frames), {})


def test_exposures_go_to_one_side_only() -> None:
    field = a_field(4)
    everywhere = (slice(None), slice(None))
    found = divide(np.random.default_rng(1), field, everywhere, 0.75)
    total = np.sum(field.exposures, axis=0)
    np.testing.assert_allclose(found.noisy + found.target / found.noise, total, rtol=1e-5)
    assert found.noise == pytest.approx(3, rel=0.05)
    assert found.dose == pytest.approx(float(found.noisy.mean()), rel=1e-5)
    pair = divide(np.random.default_rng(1), a_field(2), everywhere, 0.9)
    assert pair.noise == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_batches_are_in_noise_units_of_the_inputs_dose(number: int) -> None:
    drawn = batch([a_field(number)], 64, 7, 3, range(12))
    assert drawn.noisy.shape == drawn.truth.shape == (12, 1, 64, 64)
    assert {a.dtype for a in (drawn.noisy, drawn.truth, drawn.level, drawn.weight)} == {np.dtype(np.float32)}
    unit = 0.5 / drawn.level
    counts = drawn.noisy * unit + (unit**2 - 3 / 8)
    assert np.abs(counts - np.rint(counts)).max() < 0.01
    assert 0.4 * 20 < float((unit**2).mean()) < 20
    # At the mean dose the target's noise is 1 / weight, the input's 1; a darker crop has less of both.
    difference = (drawn.truth - drawn.noisy).var((1, 2, 3))
    brightness = (counts.mean((1, 2, 3)) / (unit**2).ravel()).clip(0.1)
    assert difference / brightness == pytest.approx((1 + drawn.weight**-2).ravel(), rel=0.15)


def test_a_sample_is_a_function_of_seed_step_and_index() -> None:
    fields = [a_field(1), a_field(2)]
    whole = batch(fields, 64, 7, 3, range(4))
    np.testing.assert_array_equal(sample(fields, 64, 7, 3, 2).noisy[0], whole.noisy[2])
    assert not np.array_equal(sample(fields, 64, 7, 4, 2).noisy, sample(fields, 64, 7, 3, 2).noisy)
