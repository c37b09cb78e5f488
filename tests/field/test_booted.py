"""The shipped unit under a systemd that really booted: in a container whose root is this computer's, copied on write.

Needs root, systemd-nspawn (Debian: systemd-container) and the right to mount; skipped, and said so, without.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from booted import Machine, booted, wait_for
from site_of_daemon import ROOT

pytestmark = [pytest.mark.field, pytest.mark.timeout(600)]

UNIT = ROOT / "systemd" / "emdenoised.service"
NODES = ROOT / "systemd" / "emdenoised-gpu.service"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with booted(tmp_path) as one:
        yield one


def install(machine: Machine) -> None:
    """What install.sh and the administrator do: a user, a group of microscopists, folders, settings, the unit."""
    root = machine.root
    for folder in {*Path(sys.prefix).parents, *Path(sys.base_prefix).parents, *ROOT.parents}:
        here = root / folder.relative_to("/")
        here.chmod(here.stat().st_mode | 0o011)  # in the copy: the service's user must reach this Python
    home = ("--home-dir", "/var/lib/emdenoised", "--shell", "/usr/sbin/nologin")
    machine.change_root("useradd", "--system", *home, "emdenoised")
    machine.change_root("groupadd", "microscope")
    machine.change_root("usermod", "-aG", "microscope", "emdenoised")
    machine.change_root("useradd", "-G", "microscope,emdenoised", "alice")
    for name, owner, mode in (("drop", "alice:microscope", 0o2750), ("denoised", "emdenoised:microscope", 0o2770)):
        (root / "srv" / name).mkdir(parents=True)
        machine.change_root("chown", owner, f"/srv/{name}")
        (root / "srv" / name).chmod(mode)
    settings = (ROOT / "config.yaml").read_text()
    for was, now in (
        ("~/emdenoised/drop", "/srv/drop"),
        ("~/emdenoised/denoised", "/srv/denoised"),
        ("~/.local/state/emdenoised", "/var/lib/emdenoised"),
    ):
        assert was in settings
        settings = settings.replace(was, now)
    (root / "etc/emdenoised").mkdir()
    (root / "etc/emdenoised/config.yaml").write_text(settings)
    unit = UNIT.read_text().replace("/opt/emdenoised/bin/emdenoised", f"{sys.prefix}/bin/emdenoised")
    (root / "etc/systemd/system/emdenoised.service").write_text(unit)
    shared = root / "opt/emdenoised/share/emdenoised"
    shared.mkdir(parents=True)
    (root / "opt/emdenoised/.emdenoised").touch()  # as install.sh marks what it made
    shutil.copy(NODES.with_name("gpu-nodes.sh"), shared)
    shutil.copy(NODES, root / "etc/systemd/system")
    shorter = root / "etc/systemd/system/emdenoised.service.d"
    shorter.mkdir()
    # The checkout may lie in /tmp, of which the service has its own.
    reached = f"BindReadOnlyPaths={ROOT} {sys.prefix} {sys.base_prefix}\n"
    (shorter / "times.conf").write_text(f"[Service]\nWatchdogSec=6\nRestartSec=1\n{reached}")


def micrograph(machine: Machine, name: str, **options: Any) -> Path:
    """As alice saves it, under a temporary name first."""
    path = machine.root / "srv/drop" / name
    beside = path.with_name(f".{name}")
    tifffile.imwrite(beside, np.random.default_rng(1).poisson(20, (128, 128)).astype(np.uint16), **options)
    beside.chmod(0o640)
    machine.change_root("chown", "alice:microscope", f"/srv/drop/.{name}")
    beside.rename(path)
    return machine.root / "srv/denoised" / name


def test_the_unit_runs_restarts_reloads_and_is_as_confined_as_stated(machine: Machine) -> None:
    install(machine)
    machine.boot()
    machine.inside("systemctl", "start", "emdenoised")  # returns when READY=1 was said
    assert "ready, cpu" in machine.shown("StatusText")
    first = micrograph(machine, "a.tif")
    packed = micrograph(machine, "packed.tif", compression="zlib")  # decoded by a child, under the same rules
    wait_for(machine, lambda: first.exists() and packed.exists())

    # Who may read what.
    machine.inside("runuser", "-u", "alice", "--", "cat", "/srv/denoised/a.tif.json")
    assert "Permission denied" in machine.inside(
        "runuser", "-u", "nobody", "--", "cat", "/srv/denoised/a.tif", check=False
    )
    for private in ("/var/lib/emdenoised/ledger.db", "/var/lib/emdenoised"):
        assert machine.inside("runuser", "-u", "alice", "--", "cat", private, check=False).rstrip().endswith("denied")

    # What it may do.
    process = int(machine.shown("MainPID"))
    status = machine.inside("cat", f"/proc/{process}/status")
    for line in ("NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"):
        assert line in status
    assert "ledger" not in machine.inside("nsenter", "-t", str(process), "-m", "ls", "/tmp")
    refused = machine.inside(
        "nsenter", "-t", str(process), "-m", "runuser", "-u", "emdenoised", "--", "touch", "/usr/x", check=False
    )
    assert "Read-only file system" in refused
    health = json.loads(machine.inside("curl", "-sS", "http://127.0.0.1:8642/healthz"))
    assert health["state"] == "ok"

    # Reload: wrong settings change nothing, right ones are taken.
    file = machine.root / "etc/emdenoised/config.yaml"
    good = file.read_text()
    file.write_text(good + "nonsense: 1\n")
    machine.inside("systemctl", "reload", "emdenoised")
    wait_for(machine, lambda: "the settings were not changed" in machine.journal())
    file.write_text(good.replace("preview: true", "preview: false"))
    machine.inside("systemctl", "reload", "emdenoised")
    wait_for(machine, lambda: "the settings are read again" in machine.journal())
    second = micrograph(machine, "b.tif")
    wait_for(machine, second.exists)
    assert int(machine.shown("MainPID")) == process and not second.with_name("b.tif.png").exists()

    # A service that hangs is killed by the watchdog and starts again.
    machine.inside("kill", "-STOP", str(process))
    wait_for(machine, lambda: int(machine.shown("NRestarts")) == 1 and machine.shown("SubState") == "running")
    assert "watchdog" in machine.journal().lower()
    third = micrograph(machine, "c.tif")
    wait_for(machine, third.exists)

    # So is one that was killed.
    machine.inside("kill", "-KILL", machine.shown("MainPID"))
    wait_for(machine, lambda: int(machine.shown("NRestarts")) == 2 and machine.shown("SubState") == "running")
    fourth = micrograph(machine, "d.tif")
    wait_for(machine, fourth.exists)

    # Settings that cannot be used end it for good: a person is needed.
    file.write_text("nonsense: 1\n")
    machine.inside("systemctl", "restart", "emdenoised", check=False)
    wait_for(machine, lambda: machine.shown("ActiveState") == "failed")
    assert machine.shown("ExecMainStatus") == "78"
    file.write_text(good)
    machine.inside("systemctl", "start", "emdenoised")
    begin = time.monotonic()
    machine.inside("systemctl", "stop", "emdenoised")
    assert time.monotonic() - begin < 30 and machine.shown("Result") == "success"
    assert sorted(path.name for path in (machine.root / "srv/denoised").glob("*.tif")) == [
        "a.tif", "b.tif", "c.tif", "d.tif", "packed.tif",
    ]  # fmt: skip
    assert not list((machine.root / "srv/denoised").glob(".emdenoised*"))

    # Removed, and nothing that is somebody's is.
    machine.inside("systemctl", "start", "emdenoised")
    said = machine.inside("sh", str(ROOT / "systemd/install.sh"), "--uninstall", "--service", "/opt/emdenoised")
    assert "Left where they are" in said and "emdenoised.service" not in machine.inside("systemctl", "list-unit-files")
    assert machine.shown("ActiveState") == "inactive"
    for kept in ("etc/emdenoised/config.yaml", "var/lib/emdenoised/ledger.db", "srv/denoised/a.tif", "srv/drop/a.tif"):
        assert (machine.root / kept).is_file()


def test_shares_that_are_away_at_the_start_are_waited_for(machine: Machine) -> None:
    install(machine)
    look = "ExecStartPre=/usr/bin/mountpoint -q /mnt/results\n"
    assert look in (ROOT / "systemd/README.md").read_text()
    (machine.root / "etc/systemd/system/emdenoised.service.d/share.conf").write_text(f"[Service]\n{look}")
    (machine.root / "mnt/results").mkdir()
    file = machine.root / "etc/emdenoised/config.yaml"
    file.write_text(file.read_text().replace("/srv/denoised", "/mnt/results/denoised"))
    drop = machine.root / "srv/drop"
    drop.rename(drop.with_name("away"))
    machine.boot()
    machine.inside("systemctl", "start", "emdenoised", check=False)
    wait_for(machine, lambda: int(machine.shown("NRestarts")) >= 2)
    assert not list((machine.root / "mnt/results").iterdir())
    machine.inside("mount", "-t", "tmpfs", "none", "/mnt/results")
    machine.inside("install", "-d", "-m", "2770", "-o", "emdenoised", "-g", "microscope", "/mnt/results/denoised")
    wait_for(machine, lambda: machine.shown("SubState") == "running")
    assert "the service starts and waits for it" in machine.journal()
    drop.with_name("away").rename(drop)
    micrograph(machine, "a.tif")
    wait_for(machine, lambda: "denoised 'a.tif'" in machine.journal())
    assert "a.tif.json" in machine.inside("ls", "/mnt/results/denoised")


MODPROBE = """#!/bin/sh
# As NVIDIA's, but the nodes are those of /dev/null.
echo "$*" >> /run/asked
for node in nvidia0 nvidiactl nvidia-uvm; do
    [ -e /dev/$node ] || mknod -m 660 /dev/$node c 1 3
    chgrp video /dev/$node
