"""The tracker: when a file counts as finished. Time is a number here; nothing sleeps and no file exists."""

import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.arrival import rules
from daemon.arrival.tracker import Arrived, Sighting, Tracker
from daemon.errors import MicrographError, TransientError
from daemon.formats import Completeness
from daemon.settings.config import Arrival


@dataclass
class Probe:
    """What the formats would say; an exception is raised instead."""

    answers: dict[str, Completeness | Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __call__(self, path: str) -> Completeness:
        self.asked.append(path)
        answer = self.answers.get(path, Completeness("complete"))
        if isinstance(answer, Exception):
            raise answer
        return answer


RULES = Arrival(settle_seconds=1.0, suspicious_tail_seconds=30.0)


def seen(path: str = "a.tif", size: int = 100, mtime_ns: int = 1, inode: int = 7) -> Sighting:
    return Sighting(path, size, mtime_ns, inode)


def look(tracker: Tracker, now: float, *sightings: Sighting) -> list[Arrived]:
    tracker.observe(sightings, now)
    return tracker.ready(now)


def started(arrival: Arrival = RULES, probe: Probe | None = None, **known: object) -> tuple[Tracker, Probe]:
    """A tracker that has already seen an empty folder, so that what comes is live."""
    probe = probe or Probe()
    tracker = Tracker(arrival, probe, **known)  # type: ignore[arg-type]
    tracker.observe([], 0.0)
    return tracker, probe


def paths(arrived: list[Arrived]) -> list[str]:
    return [one.sighting.path for one in arrived]


def test_a_file_is_ready_once_it_has_settled_and_never_again() -> None:
    tracker, probe = started()
    assert look(tracker, 10.0, seen()) == []
    assert tracker.next_due() == 11.0
    assert look(tracker, 10.9, seen()) == []
    assert probe.asked == []
    assert look(tracker, 11.0, seen()) == [Arrived(seen(), live=True)]
    assert tracker.next_due() is None
    for later in range(12, 40):
        assert look(tracker, float(later), seen()) == []
    assert probe.asked == ["a.tif"]
    assert tracker.unfinished == 0


@pytest.mark.parametrize("change", [{"size": 101}, {"mtime_ns": 2}, {"inode": 8}])
def test_any_change_starts_the_wait_anew(change: dict[str, int]) -> None:
    tracker, _ = started()
    changed = seen(**change)  # type: ignore[arg-type]
    assert look(tracker, 10.0, seen()) == []
    assert look(tracker, 10.9, changed) == []
    assert look(tracker, 11.5, changed) == []
    assert look(tracker, 11.9, changed) == [Arrived(changed, live=True)]


@pytest.mark.parametrize("mtime_ns", [-3600 * 10**9, 10**20, 0])
def test_a_wrong_clock_on_the_camera_does_not_matter(mtime_ns: int) -> None:
    tracker, _ = started()
    look(tracker, 10.0, seen(mtime_ns=mtime_ns))
    assert len(look(tracker, 11.0, seen(mtime_ns=mtime_ns))) == 1


def test_a_changed_file_is_handed_over_as_something_new() -> None:
    tracker, _ = started()
    look(tracker, 0.0, seen())
    assert len(look(tracker, 1.0, seen())) == 1
    assert look(tracker, 2.0, seen(mtime_ns=2)) == []
    assert look(tracker, 3.0, seen(mtime_ns=2)) == [Arrived(seen(mtime_ns=2), live=True)]


def test_a_writer_that_opens_and_closes_several_times_is_read_once() -> None:
    tracker, _ = started()
    arrived = []
    for step in range(40):
        now = 10 + step / 4
        arrived += look(tracker, now, seen(size=min(step, 20), mtime_ns=min(step, 20)))
    assert [one.sighting.size for one in arrived] == [20]


def test_an_unfinished_file_waits_with_growing_pauses_and_is_ready_when_it_grows() -> None:
    tracker, probe = started()
    probe.answers["a.tif"] = Completeness("incomplete", reason="412 of 819 rows are there")
    for tenth in range(300):
        assert look(tracker, tenth / 10, seen()) == []
    assert 3 <= len(probe.asked) <= 7
    assert [(one.path, one.reason) for one in tracker.take_news()] == [("a.tif", "412 of 819 rows are there")]
    assert tracker.take_news() == []
    assert [one.path for one in tracker.held(30.0)] == ["a.tif"]
    probe.answers["a.tif"] = Completeness("complete")
    assert look(tracker, 30.0, seen(size=200)) == []
    assert len(look(tracker, 31.0, seen(size=200))) == 1
    assert tracker.held(31.0) == []


@pytest.mark.parametrize("proven", [False, True])
def test_an_unfinished_file_that_never_changes_is_handed_over_with_the_reason(proven: bool) -> None:
    tracker, probe = started()
    probe.answers["a.tif"] = Completeness("incomplete", proven, "the header asks for more")
    arrived = []
    for second in range(100):
        arrived += [(second, one) for one in look(tracker, float(second), seen())]
    [(second, one)] = arrived
    assert 60 <= second <= 62
    text = one.truncated if proven else one.warning
    assert text is not None and text.startswith("the header asks for more; it has not changed for 6")
    assert (one.warning is None) == proven
    probe.answers["a.tif"] = Completeness("complete")
    look(tracker, 100.0, seen(size=200))
    assert look(tracker, 101.0, seen(size=200)) == [Arrived(seen(size=200), live=True)]


@pytest.mark.parametrize("proven", [False, True])
def test_a_tail_of_zeros_is_held_longer(proven: bool) -> None:
    tracker, probe = started()
    probe.answers["a.tif"] = Completeness("suspicious", proven, "the last 819 rows are zero")
    arrived = []
    for second in range(60):
        arrived += [(second, one) for one in look(tracker, float(second), seen())]
    [(second, one)] = arrived
    assert 31 <= second <= 32
    assert (one.truncated is not None) == proven
    assert (one.warning is not None) == (not proven)


def test_a_preallocated_copy_that_fills_up_unseen_from_outside_is_read_when_full() -> None:
    """Size and time reported by a server stay the same while the zeros are being filled."""
    tracker, probe = started()
    arrived = []
    for second in range(200):
        rows = 2000 - 20 * second
        zeros = Completeness("suspicious", reason=f"the last {rows} rows are zero")
        probe.answers["a.tif"] = zeros if rows > 0 else Completeness("complete")
        arrived += [(second, one) for one in look(tracker, float(second), seen())]
    [(second, one)] = arrived
    assert second >= 100 and one.warning is None
    assert len(tracker.take_news()) == 1, "one remark, not one for each piece"


def test_a_locked_file_is_tried_again_and_a_vanished_one_forgotten() -> None:
    tracker, probe = started()
    probe.answers["a.tif"] = PermissionError(13, "Permission denied")
    probe.answers["b.tif"] = TransientError("b.tif is locked")
    probe.answers["c.tif"] = FileNotFoundError(2, "No such file")
    three = [seen("a.tif"), seen("b.tif"), seen("c.tif")]
    look(tracker, 0.0, *three)
    assert look(tracker, 1.0, *three) == []
    assert {one.path for one in tracker.take_news()} == {"a.tif", "b.tif"}
    probe.answers.clear()
    assert sorted(paths(look(tracker, 3.0, *three))) == ["a.tif", "b.tif", "c.tif"]


def test_a_file_that_can_never_be_read_goes_on_at_once() -> None:
    tracker, probe = started()
    probe.answers["a.tif"] = MicrographError("a.tif is not an image")
    look(tracker, 0.0, seen())
    assert look(tracker, 1.0, seen()) == [Arrived(seen(), live=True, warning="a.tif is not an image")]


def test_files_of_before_the_start_go_the_same_way_but_into_the_backlog() -> None:
    probe = Probe()
    tracker = Tracker(RULES, probe)
    old, growing = seen("old.tif"), seen("growing.tif")
    assert look(tracker, 5.0, old, growing) == []
    assert look(tracker, 6.0, old, replace(growing, size=500)) == [Arrived(old, live=False)]
    assert look(tracker, 7.0, old, replace(growing, size=500)) == [Arrived(replace(growing, size=500), live=True)]


def test_what_the_ledger_knows_is_not_opened() -> None:
    finished = {("a.tif", 100)}
    tracker, probe = started(known=lambda one: (one.path, one.size) in finished)
    look(tracker, 0.0, seen(), seen("b.tif"))
    assert paths(look(tracker, 1.0, seen(), seen("b.tif"))) == ["b.tif"]
    assert probe.asked == ["b.tif"]
    look(tracker, 2.0, seen(size=200), seen("b.tif"))
    assert paths(look(tracker, 3.0, seen(size=200), seen("b.tif"))) == ["a.tif"]


def test_a_ledger_that_cannot_be_asked_only_delays() -> None:
    answers = iter([TransientError("the disk is full"), None])

    def known(sighting: Sighting) -> bool:
        if (answer := next(answers)) is not None:
            raise answer
        return False

    tracker, _ = started(known=known)
    look(tracker, 0.0, seen())
    assert look(tracker, 1.0, seen()) == []
    assert len(look(tracker, 2.0, seen())) == 1


def test_a_file_that_is_gone_is_forgotten() -> None:
    tracker, _ = started()
    look(tracker, 0.0, seen())
    assert look(tracker, 1.0) == []
    assert tracker.next_due() is None and tracker.unfinished == 0
    assert look(tracker, 2.0, seen()) == [], "back again: it settles from the beginning"
    assert len(look(tracker, 3.0, seen())) == 1


def test_a_file_replaced_while_it_waits_to_be_looked_at_is_not_handed_over_early() -> None:
    tracker, probe = started()
    tracker.observe([seen()], 0.0)
    tracker.observe([seen()], 1.0)
    tracker.observe([seen(size=200)], 1.1)
    assert tracker.ready(1.1) == []
    assert probe.asked == []
    assert look(tracker, 2.1, seen(size=200)) == [Arrived(seen(size=200), live=True)]
    assert tracker.ready(2.1) == []


def test_an_outage_of_the_folder_does_not_count_as_settling() -> None:
    tracker, _ = started()
    tracker.observe([seen()], 10.0)
    tracker.observe([seen()], 300.0, interrupted=True)
    assert tracker.ready(300.0) == []
    assert len(look(tracker, 301.0, seen())) == 1


def test_a_slow_scan_does_not_shorten_the_wait() -> None:
    tracker, _ = started()
    tracker.observe([seen()], 10.0, began=5.0)
    tracker.observe([seen()], 15.9, began=10.9)
    assert tracker.ready(15.9) == []
    tracker.observe([seen()], 16.0, began=11.0)
    assert len(tracker.ready(16.0)) == 1


@pytest.mark.parametrize(
    ("kind", "path", "sidecar"),
    [
        ("epu", "Grid/FoilHole_1_Data.tiff", "Grid/FoilHole_1_Data.xml"),
        ("epu", "Grid/FoilHole_1_Data_Fractions.tiff", "Grid/FoilHole_1_Data.xml"),
        ("epu", "a.mrc", "a.dm5"),
        ("serialem", "a.tif", "a.tif.mdoc"),
        ("serialem", "a.tif", "A.tif.MDOC"),
    ],
)
def test_a_required_sidecar_is_waited_for(kind: str, path: str, sidecar: str) -> None:
    tracker, _ = started(RULES.model_copy(update={"require_sidecar": kind}))  # type: ignore[arg-type]
    image, other = seen(path), seen("other.xml")
    look(tracker, 0.0, image, other)
    assert look(tracker, 5.0, image, other, replace(seen(sidecar), size=0)) == []
    assert "has not arrived yet" in tracker.take_news()[0].reason
    assert tracker.next_due() is None and tracker.unfinished == 0
    assert len(tracker.held(5.0)) == 1
    assert paths(look(tracker, 6.0, image, other, seen(sidecar))) == [path]
    assert tracker.held(6.0) == []


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("a.tif", True),
        ("Sub/Folder/A.TIFF", True),
        ("a.mrc", True),
        ("a.xml", False),
        ("a.tif.part", False),
        (".a.tif", False),
        ("Sub/~a.tif", False),
        ("a.TMP.tif", False),
        ("Atlas/a.tif", False),
        ("sub/Atlas/a.tif", True),
        ("name with\nnewline and \udcff.tif", True),
    ],
)
def test_which_names_are_micrographs(path: str, wanted: bool) -> None:
    arrival = Arrival(ignore=(*Arrival().ignore, "*.tmp.tif", "atlas/*"))
    assert rules.wants(arrival, path) is wanted
    tracker, _ = started(arrival)
    look(tracker, 0.0, seen(path))
    assert bool(look(tracker, 1.0, seen(path))) is wanted


