"""Results are whole or absent, in the right order, and nothing of anybody else's is ever replaced."""

import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from small_results import RAW_SHA, denoised, listing, save

from daemon import formats
from daemon.errors import MicrographError, TransientError
from daemon.micrograph import PixelSize
from daemon.output import disk as output_disk
from daemon.output import paths, preview, writing


def test_three_files_and_the_json_describes_the_image(tmp_path: Path) -> None:
    written = save(tmp_path)
    assert listing(tmp_path) == {"sub/a.tif", "sub/a.tif.json", "sub/a.tif.png"}
    record = json.loads(written.record.read_text())
    assert record["raw"]["sha256"] == RAW_SHA and record["writer"] == "emdenoised" and record["dose"] == 20.0
    assert record["output"]["sha256"] == hashlib.sha256(written.image.read_bytes()).hexdigest() == written.sha256
    assert record["output"]["shape"] == [96, 128] and record["output"]["dtype"] == "float32"
    again = formats.read(written.image, 1 << 20)
    np.testing.assert_array_equal(again.pixels, denoised())
    assert again.pixel_size == PixelSize(0.2, 0.2, "nm")
    assert not written.adopted and oct(written.image.stat().st_mode)[-3:] != "600"


@pytest.mark.parametrize(
    ("relative", "revision", "kind", "name"),
    [
        ("a.tif", 1, "tiff", "a.tif"),
        ("a.TIFF", 1, "tiff", "a.TIFF"),
        ("x/y/a.mrc", 1, "mrc", "x/y/a.mrc"),
        ("a.tif", 2, "tiff", "a.r2.tif"),
        ("a.mrc", 1, "tiff", "a.mrc.tif"),
        ("a.mrc", 3, "tiff", "a.r3.mrc.tif"),
        ("a.tif", 1, "mrc", "a.tif.mrc"),
        ("a.b.mrcs", 2, "mrc", "a.b.r2.mrcs"),
        ("a", 1, "tiff", "a.tif"),
        # Like names of results of other files: of a section, a revision, another format.
        ("x/a.s0001.mrc", 1, "mrc", "x/a.s0001.s0000.mrc"),
        ("a.S0012.mrc", 2, "mrc", "a.S0012.s0000.r2.mrc"),
        ("a.s0000.mrc", 1, "mrc", "a.s0000.s0000.mrc"),
        ("a.r2.tif", 1, "tiff", "a.r2.s0000.tif"),
        ("a.r13.mrc", 1, "tiff", "a.r13.s0000.mrc.tif"),
        ("a.dm4.tif", 1, "tiff", "a.dm4.s0000.tif"),
        ("a.dm4.tif", 1, "mrc", "a.dm4.tif.mrc"),
        ("a.r1.tif", 1, "tiff", "a.r1.tif"),
        ("a.s001.tif", 1, "tiff", "a.s001.tif"),
        ("run.r2d2.tif", 1, "tiff", "run.r2d2.tif"),
    ],
)
def test_names(relative: str, revision: int, kind: formats.FileKind, name: str) -> None:
    assert paths.output_path(Path("/out"), PurePath(relative), revision, kind) == Path("/out") / name


def test_every_step_is_flushed_before_the_next_and_the_image_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    replace, link, fsync = Path.replace, os.link, os.fsync

    def name(path: Any) -> str:
        return "temporary" if Path(path).name.startswith(".emdenoised-") else Path(path).name

    def recorded_replace(self: Path, target: Path) -> Path:
        steps.append(f"rename {name(target)}")
        return replace(self, target)

    def recorded_link(source: Path, target: Path) -> None:
        assert source.parent == target.parent
        steps.append(f"rename {name(target)}")
        link(source, target)

    def recorded_fsync(descriptor: int) -> None:
        steps.append(f"flush {name(Path(f'/proc/self/fd/{descriptor}').readlink())}")
        fsync(descriptor)

    monkeypatch.setattr(Path, "replace", recorded_replace)
    monkeypatch.setattr(os, "link", recorded_link)
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    (tmp_path / "sub").mkdir()
    save(tmp_path)
    assert steps == [
        "flush temporary",
        "flush temporary",
        "flush temporary",
        "rename a.tif.png",
        "rename a.tif.json",
        "flush sub",
        "rename a.tif",
        "flush sub",
    ]


class Crash(BaseException):
    """A power cut: nothing after it runs."""