done
"""


def test_the_nodes_of_a_card_are_made_before_each_start_and_the_service_may_open_them(machine: Machine) -> None:
    install(machine)
    opens = "".join(f"ExecStartPre=/bin/sh -c ': <> /dev/{node}'\n" for node in ("nvidia0", "nvidiactl", "nvidia-uvm"))
    (machine.root / "etc/systemd/system/emdenoised.service.d/opens.conf").write_text(f"[Service]\n{opens}")
    (machine.root / "usr/bin/nvidia-modprobe").write_text(MODPROBE)
    (machine.root / "usr/bin/nvidia-modprobe").chmod(0o755)
    machine.boot()
    machine.inside("systemctl", "start", "emdenoised")
    assert machine.inside("stat", "-c", "%F %U %G", "/dev/nvidia0") == "character special file root video\n"
    assert machine.inside("cat", "/run/asked") == "-c 0 -u\n"
    refused = machine.inside("runuser", "-u", "nobody", "--", "sh", "-c", ": <> /dev/nvidia0", check=False)
    assert "Permission denied" in refused
    # A card whose nodes went away with its driver: they are there again before the start that follows the failure.
    machine.inside("rm", "/dev/nvidia0", "/dev/nvidia-uvm")
    machine.inside("kill", "-KILL", machine.shown("MainPID"))
    wait_for(machine, lambda: int(machine.shown("NRestarts")) == 1 and machine.shown("SubState") == "running")
    assert machine.inside("cat", "/run/asked") == "-c 0 -u\n" * 2
