"""Reading in a child process: the same micrographs, and what goes wrong there costs one of them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_array_equal
from site_of_daemon import Site, until

from daemon import formats
from daemon.errors import MicrographError, TransientError
from daemon.formats import RawFile, decoder
from daemon.formats.decoder import Reader
from daemon.service import fingerprints

LIMIT = 1 << 20
PATIENT = 60.0

STAGED = """
import os, time
from pathlib import Path
from daemon import formats; from daemon.formats import decoder as reader
real = formats.read
def read(raw, max_pixels, section=None, **options):
    path = raw.path
    if "crash" in path.name: os.abort()
    if "loop" in path.name:
        while True: pass
    if "greedy" in path.name: bytearray(1 << 40)
    if "killed" in path.name: os.kill(os.getpid(), 9)
    if "defect" in path.name: raise KeyError("a defect")
    if "stuck" in path.name: time.sleep(3600)
    return real(raw, max_pixels, section, **options)
formats.read = read
reader.main()
"""


@pytest.fixture
def reader() -> Iterator[Reader]:
    with Reader(LIMIT, PATIENT) as one:
        yield one


@pytest.fixture
def compressed(tmp_path: Path, counts: Callable[..., Any]) -> Callable[..., Path]:
    def make(name: str, seed: int = 0, **options: Any) -> Path:
        path = tmp_path / name
        tifffile.imwrite(path, counts(seed), **{"compression": "zlib", "imagej": True, "resolution": (4, 2), **options})
        return path

    return make


def children() -> set[int]:
    return {int(one) for one in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "packbits", "lzma"])
def test_a_compressed_micrograph_comes_back_as_it_is_read_here(
    reader: Reader, compressed: Callable[..., Path], compression: str
) -> None:
    path = compressed("a.mrc", compression=compression, imagej=False, metadata=None, predictor=compression == "zlib")
    ours, theirs = formats.read(path, LIMIT), reader.read(path)
    assert_array_equal(ours.pixels, theirs.pixels)
    assert theirs.pixels.dtype == ours.pixels.dtype
    assert not theirs.pixels.flags.writeable
    for name in ("source", "kind", "pixel_size", "metadata", "warnings"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert theirs.warnings  # the name says MRC


def test_one_section_of_a_compressed_stack(reader: Reader, tmp_path: Path, counts: Callable[..., Any]) -> None:
    path, frames = tmp_path / "a.tif", np.stack([counts(seed) for seed in range(3)])
    tifffile.imwrite(path, frames, compression="zlib", photometric="minisblack")
    one = reader.read(path, 1)
    assert_array_equal(one.pixels, frames[1])
    assert (one.metadata["section"], one.metadata["sections"], one.metadata["frames"]) == (2, 3, 1)


@pytest.mark.parametrize("name", ["plain.mrc", "packed.tif"])
def test_no_link_is_followed_below_the_drop_folder_which_may_be_one_itself(
    tmp_path: Path, write: Callable[..., Path], compressed: Callable[..., Path], name: str
) -> None:
    """A folder that was looked into may be a link by the time its file is opened."""
    real, secret = tmp_path / "disk", tmp_path / "secret"
    for folder in (real / "sub" / "deeper", secret / "deeper"):
        folder.mkdir(parents=True)
        (compressed if name == "packed.tif" else write)(folder / name)  # an absolute path stays one
    drop = tmp_path / "drop"
    drop.symlink_to(real)
    path = drop / "sub" / "deeper" / name
    with Reader(LIMIT, PATIENT, root=drop) as reader:
        assert reader.read(path).pixels.size
        assert fingerprints.fingerprint(RawFile(path, drop), LIMIT).size == path.stat().st_size
        (real / "sub").rename(real / "away")
        (real / "sub").symlink_to(secret)
        for use in (
            reader.read,
            lambda path: fingerprints.fingerprint(RawFile(path, drop), LIMIT),
            lambda path: formats.probe(RawFile(path, drop)),
        ):
            with pytest.raises(MicrographError, match="lies behind one"):
                use(path)
        (real / "sub").unlink()
        (real / "sub").write_text("no folder at all")
        with pytest.raises(TransientError):
            reader.read(path)


def test_plain_micrographs_start_no_process(reader: Reader, tmp_path: Path, write: Callable[..., Path]) -> None:
    before = children()
    reader.read(write(tmp_path / "a.tif"))
    reader.read(write(tmp_path / "b.mrc"))
    assert children() == before


def test_one_process_serves_many_and_ends_with_its_reader(compressed: Callable[..., Path]) -> None:
    before = children()
    with Reader(LIMIT, PATIENT) as reader:
        first = reader.read(compressed("a.tif"))
        (child,) = children() - before
        kept = [reader.read(compressed(f"{n}.tif", n)).pixels for n in range(5)]
        assert children() - before == {child}
    assert children() == before
    assert first.pixel_size is None or first.pixel_size.x > 0
    for n, pixels in enumerate(kept):  # what was handed over outlives who made it
        assert_array_equal(pixels, formats.read(compressed(f"{n}.tif", n), LIMIT).pixels)


def test_a_process_whose_codec_stumbled_reads_nothing_more(reader: Reader, compressed: Callable[..., Path]) -> None:
    """Codecs have been seen to write beyond their memory on damaged data, and to crash on the next."""
    path = compressed("damaged.tif")
    page = tifffile.TiffFile(path).pages[0]
    content = bytearray(path.read_bytes())
    content[page.dataoffsets[0] : page.dataoffsets[0] + 20] = bytes(range(20))
    path.write_bytes(content)
    before = children()
    with pytest.raises(MicrographError, match=r"damaged\.tif: damaged or of an unknown kind"):
        reader.read(path)
    assert children() == before


def test_threads_do_not_wait_for_each_other(reader: Reader, compressed: Callable[..., Path]) -> None:
    path, results = compressed("a.tif"), []
    threads = [threading.Thread(target=lambda: results.append(reader.read(path).pixels)) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(results) == 4
    for pixels in results:
        assert_array_equal(pixels, results[0])


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("crash.tif", MicrographError, r"decoder crashed on it \(SIGABRT\).*without compression"),
        ("loop.tif", MicrographError, r"takes more than 1 s \(backend.decode_seconds\)"),
        ("greedy.tif", MicrographError, "more memory than backend.max_pixels"),
        ("killed.tif", TransientError, "killed from outside"),
        ("defect.tif", TransientError, "failed .exit status 1.; run emdenoised doctor"),
    ],
)
def test_what_brings_its_reader_down_costs_one_micrograph(
    compressed: Callable[..., Path], name: str, error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_PATIENCE", PATIENT)  # a second of processor time takes long on a busy machine
    before = children()
    with Reader(LIMIT, 1, STAGED) as reader:
        with pytest.raises(error, match=rf"{name}: .*{said}"):
            reader.read(compressed(name))
        assert reader.read(compressed("sound.tif")).pixels.shape == (64, 64)
    assert children() == before


def test_a_decoder_that_hangs_is_ended_and_tried_again(
    compressed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reader(LIMIT, 0.2, STAGED) as reader:
        with monkeypatch.context() as patch:
            patch.setattr(decoder, "_PATIENCE", 5 * PATIENT)
            reader.read(compressed("first.tif"))  # it is running now
        with pytest.raises(TransientError, match=r"stuck\.tif: is not read after 1 s"):
            reader.read(compressed("stuck.tif"))


def test_a_reader_that_died_while_idle_is_replaced(reader: Reader, compressed: Callable[..., Path]) -> None:
    before = children()
    reader.read(compressed("a.tif"))
    (child,) = children() - before
    os.kill(child, signal.SIGKILL)
    until(lambda: ") Z " in Path(f"/proc/{child}/stat").read_text())
    assert reader.read(compressed("b.tif")).pixels.shape == (64, 64)


def test_a_decompression_bomb_is_refused(reader: Reader, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "bomb.tif", np.zeros((20_000, 20_000), np.uint8), compression="zlib")
    assert (tmp_path / "bomb.tif").stat().st_size < 1 << 20
    with pytest.raises(MicrographError, match=r"claims 20000 x 20000 pixels, more than max_pixels"):
        reader.read(tmp_path / "bomb.tif")


def test_the_daemon_outlives_a_codec_that_crashes(site: Site, compressed: Callable[..., Path]) -> None:
    process = site.launch("run", staged="crashing-codec")
    site.ready(process)
    compressed("crash.tif").rename(site.drop / "crash.tif")
    compressed("sound.tif").rename(site.drop / "sound.tif")
    until(lambda: "quarantined 'crash.tif'" in site.said(process) and site.images() == {"sound.tif"})
    process.terminate()
    assert process.wait(PATIENT) == 0
    assert "decoder crashed on it (SIGABRT)" in site.said(process)