def test_what_the_caller_could_not_keep_comes_again() -> None:
    tracker, _ = started()
    look(tracker, 0.0, seen())
    assert len(look(tracker, 1.0, seen())) == 1
    tracker.offer_again("a.tif", 1.0)
    assert tracker.next_due() == 2.0
    assert len(look(tracker, 2.0, seen())) == 1
    tracker.offer_again("gone.tif", 2.0)
    assert look(tracker, 4.0, seen()) == []


def test_a_flood_is_backlog_in_the_order_it_was_written_and_does_not_delay_a_live_file() -> None:
    tracker, probe = started()
    flood = [seen(f"{number:05d}.tif", mtime_ns=number) for number in range(10_000)]
    random.Random(1).shuffle(flood)
    live = seen("live.tif", mtime_ns=10**9)
    begin = time.perf_counter()
    tracker.observe(flood, 0.0)
    tracker.observe(flood, 1.0)
    first = tracker.ready(1.0)
    assert paths(first) == [f"{number:05d}.tif" for number in range(256)]
    assert tracker.next_due() == 1.0, "more files wait for their probe"
    arrived = list(first)
    tracker.observe([*flood, live], 21.0)
    tracker.observe([*flood, live], 22.0)
    batch = tracker.ready(22.0)
    assert batch[0] == Arrived(live, live=True)
    while batch:
        arrived += batch
        batch = tracker.ready(22.0)
    assert Counter(paths(arrived)) == Counter(one.path for one in [*flood, live])
    assert not any(one.live for one in arrived if one.sighting != live)
    for second in range(30, 40):
        assert look(tracker, float(second), *flood, live) == []
    # Fifteen passes over ten thousand files: a generous bound that anything quadratic would break by far.
    assert time.perf_counter() - begin < 10
    assert len(probe.asked) == 10_001


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[float, dict[str, Sighting]]]:
    """Scans at growing times of a folder in which three files come, change and go."""
    now, folder, scans = 0.0, {}, []
    for step in range(draw(st.integers(1, 40))):
        now += draw(st.sampled_from([0.1, 0.4, 0.9, 1.0, 1.3, 5.0]))
        for path in ("a.tif", "b.tif", "c.tif"):
            match draw(st.sampled_from(["keep", "keep", "keep", "change", "go"])):
                case "change":
                    folder[path] = seen(path, mtime_ns=step)
                case "go":
                    folder.pop(path, None)
        scans.append((now, dict(folder)))
    return scans


