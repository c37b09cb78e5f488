"""The Debian package and the bundle under a systemd that really booted: installed, upgraded, removed, purged.

Each time with micrographs waiting; afterwards every raw file is as it was and has one result.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from booted import Machine, booted, wait_for
from site_of_daemon import ROOT, folder_state

pytestmark = [pytest.mark.field, pytest.mark.timeout(1500)]

QUEUE = 4
PIXELS = 512


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked bundle, for the processor."""
    if shutil.which("dpkg-deb") is None or not Path("/usr/bin", f"python3.{sys.version_info.minor}").exists():
        pytest.skip(f"needs dpkg-deb and the system's own Python 3.{sys.version_info.minor}")
    out = tmp_path_factory.mktemp("bundle")
    run(sys.executable, ROOT / "systemd/bundle.py", "--flavour", "cpu", "-o", out)
    (archive,) = out.glob("*.tar")
    with tarfile.open(archive) as tar:
        tar.extractall(out, filter="data")
    archive.unlink()
    (folder,) = out.iterdir()
    return folder


@pytest.fixture(scope="module")
def packages(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The package, and the same with the next revision."""
    out = tmp_path_factory.mktemp("packages")
    run(sys.executable, ROOT / "systemd/deb.py", "--bundle", bundle, "-o", out)
    (first,) = out.glob("*.deb")
    run("dpkg-deb", "-R", first, out / "content")
    control = out / "content/DEBIAN/control"
    control.write_text(re.sub(r"(Version: .*-)1\+", r"\g<1>2+", control.read_text()))
    second = out / "second.deb"
    run("dpkg-deb", "--root-owner-group", "-Zzstd", "-z1", "-b", out / "content", second)
    shutil.rmtree(out / "content")
    return first, second


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with booted(tmp_path) as one:
        yield one


class Microscope:
    """What a user has there: raw files in drop folders, and what became of them."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.raw: dict[Path, tuple[str, Path]] = {}

    def save(self, session: str, base: str = "srv/emdenoised") -> None:
        """A queue of micrographs, by a user of the group who is not the service's."""
        drop = self.machine.root / base / "drop"
        for number in range(QUEUE):
            name = f"{session}-{number}.tif"
            pixels = np.random.default_rng(number).poisson(20, (PIXELS, PIXELS)).astype(np.uint16)
            tifffile.imwrite(drop / f".{name}", pixels)
            (drop / f".{name}").rename(drop / name)
            digest = hashlib.sha256((drop / name).read_bytes()).hexdigest()
            self.raw[drop / name] = digest, self.machine.root / base / "denoised" / name

    def finished(self) -> bool:
        return all(result.exists() for _, result in self.raw.values())  # the image comes last

    def require_nothing_lost(self) -> None:
        """Raw files are as they were, and each has one result, which names it."""
        for path, (digest, result) in self.raw.items():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
            record = json.loads(result.with_name(f"{result.name}.json").read_text())
            assert record["raw"]["sha256"] == digest
            assert record["output"]["sha256"] == hashlib.sha256(result.read_bytes()).hexdigest()
        wanted = {result for _, result in self.raw.values()}
        assert {path for folder in {result.parent for result in wanted} for path in folder.glob("*.tif")} == wanted


def apt(machine: Machine, *words: str) -> str:
    return machine.inside("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-q", "-o",
                          "APT::Sandbox::User=root", *words)  # fmt: skip


def completed(machine: Machine, file: str) -> str:
    """What the Tab key makes of `emdenoised acknow`, by bash's completion file."""
    ask = '. "$1"; COMP_LINE="emdenoised acknow" COMP_POINT=17 COMP_TYPE=9; _python_argcomplete emdenoised; '
    return machine.inside("bash", "-c", f'{ask}echo "${{COMPREPLY[0]% }}"', "bash", file)


def test_installed_upgraded_downgraded_removed_and_purged_with_a_queue(
    packages: tuple[Path, Path], machine: Machine
) -> None:
    for package, name in zip(packages, ("first", "second"), strict=True):
        shutil.copyfile(package, machine.root / f"root/{name}.deb")
    (machine.root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)  # containers have one that forbids every start
    machine.boot()
    said = apt(machine, "install", "/root/first.deb")  # without a network
    assert "watches /srv/emdenoised/drop" in said
    assert machine.shown("ActiveState") == "active" and machine.shown("Slice") == "emdenoised.slice"
    assert machine.inside("stat", "-c", "%U:%G %a", "/srv/emdenoised/drop") == "root:emdenoised 2770\n"
    here = Microscope(machine)
    here.save("installed")
    wait_for(machine, here.finished)
    assert completed(machine, "/usr/share/bash-completion/completions/emdenoised") == "acknowledge\n"
    said = machine.inside("runuser", "-u", "emdenoised", "--", "emdenoised", "status")
    assert "(settings: /etc/emdenoised/config.yaml)" in said and f"{QUEUE} done" in said

    # The administrator's settings, and a second camera.
    settings = machine.root / "etc/emdenoised/config.yaml"
    settings.write_text(settings.read_text().replace("preview: true", "preview: false"))
    said = machine.inside("emdenoised-setup", "--name", "falcon", "--group", "microscope")
    assert "emdenoised@falcon.service runs" in said and "http://127.0.0.1:8643/" in said
    here.save("second-camera", "srv/emdenoised/falcon")

    here.save("upgraded")
    apt(machine, "install", "/root/second.deb")
    assert "Version: 0.1.0-2" in machine.inside("dpkg", "-s", "emdenoised")
    assert machine.inside("systemctl", "is-active", "emdenoised", "emdenoised@falcon") == "active\nactive\n"
    assert "preview: false" in settings.read_text()
    here.save("downgraded")
    apt(machine, "install", "--allow-downgrades", "/root/first.deb")
    wait_for(machine, here.finished)
    here.require_nothing_lost()

    # What the older version could not start is started by an upgrade.
    good = settings.read_text()
    settings.write_text(good.replace("weights: fast", "weights: none-of-these"))
    machine.inside("systemctl", "restart", "emdenoised", check=False)
    assert machine.shown("ActiveState") == "failed"
    settings.write_text(good)
    apt(machine, "install", "/root/second.deb")
    assert machine.inside("systemctl", "is-active", "emdenoised", "emdenoised@falcon") == "active\nactive\n"

    # What was stopped stays so; what waits is done after the next installation, by all cameras that are enabled.
    machine.inside("systemctl", "stop", "emdenoised@falcon")
    here.save("removed")
    apt(machine, "remove", "emdenoised")
    assert machine.inside("systemctl", "is-active", "emdenoised", check=False) == "inactive\n"
    assert (machine.root / "var/lib/emdenoised/ledger.db").is_file() and settings.is_file()
    assert not (machine.root / "opt/emdenoised").exists()
    apt(machine, "install", "/root/second.deb")
    assert machine.inside("systemctl", "is-active", "emdenoised", "emdenoised@falcon") == "active\nactive\n"
    wait_for(machine, here.finished)
    here.require_nothing_lost()

    # Purged while the queue is in hand: the state goes, nobody's files do, even those beside it.
    (machine.root / "var/lib/emdenoised-falcon/thesis.tex").write_text("five years of work")
    machine.inside("systemctl", "stop", "emdenoised")
    raw = folder_state(machine.root / "srv/emdenoised/drop")
    results = folder_state(machine.root / "srv/emdenoised/denoised")
    machine.inside("systemctl", "start", "--no-block", "emdenoised")
    here.save("purged")
    said = apt(machine, "purge", "emdenoised")
    assert "Left, and yours" in said
    for gone in ("opt/emdenoised", "etc/emdenoised", "var/lib/emdenoised", "usr/bin/emdenoised",
                 "usr/share/bash-completion/completions/emdenoised"):  # fmt: skip
        assert not (machine.root / gone).exists(), gone
    assert [path.name for path in (machine.root / "var/lib/emdenoised-falcon").iterdir()] == ["thesis.tex"]
    assert raw.items() <= folder_state(machine.root / "srv/emdenoised/drop").items()
    assert results.items() <= folder_state(machine.root / "srv/emdenoised/denoised").items()

    # And once more from nothing: no result is made twice.
    apt(machine, "install", "/root/first.deb")
    wait_for(machine, here.finished)
    here.require_nothing_lost()
    assert results.items() <= folder_state(machine.root / "srv/emdenoised/denoised").items()


def test_the_bundles_script_does_all_steps_and_can_be_repeated(bundle: Path, machine: Machine) -> None:
    """With folders and a group of one's own, one of them with signs that shell and YAML know."""
    shutil.copytree(bundle, machine.root / "root/bundle")
    machine.boot()
    install = ("env", "PYTHON=/usr/bin/python3", "sh", "/root/bundle/install.sh")
    chosen = ("--drop", "/data/it's: #1", "--output", "/data/denoised", "--group", "microscope")
    said = machine.inside(*install, "--service", *chosen)
    assert "all is well" in said and "emdenoised.service runs. It watches /data/it's: #1" in said
    assert machine.inside("systemctl", "is-active", "emdenoised") == "active\n"
    assert machine.inside("stat", "-c", "%U:%G %a", "/data/it's: #1") == "root:microscope 2770\n"
    completion = "/usr/local/share/bash-completion/completions/emdenoised"
    assert completed(machine, completion) == "acknowledge\n"
    settings = (machine.root / "etc/emdenoised/config.yaml").read_text()
    process = machine.shown("MainPID")
    assert "It watches /data/it's: #1" in machine.inside("emdenoised-setup", *chosen)
    assert (machine.root / "etc/emdenoised/config.yaml").read_text() == settings
    assert machine.shown("MainPID") != process

    # A folder that the service's user may not use is found before anything starts anew.
    machine.inside("install", "-d", "-m", "700", "/data/private")
    said = machine.inside("emdenoised-setup", "--drop", "/data/private", check=False)
    assert "may not read it" in said and "setfacl" in said and "the service was not started" in said
    machine.inside("emdenoised-setup", *chosen)

    # Settings that were written in another way are not touched.
    file = machine.root / "etc/emdenoised/config.yaml"
    flow = "folders: {drop: /data/a, output: /data/b, state: /var/lib/emdenoised}\n"
    file.write_text(flow)
    said = machine.inside("emdenoised-setup", "--drop", "/data/other", check=False)
    assert "edit drop and output yourself" in said and file.read_text() == flow
    assert not (machine.root / "data/other").exists()
    file.write_text(settings)

    said = machine.inside("sh", "/root/bundle/install.sh", "--uninstall", "--service")
    assert "removed: /opt/emdenoised" in said and not (machine.root / "usr/local/bin/emdenoised").is_symlink()
    assert not (machine.root / completion.lstrip("/")).is_symlink()
    assert file.is_file() and (machine.root / "data/denoised").is_dir()
