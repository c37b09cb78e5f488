"""The JSON beside a result: what is kept of one that is not as we write it."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from daemon.output.record import Raw, Record, Spike, read_record


def stored(tmp_path: Path, **content: Any) -> Record:
    path = tmp_path / "a.tif.json"
    path.write_text(json.dumps({"writer": "emdenoised", **content}))
    found = read_record(path)
    assert found is not None
    return found


def test_what_is_not_known_here_is_kept(tmp_path: Path) -> None:
    content = {
        "colour": {"of": "green"},
        "raw": {"sha256": "ab", "from": 3},
        "verdict": {"word": "good", "codes": ["x"]},
    }
    assert stored(tmp_path, **content).as_json() == {"writer": "emdenoised", **content}


def test_a_value_of_the_wrong_type_costs_itself_only(tmp_path: Path) -> None:
    found = stored(
        tmp_path,
        dose="much",
        raw={"sha256": "ab", "shape": [1, 2, 3], "size": 7},
        verdict=[],
        spikes={"count": 2, "listed": [{"row": 1, "column": "x", "filled_with": 2.5}]},
        seconds={"read": float("inf")},
        backend="cpu",
    )
    assert found.dose is None and found.verdict is None and found.backend == "cpu"
    assert found.raw == Raw(sha256="ab", shape=None, size=7)
    assert found.spikes is not None and found.spikes.listed == (Spike(row=1, column=None, filled_with=2.5),)


@pytest.mark.parametrize("y", ["wide", None, float("nan")])
def test_a_pixel_size_without_a_number_is_not_known(tmp_path: Path, y: object) -> None:
    found = stored(tmp_path, raw={"sha256": "ab", "pixel_size": {"y": y, "x": 0.5, "unit": "nm"}})
    assert found.raw == Raw(sha256="ab", pixel_size=None)
    assert found.summary["facts"]["pixel_size"] is None


def test_what_we_write_ourselves_has_to_be_right() -> None:
    with pytest.raises(ValidationError):
        Record.model_validate({"raw": {"shape": "large"}})


def test_it_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Record().dose = 3.0  # type: ignore[misc]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"writer": "somebody"}', '{"dose": 3}'])
def test_a_record_of_another_program_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_record(tmp_path / "a.json") is None
