"""Regions without numbers stay as they are in the result; single pixels without one are filled in."""

import json
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile

from daemon.commands import main
from daemon.counts import voids
from emdenoised import Denoiser

SHAPE = (96, 96)


def found(mask: np.ndarray) -> np.ndarray:
    places = voids.find(np.flatnonzero(mask), mask.shape)
    back = np.zeros(mask.shape, bool)
    back.reshape(-1)[places] = True
    return back


@pytest.mark.parametrize(
    "region",
    [
        np.s_[:3, :], np.s_[:1, :], np.s_[:, -1:], np.s_[-2:, :], np.s_[40:60, 30:50], np.s_[0:5, 0:5], np.s_[:, 70:],
        np.s_[90:, 80:],
    ],
    ids=["border", "one-row", "one-column", "two-rows", "hole", "corner", "half", "lower-corner"],
)  # fmt: skip
def test_a_region_is_found_whole_and_nothing_else(region: tuple[slice, slice]) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[region] = True
    np.testing.assert_array_equal(found(mask), mask)
    single = mask.copy()
    single[20, 20] = single[71, 60] = True
    np.testing.assert_array_equal(found(single), mask)


def test_defects_are_no_regions() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[10, 10] = mask[0, 0] = mask[-1, 5] = mask[30:34, 30:34] = True
    mask[50, :90] = mask[:, 70] = False
    mask[60, 10:60] = True  # a dead line
    assert not found(mask).any()
    assert not found(np.zeros(SHAPE, bool)).any()


@pytest.mark.parametrize("name", ["a.tif", "a.mrc"])
def test_a_void_stays_a_void_and_is_in_the_record(tmp_path: Path, name: str) -> None:
    image = np.random.default_rng(0).poisson(50, SHAPE).astype(np.float32)
    image[:, 80:] = np.nan
    image[10, 10] = np.nan
    path, out = tmp_path / name, tmp_path / "out"
    if name.endswith("tif"):
        tifffile.imwrite(path, image)
    else:
        with pytest.warns(RuntimeWarning, match="NaN"):
            mrcfile.write(path, image)
    assert main.main(["denoise", str(path), "-o", str(out)]) == 0
    record = json.loads((out / f"{name}.json").read_text())
    assert record["void"] == {"pixels": 16 * 96, "rows": [0, 95], "columns": [80, 95]}
    assert record["spikes"]["count"] == 1 and record["spikes"]["listed"][0]["row"] == 10
    assert any("holds no numbers: it was left as it is" in text for text in record["warnings"])
    result = tifffile.imread(out / name) if name.endswith("tif") else mrcfile.read(out / name)
    assert np.isnan(result[:, 80:]).all() and np.isfinite(result[:, :80]).all()
    assert float(result[:, :80].mean()) == pytest.approx(50, rel=0.02)
    if name.endswith("mrc"):
        with mrcfile.open(out / name) as file:
            assert np.isfinite([file.header.dmin, file.header.dmax, file.header.dmean, file.header.rms]).all()


def test_arrays_keep_theirs_too() -> None:
    image = np.random.default_rng(0).poisson(50, SHAPE).astype(np.float32)
    image[:10] = np.nan
    with Denoiser(backend="cpu", gain=1.0) as denoiser, pytest.warns(UserWarning, match="holds no numbers"):
        result = denoiser.denoise(image)
    assert np.isnan(result[:10]).all() and np.isfinite(result[10:]).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_the_fill_value_that_a_file_states_stays_and_is_in_no_figure(tmp_path: Path, dtype: type) -> None:
    image = np.random.default_rng(0).poisson(50, (200, 200)).astype(dtype)
    clean = image.copy()
    image[20:40, :70] = 9999
    path, out = tmp_path / "a.tif", tmp_path / "out"
    tags = [(42113, 2, 5, b"9999\0", True)]
    tifffile.imwrite(path, image, photometric="minisblack", metadata=None, extratags=tags)
    assert main.main(["denoise", str(path), "-o", str(out)]) == 0
    record = json.loads((out / "a.tif.json").read_text())
    assert record["void"] == {"pixels": 20 * 70, "rows": [20, 39], "columns": [0, 69]}
    assert record["spikes"]["count"] == 0 and record["dose"] == pytest.approx(50, rel=0.03)
    assert any("hold the file's fill value: they were left as they are" in text for text in record["warnings"])
    with tifffile.TiffFile(out / "a.tif") as file:
        result = file.asarray()
        assert file.pages.first.tags[42113].value == "9999"
    assert (result[20:40, :70] == 9999).all()
    assert np.abs(result - clean)[np.r_[0:19, 41:200]].max() < 5 * np.sqrt(50)


def test_an_image_of_fill_value_only_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tags = [(42113, 2, 2, b"7\0", True)]
    tifffile.imwrite(tmp_path / "a.tif", np.full(SHAPE, 7, np.uint16), metadata=None, extratags=tags)
    assert main.main(["denoise", str(tmp_path / "a.tif"), "-o", str(tmp_path / "out")]) == 1
    assert "holds the fill value that its file states" in capsys.readouterr().out
