"""Which weights a session gets when the service starts in the middle of it, after an upgrade or before one."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.backends import manifest
from daemon.backends.manifest import Weights
from daemon.ledger.database import LedgerError
from daemon.ledger.jobs import Ledger
from daemon.ledger.sessions import PAUSE_SECONDS
from daemon.service.service import Service
from daemon.service.session_weights import kept
from daemon.settings.config import Config

NOON = 1_800_000_000.0
Done = Callable[[str, str], None]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Shipped weights fast-1 and fast-2, for the latter of which `fast` stands."""
    shelf = tmp_path / "weights"
    like = manifest.load(manifest.locate("fast"))
    for name in ("fast-1", "fast-2"):
        (shelf / name).mkdir(parents=True)
        (shelf / name / like.onnx).write_bytes(name.encode())
        sha256 = {like.onnx: hashlib.sha256(name.encode()).hexdigest()}
        about = like.model_copy(update={"name": name, "sha256": sha256})
        (shelf / name / manifest.MANIFEST).write_text(about.model_dump_json())
    (shelf / manifest.ALIASES).write_text("fast: fast-2\n")
    monkeypatch.setattr(manifest, "shipped_weights", lambda: shelf)
    manifest.aliases.cache_clear()
    yield shelf
    manifest.aliases.cache_clear()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path, clock=lambda: NOON) as made:
        yield made


@pytest.fixture
def done(ledger: Ledger) -> Done:
    """`done(asked, name)`: a micrograph was denoised at noon with these weights."""

    def finish(asked: str, name: str) -> None:
        number = sum(ledger.counts().values())
        ledger.register(f"{number}.tif", 1, number, live=True)
        job = ledger.claim()
        assert job is not None
        sha256 = hashlib.sha256(name.encode()).hexdigest()
        ledger.finish(job, f"/out/{number}.tif", facts={"weights": {"asked": asked, "name": name, "sha256": sha256}})

    return finish


def chosen(ledger: Ledger, later: float, *asked: str) -> dict[str, str]:
    loaded = {one: Weights(folder := manifest.locate(one), manifest.load(folder)) for one in asked}
    return {one: weights.manifest.name for one, weights in kept(loaded, ledger, NOON + later).items()}


def test_a_session_in_progress_keeps_what_it_began_with(
    shelf: Path, ledger: Ledger, done: Done, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    done("fast", "fast-1")
    assert chosen(ledger, PAUSE_SECONDS, "fast") == {"fast": "fast-1"}
    assert "keeps fast-1 (" in caplog.text and "at once with `weights: fast-2`" in caplog.text
    assert chosen(ledger, PAUSE_SECONDS + 1, "fast") == {"fast": "fast-2"}, "the next session"


def test_a_profile_that_names_weights_gets_these(shelf: Path, ledger: Ledger, done: Done) -> None:
    done("fast", "fast-1")
    done("fast-2", "fast-2")
    assert chosen(ledger, 60, "fast", "fast-1", "fast-2") == {"fast": "fast-1", "fast-1": "fast-1", "fast-2": "fast-2"}


@pytest.mark.parametrize("facts", [None, {}, {"weights": None}, {"weights": {"asked": "fast"}}, {"weights": "fast-1"}])
def test_an_empty_ledger_or_one_of_an_older_version_changes_nothing(shelf: Path, ledger: Ledger, facts: Any) -> None:
    if facts is not None:
        ledger.register("a.tif", 1, 1, live=True)
        job = ledger.claim()
        assert job is not None
        ledger.finish(job, "/out/a.tif", facts=facts)
    assert chosen(ledger, 60, "fast") == {"fast": "fast-2"}


@pytest.mark.parametrize("name", ["fast-0", "fast-1"])
def test_weights_that_are_gone_or_were_replaced_are_not_kept(
    shelf: Path, ledger: Ledger, done: Done, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    done("fast", name)
    if name == "fast-1":
        other = manifest.load(shelf / "fast-2").model_copy(update={"name": "fast-1"})
        (shelf / "fast-1" / manifest.MANIFEST).write_text(other.model_dump_json())
        (shelf / "fast-1" / other.onnx).write_bytes(b"fast-2")
    assert chosen(ledger, 60, "fast") == {"fast": "fast-2"}
    assert f"the session began with {'other ' if name == 'fast-1' else ''}weights" in caplog.text
    assert "it continues with fast-2 (" in caplog.text


def test_a_service_that_cannot_read_the_session_leaves_the_ledger_to_the_next(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object) -> None:
        raise LedgerError("damaged")

    with monkeypatch.context() as patched:
        patched.setattr("daemon.service.session_weights.kept", unreadable)
        with pytest.raises(LedgerError, match="damaged"):
            Service(config())
    service = Service(config())
    service.stop()
    assert service.failure is None
