"""JPEG data that are cut and closed by an end marker are refused; whole ones of other writers are read."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from daemon import formats
from daemon.errors import MicrographError

LIMIT = 1 << 20
END = b"\xff\xd9"
COUNTS = np.random.default_rng(3).poisson(60, (128, 160)).astype(np.uint8)


@pytest.mark.parametrize("options", [{}, {"tile": (64, 64)}, {"rowsperstrip": 64}, {"compressionargs": {"level": 100}}])
def test_data_closed_too_early_are_refused_wherever_they_are_cut(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COUNTS, compression="jpeg", photometric="minisblack", metadata=None, **options)
    whole = path.read_bytes()
    assert formats.read(path, LIMIT).pixels.shape == COUNTS.shape
    with tifffile.TiffFile(path) as file:
        places = list(zip(file.pages.first.dataoffsets, file.pages.first.databytecounts, strict=True))
    for start, length in (places[0], places[-1]):
        head = whole.find(b"\xff\xda", start) + 12 - start
        for cut in (head, head + 40, (head + length) // 2, length - 40, *range(length - 12, length - 2)):
            for rest in (END, END + bytes(9) + END):
                closed = (whole[start : start + cut] + rest)[:length].ljust(length, b"\0")
                path.write_bytes(whole[:start] + closed + whole[start + length :])
                with pytest.raises(MicrographError, match="is cut off within its JPEG data"):
                    formats.read(path, LIMIT)


@pytest.mark.parametrize(
    "options", [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_blocks": 7}, {"quality": 100}], ids=str
)
def test_whole_data_of_another_writer_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    for image in (COUNTS, np.where(np.arange(160) > 150, np.uint8(128), COUNTS)):
        stream = io.BytesIO()
        Picture.fromarray(image).save(stream, "jpeg", **options)
        expected = np.asarray(Picture.open(io.BytesIO(stream.getvalue())))
        for data in (stream.getvalue(), stream.getvalue().removesuffix(END) + b"\xff\xff" + END):
            tifffile.imwrite(tmp_path / "a.tif", iter([data]), shape=image.shape, dtype=np.uint8, compression="jpeg")
            np.testing.assert_array_equal(formats.read(tmp_path / "a.tif", LIMIT).pixels, expected)
