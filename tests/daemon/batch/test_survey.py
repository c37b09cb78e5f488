"""Counts and estimates, and what a crash leaves in the list of failures."""

import json
import os
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from daemon.batch import manifest as manifests
from daemon.batch.manifest import BatchManifest, Entry
from daemon.batch.shard import Shard
from daemon.batch.shard_log import ShardLog, failures, marks
from daemon.batch.survey import survey
from daemon.output.record import Record
from daemon.settings.config import Arrival

NOW = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)


class Finished:
    """Stands in for `Existing`: files by name, with the time at which their results were finished."""

    def __init__(self, at: dict[str, datetime | str]) -> None:
        self._at = at

    def of(self, path: Path, relative: str) -> tuple[Record, ...]:
        if (when := self._at.get(relative)) is None:
            return ()
        text = when if isinstance(when, str) else when.isoformat(timespec="seconds")
        return (Record(finished=text, seconds={"read": 1.0, "network": 5.0}),)


@pytest.fixture
def frozen(tmp_path: Path) -> BatchManifest:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for number in range(8):
        (tmp_path / f"in/{number}.tif").write_bytes(bytes(1000))
    return replace(manifests.freeze(tmp_path / "in", tmp_path / "out", Arrival()), made=NOW - timedelta(hours=9))


def count(
    frozen: BatchManifest, at: dict[str, Any], shard: Shard | None = None, failed: dict[str, Any] | None = None
) -> Any:
    existing: Any = Finished(at)
    return survey(frozen, shard or Shard(), frozen.source, existing, failed or {}, NOW)


def test_time_left_by_what_was_finished_lately(frozen: BatchManifest) -> None:
    lately, long_ago = NOW - timedelta(minutes=5), NOW - timedelta(hours=5)
    counts = count(frozen, {"0.tif": lately, "1.tif": lately, "2.tif": long_ago, "3.tif": "yesterday"})
    assert (counts.done, counts.to_do, counts.bytes_to_do, counts.recent) == (4, 4, 4000, 2)
    assert counts.left == timedelta(minutes=30) and counts.seconds == 6.0
    assert count(frozen, {"2.tif": long_ago}).left is None


def test_a_young_batch_is_estimated_from_its_beginning(frozen: BatchManifest) -> None:
    young = replace(frozen, made=NOW - timedelta(minutes=2))
    assert count(young, {"0.tif": NOW, "1.tif": NOW}).left == timedelta(minutes=6)
    assert count(replace(frozen, made=NOW + timedelta(hours=1)), {"0.tif": NOW}).left == timedelta(seconds=7)


def test_one_shard(frozen: BatchManifest) -> None:
    assert (count(frozen, {}, Shard(0, 3)).to_do, count(frozen, {}, Shard(2, 3)).to_do) == (3, 2)


def test_failures_count_until_the_file_changes_and_cut_lines_are_left_out(
    frozen: BatchManifest, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    state = (frozen.source / "1.tif").stat()
    entry = Entry("1.tif", state.st_size, state.st_mtime_ns)
    for shard in (Shard(1, 2), Shard(0, 1)):
        log = ShardLog(out, shard, frozen.sha256)
        log.failed(entry, f"of {shard}", ValueError("x"))
        with log.failures.open("ab") as stream:
            stream.write(b'{"path": "2.tif", "cau\n[]\n{"path": 3}\n\xff\n')
    found = failures(out)
    assert set(found) == {"1.tif"} and found["1.tif"].error == "ValueError"
    assert count(frozen, {}, failed=found).failed == 1
    (frozen.source / "1.tif").write_bytes(bytes(2000))
    counts = count(frozen, {}, failed=found)
    assert (counts.failed, counts.to_do) == (0, 8)


def test_a_million_entries_are_read_line_by_line(frozen: BatchManifest) -> None:
    entries = frozen.of(Shard(3, 8))
    assert next(entries).path == "3.tif" and next(entries, None) is None
    assert sum(Shard(number, 7).share(1_000_000) for number in range(7)) == 1_000_000
    assert [index for index in range(9) if Shard(1, 4).has(index)] == [1, 5]


@pytest.mark.parametrize("job", ["7_3", None])
def test_a_job_that_was_queued_again_removes_what_it_left_on_another_node(
    frozen: BatchManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str | None
) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    left, others = out / ".emdenoised-node5-123-aa.tmp", out / ".emdenoised-node5-124-bb.tmp"
    for path in (left, others):
        path.touch()
    mark = out / ".emdenoised-batch/running-3-of-8.json"
    mark.write_text(json.dumps({"job": job, "temporary": ".emdenoised-node5-123-", "at": "5.tif", "host": "node5"}))
    log = ShardLog(out, Shard(3, 8), frozen.sha256)
    with log.running():
        assert log.suspect == "5.tif"
        assert left.exists() == (job is None) and others.exists()
        assert marks(out)[0].startswith(f"3/8 on {os.uname().nodename}, job 7_3, since")
    assert not mark.exists()
    mark.write_text('{"at": 3, "cut')
    with log.running():
        assert log.suspect is None
