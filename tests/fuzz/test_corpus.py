"""What the fuzzer starts from, and what it once found, through the same checks; `make fuzz` goes on from there."""

import json
from pathlib import Path

import pytest
from fuzz import CORPUS, RUNS, TARGETS, record, target

KNOWN = sorted(path for name in TARGETS for path in (CORPUS / name).iterdir())


@pytest.mark.parametrize("path", KNOWN, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_damaged_files_raise_only_our_own_errors(path: Path) -> None:
    target(path.parent.name)(path.read_bytes())


@pytest.mark.parametrize("path", KNOWN, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_nor_of_any_beginning_of_it(path: Path) -> None:
    one, data = target(path.parent.name), path.read_bytes()
    for length in range(0, len(data), max(1, len(data) // 100)):
        one(data[:length])


def test_sizes_that_two_readings_disagree_about_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    from daemon import formats
    from daemon.errors import MicrographError

    for name, reason in (
        ("found-size-given-twice.tif", "contradicts itself"),
        ("found-lengths-given-twice.tif", "pixels of an unusual kind"),  # a length beyond the file counts for nothing
    ):
        with pytest.raises(MicrographError, match=reason):
            formats.read(CORPUS / "tiff" / name, 1 << 18)


def test_what_is_recorded_of_one_target_leaves_the_others_alone(tmp_path: Path) -> None:
    file = tmp_path / "fuzz.json"
    record(file, {"tiff": {"inputs": 3}, "mrc": {"inputs": 4}}, seed=1)
    before = json.loads(file.read_text())
    record(file, {"mrc": {"inputs": 5}}, seed=2)
    after = json.loads(file.read_text())
    assert after["inputs"] == 8 and after["targets"]["tiff"] == before["targets"]["tiff"]
    assert (after["targets"]["mrc"]["inputs"], after["targets"]["mrc"]["seed"]) == (5, 2)


def test_every_target_has_a_corpus_and_a_share() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(RUNS.values()) == pytest.approx(1)
