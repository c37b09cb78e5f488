"""A project's results are removed, and nothing that is anybody else's."""

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
import yaml
from finished import Finished, counts
from site_of_daemon import Site, folder_state, until

from daemon.commands.main import main
from daemon.ledger.jobs import Ledger
from daemon.service.purge import below, purge
from daemon.settings.config import Config


class Projects:
    """Three projects with one denoised micrograph each, and the command on them."""

    def __init__(self, config: Config, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.config, self.file, self.capsys = config, file, capsys
        self.drop, self.output, self.state = config.folders.drop, config.folders.output, config.folders.state
        past = Finished(config, lambda: 1e9)
        for number, folder in enumerate(("alice/grid 2", "alice/grid 22", "bob")):
            past.add(f"{folder}/a.tif", counts(number))
        past.ledger.close()
        names = {"drop": self.drop, "output": self.output, "state": self.state}
        file.write_text(yaml.safe_dump({"folders": {name: str(folder) for name, folder in names.items()}}))

    def purge(self, *words: str) -> str:
        status = main(["purge", *words, "--config", str(self.file)])
        said = self.capsys.readouterr()
        return f"{status}: {said.out}{said.err}"

    def arrives(self, name: str) -> bool:
        """Whether the service registers this file of the drop folder when it finds it."""
        found = (self.drop / name).stat()
        with Ledger(self.state) as ledger:
            return ledger.register(name, found.st_size, found.st_mtime_ns, live=True) is not None


@pytest.fixture
def projects(config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Projects:
    return Projects(config(), tmp_path / "settings.yaml", capsys)


def test_only_this_project_goes_and_only_with_yes(projects: Projects) -> None:
    (projects.state / "page").mkdir()
    (projects.state / "page/1-0-overview").write_bytes(b"picture")
    raw, results = folder_state(projects.drop), folder_state(projects.output)
    said = projects.purge("alice/grid 2")
    assert said.startswith("0: would be removed: 1 results") and "repeat the command with --yes" in said
    assert folder_state(projects.output) == results
    said = projects.purge(str(projects.drop / "alice/grid 2"), "--yes")
    assert said.startswith("0: removed: 1 results") and "1 micrographs in the ledger" in said
    assert not (projects.output / "alice/grid 2").exists()
    others = {name: state for name, state in results.items() if not name.startswith("alice/grid 2/")}
    assert len(others) >= 4 and folder_state(projects.output) == others
    assert folder_state(projects.drop) == raw and not list((projects.state / "page").iterdir())
    assert "0 results" in projects.purge("alice/grid 2", "--yes")
    said = projects.purge("alcie")
    assert "the ledger has no micrographs in alcie" in said and "--yes" not in said


def test_it_is_denoised_again_only_when_asked_for_or_changed(projects: Projects) -> None:
    projects.purge("alice", "--yes")
    assert not projects.arrives("alice/grid 2/a.tif") and not projects.arrives("alice/grid 22/a.tif")
    (projects.drop / "alice/grid 22/a.tif").write_bytes(b"another file")
    assert projects.arrives("alice/grid 22/a.tif")
    assert projects.purge("alice", "--again") == "0: 1 to be denoised again\n"
    assert projects.purge("alice", "--again") == "0: nothing that was purged is in these folders\n"
    with Ledger(projects.state) as ledger:
        assert {job.path for job in ledger.recent(9, "pending")} == {"alice/grid 2/a.tif", "alice/grid 22/a.tif"}
        assert ledger.counts()["pending"] == 2 and ledger.purged() == []


def test_of_raw_files_that_are_gone_nothing_is_remembered(projects: Projects) -> None:
    (projects.drop / "alice/grid 2/a.tif").unlink()
    projects.purge("alice", "--yes")
    with Ledger(projects.state) as ledger:
        assert ledger.purged() == ["alice/grid 22/a.tif"]
        assert ledger.forget_purged(ledger.purged()) == 1 and ledger.purged() == []


def test_what_no_record_names_is_left_and_links_are_not_followed(projects: Projects, tmp_path: Path) -> None:
    foreign = projects.output / "alice/grid 2/a.tif.json"
    record = json.loads(foreign.read_text())
    foreign.write_text(json.dumps({**record, "raw": {**record["raw"], "relative": "bob/a.tif"}}))
    elsewhere = tmp_path / "elsewhere"
    (projects.output / "alice/grid 22").rename(elsewhere)
    (projects.output / "alice/grid 22").symlink_to(elsewhere)
    kept = folder_state(elsewhere)
    said = projects.purge("alice", "--yes")
    assert "left, because its record does not name it" in said and "grid 2/a.tif" in said
    assert "removed: 0 results" in said and "2 micrographs in the ledger" in said
    assert folder_state(elsewhere) == kept and (projects.output / "alice/grid 2/a.tif").exists()


def test_names_with_line_breaks_and_bytes_that_are_no_text(
    config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    projects = Projects(config(), tmp_path / "settings.yaml", capsys)
    past = Finished(projects.config, lambda: 1e9)
    odd = "eve\nremoved: everything \udcff"
    for name in ("a.tif", "b.tif"):
        past.add(f"{odd}/{name}", counts(5))
    past.ledger.close()
    (projects.output / odd / "b.tif.json").unlink()
    others = {name: state for name, state in folder_state(projects.output).items() if not name.startswith("eve")}
    assert "0 results" in projects.purge("eve", "--yes")
    said = projects.purge(odd, "--yes")
    assert "\nremoved: 1 results" in said and "2 micrographs in the ledger" in said
    assert said.count("\nremoved: ") == 1 and "b.tif" in said, "a name forges no line"
    left = {name for name in folder_state(projects.output) if name.startswith("eve")}
    assert {Path(name).name for name in left if name.endswith((".tif", ".json"))} == {"b.tif"}
    assert others.items() <= folder_state(projects.output).items()


def test_an_interrupted_purge_is_finished_by_the_next(projects: Projects) -> None:
    (projects.output / "bob/a.tif").unlink()
    assert "removed: 1 results" in projects.purge("bob", "--yes")
    assert not (projects.output / "bob").exists()


@pytest.mark.parametrize("empty", [True, False])
def test_results_on_a_share_that_is_away_are_not_forgotten(projects: Projects, tmp_path: Path, empty: bool) -> None:
    away = projects.output.rename(tmp_path / "away")
    if empty:
        projects.output.mkdir()
    said = projects.purge("alice", "--yes")
    assert said.startswith("1: ") and "mount its share, and run the same command again" in said
    if empty:
        projects.output.rmdir()
    away.rename(projects.output)
    assert "removed: 2 results" in projects.purge("alice", "--yes")


def test_micrographs_in_work_and_a_drop_folder_that_is_away(config: Callable[..., Config]) -> None:
    here = config()
    with Ledger(here.folders.state) as ledger:
        for name in ("p/a.tif", "p/b.tif"):
            ledger.register(name, 1, 1, live=True)
        busy = ledger.claim()
        assert busy is not None
        here.folders.drop.rmdir()
        purged = purge(here, ledger, [PurePosixPath("p")], dry_run=False)
        assert (purged.rows, purged.running) == (1, 1)
        assert len(ledger.purged()) == 1, "the share will come back, with the file"
        assert ledger.get(busy.id).state == "running"


@pytest.mark.parametrize("named", [".", "", "a/../..", "/etc"])
def test_a_folder_that_is_not_a_project_is_refused(projects: Projects, named: str) -> None:
    said = projects.purge(named, "--yes")
    assert said.startswith("2: ") and "drop folder" in said
    assert not below("grid 22/a.tif", [PurePosixPath("grid 2")])


def test_beside_a_running_service(site: Site) -> None:
    (site.drop / "p").mkdir()
    site.write("p/a.tif")
    process = site.launch("run", staged="quick")
    site.ready(process)
    until((site.output / "p/a.tif").exists)
    status, said = site.finish("purge", "p", "--yes")
    assert status == 0 and "removed: " in said
    site.write("later.tif")
    until((site.output / "later.tif").exists)
    assert not (site.output / "p/a.tif").exists()
    assert site.finish("purge", "p", "--again")[0] == 0
    until((site.output / "p/a.tif").exists)
