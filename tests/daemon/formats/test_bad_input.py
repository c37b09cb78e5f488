"""Files that lie, lack something or make no sense, through `emdenoised denoise`: each has a clear answer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from daemon.commands import main

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(20 * (1 + 0.4 * np.sin(np.arange(128) / 7)[:, None] * np.sin(np.arange(128) / 9))).astype("u2")


@pytest.fixture
def denoised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`denoised(path, *options)`: exit status, what was printed, and the JSON if there is a result."""

    def denoise(path: Path, *options: str) -> tuple[int, str, dict[str, Any] | None]:
        status = main.main(["denoise", str(path), "-o", str(tmp_path / "out"), *options])
        said = capsys.readouterr()
        record = tmp_path / "out" / f"{path.name}.json"
        return status, said.out + said.err, json.loads(record.read_text()) if record.exists() else None

    return denoise


def test_an_impossible_unit_is_reported_and_not_passed_on(tmp_path: Path, denoised: Any) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COUNTS, imagej=True, resolution=(0.25, 0.25), metadata={"unit": "m"})
    status, said, record = denoised(path)
    assert status == 0 and "states pixels of 4 m, which no electron microscope has" in " ".join(said.split())
    assert record is not None and record["raw"]["pixel_size"] is None
    assert "pixel_size_from" not in record["raw"]["metadata"]
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as result:
        assert result.imagej_metadata is not None and "unit" not in result.imagej_metadata
        assert result.pages.first.tags["XResolution"].value == (1, 1)


def test_no_metadata_at_all_is_unknown_in_the_record(tmp_path: Path, denoised: Any) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COUNTS, metadata=None)
    status, _, record = denoised(path)
    assert status == 0 and record is not None
    assert record["raw"]["pixel_size"] is None and set(record["raw"]["acquisition"].values()) == {"unknown"}


def test_negative_counts_are_served_as_noise_of_unknown_dose_or_refused(tmp_path: Path, denoised: Any) -> None:
    path = tmp_path / "a.tif"
    centred = RNG.normal(0, 3, COUNTS.shape).astype("f4")
    tifffile.imwrite(path, centred, metadata=None)
    status, said, record = denoised(path)
    assert status == 0 and "the pixel values are not plain counts" in said and "dose unknown" in said
    assert record is not None and record["dose"] is None
    result = tifffile.imread(tmp_path / "out" / "a.tif")
    assert result.min() < 0 and result.mean() == pytest.approx(centred.mean(), abs=0.01)


def test_a_negative_mean_that_the_profile_calls_counts_is_refused_with_the_remedy(
    tmp_path: Path, denoised: Any
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COUNTS.astype("f4") - 100, metadata=None)
    status, said, record = denoised(path, "--profile", "low")
    assert status != 0 and record is None
    assert "counts must be positive: correct the profile's gain and offset, or use gain: auto" in " ".join(said.split())


def test_a_stack_with_a_broken_frame_is_refused_and_the_frame_is_named(tmp_path: Path, denoised: Any) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(3):
            writer.write(COUNTS, contiguous=False, metadata=None, compression="zlib")
    with tifffile.TiffFile(path) as file:
        page = file.pages[1]
        at, length = page.dataoffsets[0], page.databytecounts[0]
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(b"\xa5" * length)
    status, said, record = denoised(path)
    assert status != 0 and record is None and "frame 2 of 3 is damaged" in said
    assert "copy the file again, or export it again at the microscope" in " ".join(said.split())