@pytest.mark.parametrize("at", range(8))
def test_a_crash_at_any_step_leaves_no_image_and_the_next_run_succeeds(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > at:
                raise Crash
            return function(*arguments, **options)

        return call

    (tmp_path / "sub").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))  # a power cut does not tidy up
        patch.setattr(os, "link", counted(os.link))
        patch.setattr(os, "fsync", counted(os.fsync))
        with pytest.raises(Crash):
            save(tmp_path)
    whole = (tmp_path / "sub/a.tif").exists()
    assert whole == (at >= 7)
    assert any(".emdenoised-" in name for name in listing(tmp_path))
    assert output_disk.clean_temporary(tmp_path) >= 1
    assert (writing.find_adoptable(tmp_path, PurePath("sub/a.tif"), 1, RAW_SHA) is not None) == whole
    assert save(tmp_path).adopted == whole
    assert listing(tmp_path) == {"sub/a.tif", "sub/a.tif.json", "sub/a.tif.png"}
    np.testing.assert_array_equal(formats.read(tmp_path / "sub/a.tif", 1 << 20).pixels, denoised())


@pytest.mark.parametrize("kind", ["tiff", "mrc"])
def test_finished_work_is_adopted_only_if_raw_and_image_match(tmp_path: Path, kind: formats.FileKind) -> None:
    first = save(tmp_path, kind=kind)
    time = first.image.stat().st_mtime_ns
    found = writing.find_adoptable(tmp_path, PurePath("sub/a.tif"), 1, RAW_SHA)
    assert found is not None and found.adopted and found.image == first.image and found.sha256 == first.sha256
    assert save(tmp_path, kind=kind).adopted and first.image.stat().st_mtime_ns == time
    assert writing.find_adoptable(tmp_path, PurePath("sub/a.tif"), 1, "cd" * 32) is None
    assert writing.find_adoptable(tmp_path, PurePath("sub/a.tif"), 2, RAW_SHA) is None
    with first.image.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\x01\x02\x03\x04")
    assert writing.find_adoptable(tmp_path, PurePath("sub/a.tif"), 1, RAW_SHA) is None


def test_a_revision_gets_its_own_name_beside_the_first(tmp_path: Path) -> None:
    first = save(tmp_path)
    before = first.image.read_bytes()
    second = save(tmp_path, revision=2, sha256="cd" * 32)
    assert second.image.name == "a.r2.tif" and first.image.read_bytes() == before


@pytest.mark.parametrize("name", ["a.tif", "a.tif.json", "a.tif.png"])
@pytest.mark.parametrize("content", [b"mine", b"{}", b"[1]", b"\x89PNG\r\n\x1a\n"])
def test_foreign_files_are_never_replaced(tmp_path: Path, name: str, content: bytes) -> None:
    foreign = tmp_path / "sub" / name
    foreign.parent.mkdir()
    foreign.write_bytes(content)
    with pytest.raises(MicrographError, match="already in the output folder"):
        save(tmp_path)
    assert foreign.read_bytes() == content and listing(tmp_path) == {f"sub/{name}"}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["a.tif", "a.tif.json", "a.tif.png"])
def test_a_pipe_in_a_results_place_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(MicrographError, match="already in the output folder"):
        save(tmp_path, "a.tif")
    assert listing(tmp_path) == {name}


