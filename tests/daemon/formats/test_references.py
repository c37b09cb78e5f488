"""Gain references, masks and impossible units: no micrographs, and micrographs that only resemble them."""

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile

from daemon import formats
from daemon.errors import MicrographError

LIMIT = 1 << 24


@pytest.mark.parametrize(
    "name",
    ["CountRef_frames.mrc", "SuperRef_a.mrc", "K3-gain-ref.tif", "20260101.gain.mrc", "gain.tif", "gain.mrc",
     "K3_gain_20260312.mrc", "dark.tif", "DarkReference2.tif", "gain_map.mrc", "GainRef_x1.m1.mrc"],
)  # fmt: skip
def test_a_gain_reference_is_left_alone(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / name
    if path.suffix == ".tif":
        tifffile.imwrite(path, rng.normal(1, 0.02, (64, 64)).astype(np.float32))
    else:
        mrcfile.write(path, rng.normal(1, 0.02, (64, 64)).astype(np.float32))
    with pytest.raises(MicrographError, match="gain or dark reference"):
        formats.read(path, LIMIT)


@pytest.mark.parametrize(
    "name",
    ["again.tif", "gained.tif", "darkfield.tif", "preference.tif", "dark_reflection_g220_001.tif", "weak_beam_dark.tif",
     "Dark_Field_3.tif", "DF-dark-field.tif", "HAADF_gain_3.tif", "weight gain mouse.tif", "dark_referral.tif",
     "样品_dark.tif", "bright_and_dark.tif"],
)  # fmt: skip
def test_names_that_only_sound_like_one_are_micrographs(tmp_path: Path, name: str) -> None:
    tifffile.imwrite(tmp_path / name, np.random.default_rng(0).poisson(9, (64, 64)).astype(np.uint16))
    assert formats.read(tmp_path / name, LIMIT).pixels.shape == (64, 64)


def test_a_mask_is_left_alone_and_a_blank_frame_is_not_called_one(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20] = 255
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    with pytest.raises(MicrographError, match="two values only, in patches, as a mask"):
        formats.read(tmp_path / "mask.tif", LIMIT)
    tifffile.imwrite(tmp_path / "blank.tif", mask * 0)
    assert not formats.read(tmp_path / "blank.tif", LIMIT).pixels.any()


def test_a_frame_of_single_electrons_is_no_mask(tmp_path: Path) -> None:
    electrons = (np.random.default_rng(0).random((64, 64)) < 0.05).astype(np.uint8)
    tifffile.imwrite(tmp_path / "frame.tif", electrons)
    assert formats.read(tmp_path / "frame.tif", LIMIT).pixels.sum() == electrons.sum()
