"""The service file, as systemd itself reads it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from daemon.settings import config as settings

UNIT = Path(__file__).parents[2] / "systemd" / "emdenoised.service"


def analyse(*command: str) -> str:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(["systemd-analyze", *command], capture_output=True, text=True, timeout=60)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is too old for it")
    return done.stdout + done.stderr


def test_it_is_exposed_as_little_as_such_a_service_can_be() -> None:
    said = analyse("security", "--offline=true", str(UNIT))
    exposure = re.search(r"exposure level for emdenoised.service: ([0-9.]+)", said)
    assert exposure is not None, said
    assert float(exposure[1]) <= 2.0


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    program = tmp_path / "emdenoised"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / UNIT.name
    # The program is not installed here, nor are there settings; everything else is to be read as it stands.
    copy.write_text(UNIT.read_text().replace("/opt/emdenoised/bin/emdenoised", str(program)))
    complaints = [line for line in analyse("verify", str(copy)).splitlines() if UNIT.name in line]
    assert complaints == []


def test_a_share_that_is_away_cannot_keep_it_from_starting_for_good() -> None:
    said = UNIT.read_text()
    assert not re.search(r"^(Requires|Requisite|BindsTo|RequiresMountsFor)=", said, re.MULTILINE)


def test_a_codec_that_is_killed_for_memory_does_not_stop_it() -> None:
    """Which it would by systemd's default."""
    assert "\nOOMPolicy=continue\n" in UNIT.read_text()


def test_the_microscopes_own_software_comes_first_and_the_memory_has_a_ceiling() -> None:
    given = dict(re.findall(r"^(\w+)=(\S+)$", UNIT.read_text(), re.MULTILINE))
    assert int(given["Nice"]) > 0
    assert int(given["CPUWeight"]) < 100 > int(given["IOWeight"]), "100 is systemd's weight of everything else"
    assert given["MemoryHigh"] == "60%" and given["MemoryMax"] == "75%"


def test_all_cameras_together_have_a_weight_among_users_and_system_and_a_ceiling() -> None:
    """A weight of the unit alone would count only inside system.slice, where the camera's software need not be."""
    slices = UNIT.with_name("emdenoised.slice").read_text()
    given = dict(re.findall(r"^(\w+)=(\S+)$", slices, re.MULTILINE))
    assert int(given["CPUWeight"]) < 100 > int(given["IOWeight"]) and given["MemoryMax"] == "75%"
    assert "\nSlice=emdenoised.slice\n" in UNIT.read_text()


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """Units and settings as setup.sh writes them for a package, below another root."""
    share = tmp_path / "opt/emdenoised/share/emdenoised"
    share.mkdir(parents=True)
    for file in UNIT.parent.glob("*.s*"):
        shutil.copy(file, share)
    package = tmp_path / "opt/emdenoised/lib/python3.11/site-packages/daemon"
    package.mkdir(parents=True)
    shutil.copy(UNIT.parents[1] / "config.yaml", package)
    subprocess.run(["sh", share / "setup.sh", "--stage", tmp_path], check=True)
    return tmp_path


def test_the_unit_of_a_further_camera_differs_by_name_settings_and_state_only(staged: Path) -> None:
    units = staged / "usr/lib/systemd/system"
    assert (units / UNIT.name).read_text() == UNIT.read_text()
    lines = (units / "emdenoised@.service").read_text().splitlines()
    changed = [new for new, old in zip(lines, UNIT.read_text().splitlines(), strict=True) if new != old]
    assert [line for line in changed if not line.startswith("#")] == [
        "Description=Denoises each electron micrograph that lands in the drop folder (%i)",
        "Documentation=file:///etc/emdenoised/%i.yaml",
        "ExecStart=/opt/emdenoised/bin/emdenoised run --config /etc/emdenoised/%i.yaml",
        "StateDirectory=emdenoised-%i",
        "WorkingDirectory=/var/lib/emdenoised-%i",
        "SyslogIdentifier=emdenoised-%i",
    ]


def test_the_services_settings_are_the_shipped_ones_with_its_folders(staged: Path) -> None:
    config = settings.load(staged / "etc/emdenoised/config.yaml")
    folders = config.folders
    assert (folders.drop, folders.output, folders.state) == (
        Path("/srv/emdenoised/drop"), Path("/srv/emdenoised/denoised"), Path("/var/lib/emdenoised")
    )  # fmt: skip
    shipped = settings.load(UNIT.parents[1] / "config.yaml")
    assert config.model_copy(update={"folders": shipped.folders}) == shipped


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--name", "a/b"], "use letters, digits"),
        (["--name", "config"], "not 'config'"),
        (["--drop", "/data/$HOME"], "not the name of a folder"),
        (["--group", "a b"], "is not the name of a group"),
        (["--port", "80x"], "is not a port"),
        (["--drop"], "--drop needs a value"),
        (["--sevrice"], "unknown argument --sevrice"),
    ],
)
def test_what_setup_cannot_use_is_refused_before_anything_is_made(words: list[str], says: str) -> None:
    done = subprocess.run(["sh", UNIT.with_name("setup.sh"), *words], capture_output=True, text=True)
    assert done.returncode == 1 and says in done.stderr


def test_the_state_is_closed_to_other_users() -> None:
    assert "\nStateDirectoryMode=0700\n" in UNIT.read_text()


def test_the_unit_that_makes_the_nodes_of_a_card_is_understood_and_comes_first(tmp_path: Path) -> None:
    nodes = UNIT.with_name("emdenoised-gpu.service")
    complaints = [line for line in analyse("verify", str(nodes)).splitlines() if line.startswith(nodes.name)]
    assert complaints == []
    assert "\nWants=emdenoised-gpu.service\nAfter=emdenoised-gpu.service\n" in UNIT.read_text()
    assert "\nBefore=emdenoised.service\n" in nodes.read_text()
    assert "RemainAfterExit" not in nodes.read_text(), "it would run once and not before each start"


def test_without_nvidias_program_a_driver_that_cannot_be_loaded_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "modprobe").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "modprobe").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", UNIT.with_name("gpu-nodes.sh")], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "module cannot be loaded: see `dmesg`" in done.stderr