def test_a_foreign_picture_is_distinguished_from_ours(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    Picture.new("L", (8, 8)).save(tmp_path / "sub/a.tif.png")
    with pytest.raises(MicrographError, match="already in the output folder"):
        save(tmp_path)


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def intrude(self: Path, target: Path) -> Path:
        (tmp_path / "sub/a.tif").write_bytes(b"mine")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", intrude)
    with pytest.raises(MicrographError, match="appeared in the output folder"):
        save(tmp_path)
    assert (tmp_path / "sub/a.tif").read_bytes() == b"mine"
    assert not [name for name in listing(tmp_path) if ".emdenoised-" in name]


@pytest.mark.parametrize("step", ["_refuse_foreign", "alone", "place"])
@pytest.mark.parametrize("profile", ["low", "auto"])
def test_a_result_that_another_process_finishes_meanwhile_is_adopted_or_kept_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, profile: str
) -> None:
    mine = {"extra": {"profile": {"name": "low"}}, "same_settings": True}
    theirs = {"extra": {"profile": {"name": profile}}, "same_settings": True}
    real = getattr(writing, step)

    def late(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(writing, step, real)
        save(tmp_path, **theirs)
        return real(*arguments, **named)

    monkeypatch.setattr(writing, step, late)
    if step == "place" and profile != "low":  # a disk without locks
        with pytest.raises(MicrographError, match="appeared in the output folder"):
            save(tmp_path, **mine)
        return
    written = save(tmp_path, **mine)
    assert written.adopted == (profile == "low")
    assert written.image.name == ("a.tif" if profile == "low" else "a.r2.tif")
    for image in (tmp_path / "sub").glob("*.tif"):
        record = json.loads(paths.beside(image, ".json").read_text())
        assert record["output"]["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()


def test_only_one_process_finishes_a_result_in_a_folder_at_a_time(tmp_path: Path) -> None:
    now = iter([0.0, 0.0, 1.0, output_disk.ALONE_SECONDS + 1])
    with output_disk.alone(tmp_path):
        descriptor = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with output_disk.alone(tmp_path, lambda: next(now)):  # a lock that is held for hours stops nobody
            pass
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
    assert next(now, None) is None


def test_a_disk_without_links_is_served_by_a_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    save(tmp_path)
    assert listing(tmp_path) == {"sub/a.tif", "sub/a.tif.json", "sub/a.tif.png"}


def test_a_missing_output_folder_is_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="output folder is gone"):
        save(tmp_path / "unmounted")
    assert not (tmp_path / "unmounted").exists()


def test_names_too_long_for_the_disk_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MicrographError, match="shorten"):
        save(tmp_path, "n" * 250 + ".tif")


@pytest.mark.parametrize("relative", ["../a.tif", "sub/../../a.tif", "link/a.tif", "link/deeper/a.tif"])
def test_nothing_leaves_the_output_folder(tmp_path: Path, relative: str) -> None:
    root, outside = tmp_path / "out", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "link").symlink_to(outside)
    with pytest.raises(MicrographError, match="leads out of the output folder"):
        save(root, relative)
    assert listing(outside) == set() and not (tmp_path / "a.tif").exists()


def test_a_folder_exchanged_for_a_link_while_its_result_is_written_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, outside, moved = tmp_path / "out", tmp_path / "outside", tmp_path / "out" / "moved"
    root.mkdir()
    outside.mkdir()
    write = formats.write

    def exchanged(path: Path, *arguments: Any) -> int:
        (root / "sub").rename(moved)
        (root / "sub").symlink_to(outside)
        return write(path, *arguments)

    monkeypatch.setattr(formats, "write", exchanged)
    save(root, "sub/a.tif")
    assert listing(outside) == set()
    assert listing(moved) == {"a.tif", "a.tif.json", "a.tif.png"}


def test_a_result_that_the_disk_has_changed_is_not_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = formats.write

    def damaged(path: Path, *arguments: Any) -> int:
        begin = write(path, *arguments)
        with path.open("r+b") as stream:
            stream.seek(begin)
            stream.write(b"damage")
        return begin

    with monkeypatch.context() as patch:
        patch.setattr(formats, "write", damaged)
        first = save(tmp_path)
    assert first.sha256 != hashlib.sha256(first.image.read_bytes()).hexdigest()
    again = save(tmp_path)
    assert not again.adopted and again.sha256 == hashlib.sha256(again.image.read_bytes()).hexdigest()


def test_a_link_in_the_place_of_the_image_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "out/sub").mkdir(parents=True)
    (tmp_path / "out/sub/a.tif").symlink_to(victim)
    with pytest.raises(MicrographError, match="already in the output folder"):
        save(tmp_path / "out")
    assert victim.read_bytes() == b"precious"


def test_results_of_earlier_revisions_are_recognised_without_a_ledger(tmp_path: Path) -> None:
    first, second = save(tmp_path), save(tmp_path, revision=2, sha256="cd" * 32)
    found = writing.find_adoptable(tmp_path, PurePath("sub/a.tif"), 1, "cd" * 32)
    assert found is not None and found.image == second.image
    third = save(tmp_path, sha256="ef" * 32)
    assert third.image.name == "a.r3.tif" and json.loads(third.record.read_text())["output"]["revision"] == 3
    assert save(tmp_path).image == first.image


