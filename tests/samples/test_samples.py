"""What older versions wrote loads unchanged (README.md says which)."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from daemon.ledger import sessions
from daemon.ledger.jobs import Ledger
from daemon.output import paths
from daemon.output.record import Record, read_record
from daemon.settings import config as settings

HERE = Path(__file__).parent
RECORDS = sorted(HERE.glob("*.json"))


def loaded(name: str) -> Record:
    found = read_record(HERE / name)
    assert found is not None
    return found


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_every_record_loads_and_nothing_of_it_is_lost(path: Path) -> None:
    found = loaded(path.name)
    assert found.as_json() == json.loads(path.read_text())
    assert len(found.raw.sha256) == 64 and found.raw.shape == (64, 64) and found.output.shape == (64, 64)
    name, hashes, settings_hash = found.made_with
    assert name in ("low", "auto") and isinstance(hashes, dict) and len(str(settings_hash)) == 64


def test_what_a_record_does_not_say_has_its_default() -> None:
    found = loaded("first.json")
    assert found.verdict is not None and (found.verdict.word, found.verdict.reasons) == (None, ())
    assert found.raw.acquisition is None and found.void is None and found.output.turned == ()
    assert found.profile is not None and found.profile.psf is None
    assert found.summary["verdict"] is None and found.summary["facts"]["spikes"] == 1
    assert loaded("judged.json").summary == {
        "verdict": "check",
        "facts": {
            "dose": 20.046886446886447,
            "shape": [64, 64],
            "pixel_size": {"y": 0.9999999999999999, "x": 0.9999999999999999, "unit": "nm"},
            "spikes": 1,
            "reasons": ["64 x 64 pixels are fewer than the network was trained on"],
            "codes": [],
            "removed_noise": 0.9967853053518821,
            "backend": "cpu: ONNX Runtime 1.32.0, float32, 1 threads",
            "weights": {
                "asked": None,
                "name": "fast",
                "sha256": json.loads((HERE / "judged.json").read_text())["weights"]["sha256"]["model.onnx"],
            },
        },
    }
    assert loaded("section.json").raw.section == 2


def test_the_settings_load_and_mean_the_same() -> None:
    found = settings.load(HERE / "config.yaml")
    assert found.retry.attempts == 8 and found.arrival.settle_seconds == 1.0 and found.order.backlog_every == 4
    assert found.profiles["low"].dose == (0.5, 100.0) and found.default_profile == "auto"
    assert found.arrival.frames == settings.Arrival().frames, "a key that came later"


def test_the_ledger_is_opened_and_knows_its_micrographs(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        database.executescript((HERE / "ledger.sql").read_text())
    with Ledger(tmp_path) as ledger:
        assert ledger.counts() == {"pending": 0, "running": 0, "retry": 0, "done": 3, "quarantined": 1}
        jobs = {job.path: job for job in sessions.find(ledger)}
        assert all(job.acknowledged is None for job in jobs.values()) and ledger.problems() == 1
        assert [job.path for job in ledger.acknowledge("broken*")] == ["broken.tif"] and ledger.problems() == 0
    assert set(jobs) == {"low/a.tif", "grid 2/b.mrc", "tilt.st", "broken.tif"}
    facts = dict(loaded("judged.json").summary["facts"])
    for later in ("weights", "codes", "removed_noise"):
        del facts[later]
    assert jobs["low/a.tif"].verdict == "check" and jobs["low/a.tif"].facts == facts
    images = [found.image.name for found in paths.results_of(jobs["tilt.st"])]
    assert images == ["tilt.s0001.st", "tilt.s0002.st"] and "ends at byte 54" in str(jobs["broken.tif"].error)
