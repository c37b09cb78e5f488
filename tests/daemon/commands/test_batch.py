"""An archive in shards: each micrograph once, whatever stops, repeats or overlaps them."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from quick_batch import QuickBatch, ended, without_roots_rights

from daemon.commands.main import main
from daemon.counts.plane import Prepared
from daemon.errors import BackendError, ServerError
from daemon.output import writing

NAMES = ("a.tif", "b.tif", "grid 2/c.tif", "grid 2/d.mrc", "grid 2/deep/e.tif", "f.tif")


@pytest.fixture
def batch(tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> QuickBatch:
    made = QuickBatch(tmp_path, write, monkeypatch)
    made.write(*NAMES)
    return made


def test_all_are_made_once_and_a_further_run_makes_none(batch: QuickBatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.run() == 0 and batch.made() == 6 and batch.results() == set(NAMES)
    capsys.readouterr()
    assert batch.run() == 0 and batch.made() == 0
    said = capsys.readouterr().out
    assert "6 done before" in said and "a.tif" not in said


def test_results_of_denoise_count(batch: QuickBatch) -> None:
    assert main(["denoise", str(batch.source), "-o", str(batch.out), "--config", str(batch.config)]) == 0
    assert batch.made() == 6
    assert batch.run() == 0 and batch.made() == 0


def test_a_name_forges_no_line_of_the_output(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = QuickBatch(tmp_path, write, monkeypatch)
    batch.write("x\x1b]0;own\x07\n[2_2] b.tif ... good.tif")
    assert main(["denoise", str(batch.source), "-o", str(batch.out), "--config", str(batch.config)]) == 0
    assert batch.run() == 0 and batch.run("--verify") == 0
    found = capsys.readouterr()
    assert r"\x0a[2_2] b.tif ... good.tif" in found.out
    for line in (found.out + found.err).splitlines():
        assert not line.startswith("[2_2]") and not {"\x1b", "\x07"} & set(line)


def test_shards_divide_the_work(batch: QuickBatch) -> None:
    for shard, number in (("2/4", 1), ("0/4", 2), ("3/4", 1), ("1/4", 2)):
        assert batch.run("--shard", shard) == 0 and batch.made() == number
    assert batch.results() == set(NAMES)
    assert batch.run("--shard", "9/10") == 0 and batch.made() == 0, "more shards than files"


def test_the_list_is_frozen_until_it_is_removed(batch: QuickBatch) -> None:
    assert batch.run("--shard", "0/2") == 0
    batch.write("a-new-one.tif")
    assert batch.run("--shard", "1/2") == 0 and batch.results() == set(NAMES)
    (batch.out / ".emdenoised-batch/manifest.jsonl").unlink()
    batch.made()
    assert batch.run() == 0 and batch.made() == 1 and batch.results() == {*NAMES, "a-new-one.tif"}


def test_two_processes_on_one_shard_make_each_result_once(batch: QuickBatch) -> None:
    both = [batch.fork(), batch.fork()]
    assert [ended(one) for one in both] == [0, 0]
    assert batch.results() == set(NAMES) and not batch.temporaries()


def test_killed_in_the_middle_of_writing_and_started_again(
    batch: QuickBatch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die_at_the_third() -> None:
        place, calls = writing.place, [0]

        def dying(source: Path, target: Path, known_as: Path) -> None:
            calls[0] += 1
            if calls[0] == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            place(source, target, known_as)

        monkeypatch.setattr(writing, "place", dying)

    assert ended(batch.fork(first=die_at_the_third)) == -signal.SIGKILL
    assert batch.temporaries()
    assert batch.run("--status") == 75
    said = capsys.readouterr().out
    assert "done            2 of 6" in said and "begun, not ended: shard 0/1 on" in said
    assert batch.run() == 0 and batch.made() == 4
    assert batch.results() == set(NAMES) and not batch.temporaries()
    capsys.readouterr()
    assert batch.run("--status") == 0 and "begun" not in capsys.readouterr().out


def test_a_file_that_changed_is_made_again_and_a_touched_one_is_not(batch: QuickBatch) -> None:
    assert batch.run() == 0
    tifffile.imwrite(batch.source / "b.tif", np.random.default_rng(9).poisson(30, (64, 64)).astype(np.uint16))
    os.utime(batch.source / "a.tif", (1, 1))
    assert batch.run("--status") == 75
    batch.made()
    assert batch.run() == 0 and batch.made() == 1
    assert batch.results() == {*NAMES, "b.r2.tif"}


def test_other_settings_make_other_results(batch: QuickBatch) -> None:
    assert batch.run() == 0 and batch.made() == 6
    assert batch.run("--profile", "low") == 0 and batch.made() == 6
    assert batch.run("--profile", "low") == 0 and batch.made() == 0
    assert batch.run() == 0 and batch.made() == 0, "the first results still count for the first settings"
    batch.configure(spikes={"find": False})
    assert batch.run("--status") == 75 and batch.run() == 0 and batch.made() == 6


def test_verify_finds_what_size_and_time_do_not_show(batch: QuickBatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.run() == 0
    changed = batch.source / "b.tif"
    state, content = changed.stat(), bytearray(changed.read_bytes())
    content[-40] ^= 1
    changed.write_bytes(content)
    os.utime(changed, ns=(state.st_atime_ns, state.st_mtime_ns))
    damaged = bytearray((batch.out / "a.tif").read_bytes())
    damaged[-40] ^= 1
    (batch.out / "a.tif").write_bytes(damaged)
    batch.made()
    assert batch.run() == 0 and batch.made() == 0
    capsys.readouterr()
    assert batch.run("--status", "--verify") == 75 and "done            4 of 6" in capsys.readouterr().out
    assert batch.run("--verify") == 0 and batch.made() == 2
    assert batch.results() == {*NAMES, "a.r2.tif", "b.r2.tif"}
    assert batch.run("--verify") == 0 and batch.run("--status", "--verify") == 0 and batch.made() == 0


@pytest.mark.parametrize("verify", [(), ("--verify",)])
def test_stacks_are_skipped_section_by_section(batch: QuickBatch, verify: tuple[str, ...]) -> None:
    counts = np.random.default_rng(0).poisson(30, (3, 64, 64)).astype(np.uint16)
    tifffile.imwrite(batch.source / "tilt.tif", counts, photometric="minisblack")
    sections = {f"tilt.s000{number}.tif" for number in (1, 2, 3)}
    assert batch.run() == 0 and batch.made() == 9 and batch.results() == {*NAMES, *sections}
    assert batch.run(*verify) == 0 and batch.made() == 0
    (batch.out / "tilt.s0002.tif").unlink()
    assert batch.run("--status", *verify) == 75
    assert batch.run(*verify) == 0 and batch.made() == 1
    batch.configure(arrival={"frames": ["tilt*"]})
    assert batch.run(*verify) == 0 and batch.made() == 1, "the sum, now that it is a movie"
    assert batch.run(*verify) == 0 and batch.made() == 0


def test_hostile_names(batch: QuickBatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = (
        "-o.tif",
        "line\nbreak.tif",
        "'\"$(touch x)`.tif",
        "\udcff\udcfe.tif",
        "e\u0301 \u202etif.tif",
        "%A_%j/100%.tif",
    )
    batch.write(*names)
    assert batch.run("--shard", "0/2") == 0 and batch.run("--shard", "1/2") == 0
    assert batch.results() == {*NAMES, *names}
    capsys.readouterr()
    batch.made()
    assert batch.run() == 0 and batch.made() == 0 and batch.run("--status") == 0
    (batch.source / "line\nbreak.tif").write_bytes(b"II*\0 no more")
    assert batch.run() == 1
    assert "line\\nbreak.tif" in batch.failures() and batch.failures().count("\n") == 1


def test_links_are_not_followed(batch: QuickBatch, write: Callable[..., Path], tmp_path: Path) -> None:
    secret = write(tmp_path / "elsewhere/secret.tif")
    (batch.source / "link.tif").symlink_to(secret)
    (batch.source / "folder").symlink_to(secret.parent)
    assert batch.run("--shard", "0/2") == 0 and batch.run("--shard", "1/2") == 0 and batch.results() == set(NAMES)
    (batch.source / "a.tif").unlink()
    (batch.source / "a.tif").symlink_to(secret)
    deep = batch.source / "grid 2/deep"
    (deep / "e.tif").unlink()
    deep.rmdir()
    write(secret.with_name("e.tif"), 77)
    deep.symlink_to(secret.parent)
    assert batch.run() == 1 and batch.results() == set(NAMES)
    assert batch.failures().count("is a symbolic link or lies behind one") == 2


def test_a_source_that_is_a_link_and_results_inside_it(batch: QuickBatch) -> None:
    real = batch.source.rename(batch.root / "real")
    batch.source.symlink_to(real)
    batch.out = batch.source / "denoised"
    assert batch.run() == 0 and batch.results() == set(NAMES)
    (batch.out / ".emdenoised-batch/manifest.jsonl").unlink()
    batch.made()
    assert batch.run() == 0 and batch.made() == 0, "results are no micrographs"


def test_unreadable_files_and_folders_fail_and_the_others_are_made(batch: QuickBatch) -> None:
    (batch.source / "b.tif").chmod(0)
    (batch.source / "grid 2").chmod(0)
    assert ended(batch.fork(first=without_roots_rights)) == 1
    assert batch.results() == {"a.tif", "f.tif"}
    assert ended(batch.fork("--status", first=without_roots_rights)) == 1
    (batch.source / "grid 2").chmod(0o755)
    assert batch.failures().count("\n") == 2 and "Permission denied" in batch.failures()
    assert '"path": "grid 2", "cause": "may not be read"' in batch.failures()


def at(number: int, what: Callable[[], object]) -> Callable[[Prepared], None]:
    """A hook of the backend: `what` at its micrograph `number`."""
    seen = [0]

    def hook(_: Prepared) -> None:
        seen[0] += 1
        if seen[0] == number:
            what()

    return hook


def test_a_share_that_goes_away_is_75_and_costs_nothing(batch: QuickBatch, tmp_path: Path) -> None:
    away = tmp_path / "away"
    batch.backend.hook = at(3, lambda: batch.source.rename(away))
    assert batch.run() == 75 and not batch.failures() and len(batch.results()) == 3
    assert batch.run() == 75 and batch.run("--status") == 75
    batch.source.mkdir()
    assert batch.run() == 75, "an empty folder is a mount point without its share"
    batch.source.rmdir()
    away.rename(batch.source)
    assert batch.run() == 0 and batch.results() == set(NAMES)


def test_results_that_go_away_are_75_and_are_not_made_elsewhere(batch: QuickBatch, tmp_path: Path) -> None:
    batch.backend.hook = at(3, lambda: batch.out.rename(tmp_path / "away"))
    assert batch.run() == 75 and not batch.out.exists()
    batch.out = tmp_path / "no" / "out"
    assert batch.run() == 75 and not batch.out.parent.exists()


def test_a_full_disk_is_75(batch: QuickBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(writing, "flush", full)
        assert batch.run() == 75 and not batch.failures() and not batch.temporaries()
    assert batch.run() == 0 and batch.results() == set(NAMES)


def test_sigterm_ends_between_two_tiles_with_75(batch: QuickBatch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.backend.hook = at(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert batch.run() == 75 and len(batch.results()) == 1 and not batch.failures() and not batch.temporaries()
    assert signal.getsignal(signal.SIGTERM) == before
    said = capsys.readouterr().out
    assert said.count("... interrupted\n") == 1 and "failed" not in said
    assert batch.run() == 0 and batch.results() == set(NAMES)


def test_a_network_that_fails_at_one_micrograph_goes_on_with_the_next(batch: QuickBatch) -> None:
    def fail() -> None:
        raise BackendError("the card has had enough")

    batch.backend.hook = at(2, fail)
    assert batch.run() == 1 and len(batch.results()) == 5
    assert batch.failures().count("enough") == 1
    assert batch.run() == 0 and batch.results() == set(NAMES)
    batch.configure(spikes={"find": False})
    batch.backend.hook = lambda _: fail()
    batch.made()
    assert batch.run() == 75 and batch.made() == 3


def test_a_server_that_is_away_is_75_and_no_files_fault(batch: QuickBatch) -> None:
    def away() -> None:
        raise ServerError("the server does not answer")

    batch.backend.hook = at(2, away)
    assert batch.run() == 75 and len(batch.results()) == 1 and not batch.failures()
    assert batch.run() == 0 and batch.results() == set(NAMES)


def test_a_bad_file_is_1_and_is_tried_again(batch: QuickBatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (batch.source / "a.tif").read_bytes()
    (batch.source / "a.tif").write_bytes(whole[:200])
    assert batch.run() == 1 and batch.run("--status") == 1
    assert "failed          1" in capsys.readouterr().out
    (batch.source / "a.tif").write_bytes(whole)
    assert batch.run("--status") == 75, "it has changed since it failed"
    assert batch.run() == 0 and batch.run("--status") == 0


def test_what_cannot_be_asked_for(batch: QuickBatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for options in (["--tasks", "3"], ["--slurm", "--shard", "0/2"], ["--slurm", "--tasks", "-1"], ["--profile", "x"]):
        assert batch.run(*options) == 2
    assert batch.run("--status") == 2, "nothing was begun"
    assert batch.run("--manifest", "0" * 64) == 75 and not batch.out.exists()
    assert batch.run() == 0
    assert batch.run("--manifest", "0" * 64) == 2
    batch.source = tmp_path / "elsewhere"
    batch.write("a.tif")
    assert batch.run() == 2 and "has results of" in capsys.readouterr().err
    batch.source = tmp_path
    assert batch.run() == 2
    batch.source, batch.out = tmp_path / "elsewhere", tmp_path
    assert batch.run() == 2 and "among which results could land" in capsys.readouterr().err
    batch.source = batch.source / "a.tif"
    assert batch.run() == 2
    for wrong in ("3/3", "1", "a/b", "-1/3", "0/0", "1/3/4"):
        with pytest.raises(SystemExit) as end:
            batch.run(f"--shard={wrong}")
        assert end.value.code == 2


def test_a_damaged_list_is_refused(batch: QuickBatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.run() == 0
    file = batch.out / ".emdenoised-batch/manifest.jsonl"
    content = file.read_bytes()
    for damaged in (content[:-30], content.replace(b"b.tif", b"x.tif"), b"", b"[]\n"):
        file.write_bytes(damaged)
        assert batch.run() == 78 and "is damaged or of another version; remove it" in capsys.readouterr().err


def test_a_file_that_kills_its_process_is_tried_last(batch: QuickBatch, capsys: pytest.CaptureFixture[str]) -> None:
    def too_large(one: Prepared) -> None:
        if one.pixels.shape == (96, 96):
            os.kill(os.getpid(), signal.SIGKILL)

    counts = np.random.default_rng(0).poisson(30, (96, 96)).astype(np.uint16)
    tifffile.imwrite(batch.source / "b.tif", counts)
    batch.backend.hook = too_large
    assert ended(batch.fork()) == -signal.SIGKILL and batch.results() == {"a.tif"}
    assert batch.run("--status") == 75 and ", at b.tif" in capsys.readouterr().out
    assert ended(batch.fork()) == -signal.SIGKILL and batch.results() == set(NAMES) - {"b.tif"}
    batch.backend.hook = lambda _: None
    assert batch.run() == 0 and batch.results() == set(NAMES)


def test_a_defect_of_the_program_costs_one_micrograph(batch: QuickBatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a defect")

    batch.backend.hook = at(2, fail)
    assert batch.run() == 1 and len(batch.results()) == 5
    assert "internal error, please report it" in batch.failures()


def test_nothing_is_loaded_where_nothing_is_to_do(batch: QuickBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert batch.run() == 0

    def refuse(*_: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("daemon.backends.open_backend", refuse)
    assert batch.run() == 0
