"""The gallery: what may be shown, how much memory it holds, and how it answers when it is busy."""

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from finished import Clock, Finished, counts
from gallery_pictures import MIB, SHAPE, make, seen

from daemon.formats.decoder import Reader
from daemon.live_page.gallery import AT_ONCE, HELD_SECONDS, BusyError, Gallery, NotThereError
from daemon.output.record import own_record


def test_memory_is_bounded_and_released_after_a_while(finished: Finished, clock: Clock) -> None:
    clock.step = 0.0
    jobs = [finished.add(f"{number}.tif", counts(number, (512, 1024))) for number in range(4)]  # raw 1 MiB each
    gallery = make(finished, clock, memory=2 * MIB)
    for job in jobs:
        for plane in ("raw", "denoised"):
            gallery.tile(gallery.find(job), plane, 0, 0, 0)  # type: ignore[arg-type]
            assert 0 < gallery.held <= 2 * MIB
    clock.now += HELD_SECONDS - 1
    gallery.tidy()
    assert gallery.held > 0
    clock.now += 2
    gallery.tidy()
    assert gallery.held == 0
    gallery.close()


def test_an_image_larger_than_the_memory_is_still_shown(finished: Finished, clock: Clock) -> None:
    job = finished.add("a.tif", counts(1, (600, 700)))
    tight, roomy = make(finished, clock, memory=1000, disk=0), make(finished, clock, disk=0)
    for plane in ("raw", "residual"):
        assert tight.tile(tight.find(job), plane, 0, 1, 1) == roomy.tile(roomy.find(job), plane, 0, 1, 1)  # type: ignore[arg-type]
    assert tight.held == 0
    tight.close()
    roomy.close()


def test_small_pictures_are_made_once_also_across_restarts(
    finished: Finished, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finished.add("a.tif", counts(1, SHAPE))
    first = make(finished, clock)

    def look(gallery: Gallery) -> list[bytes]:
        result = gallery.find(job)
        overviews = [gallery.tile(result, plane, 2, 0, 0) for plane in ("raw", "denoised", "residual")]  # type: ignore[arg-type]
        return [*overviews, gallery.thumbnail(result), *(gallery.spectrum(result, one) for one in ("raw", "denoised"))]  # type: ignore[arg-type]

    made = look(first)
    assert max(seen(made[3]).shape) <= 192
    first.close()

    def unread(*_: object) -> None:
        raise AssertionError("it was made once")

    monkeypatch.setattr(Reader, "read", unread)
    second = make(finished, clock)
    assert look(second) == made
    second.close()
    folder = finished.config.folders.state / "page"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_request_that_would_wait_too_long_gets_busy(finished: Finished, gallery: Gallery) -> None:
    result = gallery.find(finished.add("a.tif", counts(1)))
    go, begun = threading.Event(), threading.Semaphore(0)

    def slow() -> None:
        begun.release()
        go.wait(60)

    with ThreadPoolExecutor(AT_ONCE) as people:
        waiting = [people.submit(gallery.quietly, slow) for _ in range(AT_ONCE)]
        for _ in waiting:
            assert begun.acquire(timeout=60)
        for ask in (lambda: gallery.tile(result, "raw", 0, 0, 0), lambda: gallery.profile(result, (0, 0), (1, 1), 1)):
            with pytest.raises(BusyError):
                ask()
        go.set()
        for one in waiting:
            one.result(60)
    assert gallery.tile(result, "raw", 0, 0, 0)


def test_pictures_are_made_at_a_lower_priority(gallery: Gallery) -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    here = priority()
    assert gallery.quietly(priority) == min(19, here + 5)
    assert priority() == here


def test_a_raw_file_that_is_gone_or_changed_leaves_the_denoised_image_alone(
    finished: Finished, gallery: Gallery
) -> None:
    job = finished.add("a.tif", counts(1))
    path = finished.config.folders.drop / "a.tif"
    whole = gallery.tile(gallery.find(job), "denoised", 0, 0, 0)
    os.utime(path, ns=(1, 1))
    changed = gallery.find(job)
    assert "has changed since" in changed.raw_gone
    path.unlink()
    gone = gallery.find(job)
    assert "no longer exists" in gone.raw_gone
    for result in (changed, gone):
        assert gallery.tile(result, "denoised", 0, 0, 0) == whole
        assert list(gallery.profile(result, (0, 0), (0, 9), 1)) == ["denoised"]
        assert seen(gallery.spectrum(result, "denoised")).shape == (64, 64)
        for plane in ("raw", "residual"):
            with pytest.raises(NotThereError, match="raw file"):
                gallery.tile(result, plane, 0, 0, 0)  # type: ignore[arg-type]


def test_a_raw_file_that_cannot_be_read_any_more_is_a_clear_answer(finished: Finished, gallery: Gallery) -> None:
    job = finished.add("a.tif", counts(1))
    path = finished.config.folders.drop / "a.tif"
    state = path.stat()
    path.write_bytes(b"II*\0" + b"\xff" * (state.st_size - 4))
    os.utime(path, ns=(state.st_mtime_ns, state.st_mtime_ns))
    result = gallery.find(job)
    with pytest.raises(NotThereError, match=r"a\.tif"):
        gallery.tile(result, "raw", 0, 0, 0)
    assert seen(gallery.spectrum(result, "denoised")).max() == 255


def test_only_results_of_ours_in_the_output_folder_are_shown(finished: Finished, gallery: Gallery) -> None:
    job = finished.add("a.tif", counts(1))
    output = finished.config.folders.output
    image = output / "a.tif"
    elsewhere = output.parent / "elsewhere"
    elsewhere.mkdir()
    for file in (image, image.with_name("a.tif.json")):
        (elsewhere / file.name).write_bytes(file.read_bytes())
    (output / "link.tif").symlink_to(image)
    (output / "link.tif.json").write_bytes((output / "a.tif.json").read_bytes())
    (output / "away").symlink_to(elsewhere)
    (output / "stranger.tif").write_bytes(image.read_bytes())
    (output / "pipe.tif").mkdir()
    for path, why in (
        (elsewhere / "a.tif", "outside"),
        (output / "away" / "a.tif", "outside"),
        (output / ".." / "elsewhere" / "a.tif", "outside"),
        (output / "link.tif", "is not a plain file"),
        (output / "pipe.tif", "is not a plain file"),
        (output / "stranger.tif", "no record"),
        (output / "lost.tif", "moved or deleted"),
        (Path("/etc/passwd"), "outside"),
    ):
        with pytest.raises(NotThereError, match=why):
            gallery.find(finished.replace_output(job, path))


def test_a_damaged_record_is_a_clear_answer(finished: Finished, gallery: Gallery) -> None:
    job = finished.add("a.tif", counts(1))
    record = finished.config.folders.output / "a.tif.json"
    text = record.read_text()
    record.write_text("{")
    with pytest.raises(NotThereError, match="no record"):
        gallery.find(job)
    record.write_text(text.replace('"shape": [', '"shape": ["x",'))
    with pytest.raises(NotThereError, match="is damaged"):
        gallery.find(job)


def test_a_micrograph_without_a_result_gives_the_reason(finished: Finished, gallery: Gallery) -> None:
    with pytest.raises(NotThereError, match="it is a picture of a cat"):
        gallery.find(finished.quarantine("cat.tif", "it is a picture of a cat"))
    assert own_record(finished.config.folders.output / "cat.tif") is None