def test_no_two_raw_files_have_results_of_one_name() -> None:
    """Whole files, sections and revisions of files that are named like one another's results."""
    more = ("", ".s0000", ".s0001", ".r2", ".s0001.s0000", ".r2.s0000", ".s0001.r2", ".r2.r2")
    endings = (".mrc", ".tif", ".dm4", ".dm4.tif", ".mrc.tif", ".dm4.mrc")
    raw = [f"a{one}{ending}" for one in more for ending in endings]
    kinds: tuple[formats.FileKind, ...] = ("tiff", "mrc")
    for kind in kinds:
        for same in (False, True):  # the file's own format, or always `kind`
            named: dict[Path, tuple[str, int, int]] = {}
            for name in raw:
                own: formats.FileKind = ("mrc" if name.endswith(".mrc") else "tiff") if same else kind
                for revision in (1, 2, 3):
                    for number in (0, 1, 2):
                        relative = paths.section_name(name, number) if number else PurePath(name)
                        image = paths.output_path(Path(), relative, revision, own, section=number > 0)
                        assert named.setdefault(image, (name, revision, number)) == (name, revision, number)


@pytest.mark.parametrize("section_first", [True, False])
def test_a_raw_file_called_like_a_section_or_revision_has_its_own_name_whichever_comes_first(
    tmp_path: Path, section_first: bool
) -> None:
    save(tmp_path)

    def section() -> writing.Written:
        return save(tmp_path, "sub/a.s0001.tif", sha256="01" * 32, section=1)

    first = section() if section_first else None
    whole = save(tmp_path, "sub/a.s0001.tif", sha256="cd" * 32)
    revision = save(tmp_path, "sub/a.r2.tif", sha256="ce" * 32)
    second = save(tmp_path, revision=2, sha256="ef" * 32)
    names = [(first or section()).image.name, whole.image.name, revision.image.name, second.image.name]
    assert names == ["a.s0001.tif", "a.s0001.s0000.tif", "a.r2.s0000.tif", "a.r2.tif"]
    found = writing.find_adoptable(tmp_path, PurePath("sub/a.s0001.tif"), 1, "01" * 32, 1)
    assert found is not None and found.image.name == "a.s0001.tif"
    found = writing.find_adoptable(tmp_path, PurePath("sub/a.s0001.tif"), 1, "cd" * 32)
    assert found is not None and found.image.name == "a.s0001.s0000.tif"


def test_with_other_settings_the_same_raw_file_is_done_again(tmp_path: Path) -> None:
    low, auto = ({"profile": {"name": name}, "config_sha256": "1", "weights": {}} for name in ("low", "auto"))
    first = save(tmp_path, extra=low, same_settings=True)
    second = save(tmp_path, extra=auto, same_settings=True)
    assert not second.adopted and second.image.name == "a.r2.tif"
    for extra, image in ((low, first.image), (auto, second.image)):
        again = save(tmp_path, extra=extra, same_settings=True)
        assert again.adopted and again.image == image
    assert save(tmp_path, extra=auto).image == first.image, "the service asks for the raw bytes only"


def test_a_fault_in_the_picture_does_not_cost_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("zero-size array")

    monkeypatch.setattr(preview, "render", fail)
    written = save(tmp_path, extra={"warnings": ["dark"]})
    assert written.preview is None and listing(tmp_path) == {"sub/a.tif", "sub/a.tif.json"}
    record = json.loads(written.record.read_text())
    assert record["output"]["preview"] is None and record["warnings"] == ["dark", *written.warnings]
    assert "no preview" in written.warnings[0] and "zero-size array" in written.warnings[0]


def test_json_is_strict_whatever_the_provenance_holds(tmp_path: Path) -> None:
    extra = {
        "numbers": {"nan": float("nan"), "array": np.arange(3), "float": np.float32(0.5), "inf": [np.inf]},
        "path": Path("/x/y"),
        "name": "µ\udcff",
    }
    record = json.loads(save(tmp_path, extra=extra).record.read_text(encoding="ascii"), parse_constant=pytest.fail)
    assert record["numbers"] == {"nan": None, "array": [0, 1, 2], "float": 0.5, "inf": [None]}
    assert record["path"] == "/x/y" and record["name"].startswith("µ")


def test_without_a_preview(tmp_path: Path) -> None:
    written = save(tmp_path, preview_pixels=None)
    assert written.preview is None and listing(tmp_path) == {"sub/a.tif", "sub/a.tif.json"}