@given(histories(), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_whatever_happens_each_version_is_handed_over_once_and_only_after_it_settled(
    history: list[tuple[float, dict[str, Sighting]]], limit: int
) -> None:
    tracker = Tracker(RULES, Probe())
    first_seen: dict[str, tuple[Sighting, float]] = {}
    handed: dict[str, Sighting] = {}
    now, folder = 0.0, history[-1][1]
    for now, folder in [*history, (history[-1][0] + 1.0, history[-1][1])]:
        for path in list(first_seen):
            if path not in folder:
                del first_seen[path]
                handed.pop(path, None)
        for path, sighting in folder.items():
            if first_seen.get(path, (None, 0.0))[0] != sighting:
                first_seen[path] = (sighting, now)
        tracker.observe(folder.values(), now)
        for arrived in tracker.ready(now, limit):
            path = arrived.sighting.path
            assert folder[path] == arrived.sighting
            assert now - first_seen[path][1] >= RULES.settle_seconds - 1e-9
            assert handed.get(path) != arrived.sighting
            handed[path] = arrived.sighting
    tracker.observe(folder.values(), now + 1.0)
    for arrived in tracker.ready(now + 1.0):
        handed[arrived.sighting.path] = arrived.sighting
    assert handed == folder
    assert tracker.unfinished == 0


@pytest.mark.parametrize(
    ("path", "one_by_one"),
    [("Tilt.ST", True), ("day/tilt.st", True), ("tilt.mrc", False), ("Series/a.mrc", True), ("x/series/a.mrc", False)],
)
def test_stacks_that_are_taken_section_by_section(path: str, one_by_one: bool) -> None:
    assert rules.by_section(Arrival(sections=("*.st", "series/*")), path) is one_by_one
