"""A real SMB server on loopback, seen through a FUSE client that sends no events; and a computer's clock that jumps.

Needs root, samba and smbnetfs, or a C compiler; skipped, and said so, without.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from site_of_daemon import Site, until

pytestmark = [pytest.mark.field, pytest.mark.timeout(600)]

SERVER = """\
[global]
  interfaces = lo
  bind interfaces only = yes
  smb ports = 445
  disable netbios = yes
  map to guest = Bad User
  guest account = root
  lock directory = {0}/var
  state directory = {0}/var
  cache directory = {0}/var
  private dir = {0}/var
  pid directory = {0}/var
  ncalrpc dir = {0}/var/ncalrpc
  log file = {0}/var/log
[camera]
  path = {0}/camera
  read only = yes
  guest ok = yes
"""


class Share:
    """A camera PC's folder, exported read-only: `camera` as that PC sees it, `mounted` as this one does."""

    def __init__(self, root: Path) -> None:
        self.root, self.camera, self._mount = root, root / "camera", root / "mnt"
        self.mounted = self._mount / "127.0.0.1" / "camera"
        for folder in (self.camera, self._mount, root / "var", root / "home/.smb"):
            folder.mkdir(parents=True)
        (root / "smb.conf").write_text(SERVER.format(root))
        (root / "home/.smb/smb.conf").write_text("[global]\nclient min protocol = SMB2\nname resolve order = host\n")
        (root / "home/.smb/smbnetfs.conf").write_text("")
        for file in (root / "home/.smb").iterdir():
            file.chmod(0o600)
        self._server: subprocess.Popen[bytes] | None = None
        self._client: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        with (self.root / "smbd.txt").open("wb") as said:
            self._server = subprocess.Popen(
                ["smbd", "-F", "--no-process-group", "-s", str(self.root / "smb.conf")],
                stdin=subprocess.PIPE, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        until(lambda: _listens(445))

    def stop_serving(self) -> None:
        """As a power cut of the camera PC: all its processes at once."""
        if self._server is not None:
            os.killpg(self._server.pid, 9)
            self._server.wait()
            subprocess.run(["pkill", "-9", "-f", f"smbd.*{self.root}"], check=False)
            self._server = None

    def mount(self) -> None:
        self._client = subprocess.Popen(
            ["smbnetfs", "-f", str(self._mount), "-o", "direct_io"],
            env={**os.environ, "HOME": str(self.root / "home")},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(self._mount.is_mount)
        until(self.mounted.is_dir)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self._mount)], check=False)
        if self._client is not None:
            self._client.kill()
            self._client.wait()
        self.stop_serving()


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("smbd", "smbnetfs"))) or not Path("/dev/fuse").exists():
        pytest.skip("needs root, samba, smbnetfs and FUSE")
    if _listens(445):
        pytest.skip("port 445 is in use")
    one = Share(tmp_path / "share")
    try:
        one.serve()
        one.mount()
        yield one
    finally:
        one.close()


def test_a_real_smb_share_is_polled_and_survives_its_server(site: Site, share: Share) -> None:
    site.configure(
        folders={"drop": str(share.mounted), "output": "output", "state": "state"},
        output={"preview": False},
        arrival={"settle_seconds": 0.5, "rescan_seconds": 1.0, "poll_seconds": 0.5},
        retry={"first_seconds": 0.5, "factor": 1.0, "longest_seconds": 0.5},
    )

    def save(name: str, seed: int) -> None:
        """In two pieces, as a camera does."""
        path = site.write(f"../{name}", seed)
        content = path.read_bytes()
        path.unlink()
        with (share.camera / name).open("wb") as target:
            target.write(content[: len(content) // 2])
            target.flush()
            os.fsync(target.fileno())
            target.write(content[len(content) // 2 :])

    save("before.tif", 1)
    process = site.launch("run", staged="quick")
    site.ready(process)
    until(lambda: site.images() == {"before.tif"})
    assert "is polled every" in site.said(process) and "fuse.smbnetfs sends no events" in site.said(process)
    save("live.tif", 2)
    until(lambda: "live.tif" in site.images())

    share.stop_serving()
    until(lambda: "the service waits for it" in site.said(process))
    for number in range(5):
        save(f"meanwhile-{number}.tif", 10 + number)
    share.serve()
    until(lambda: len(site.images()) == 7)
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 0
    site.drop = share.camera
    site.check_outputs()


def test_a_clock_that_jumps_an_hour_back_and_forth_changes_nothing(site: Site, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library, hands = tmp_path / "wall_clock.so", tmp_path / "clock"
    source = Path(__file__).parents[1] / "fakes" / "wall_clock.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    hands.write_text("0")
    site.configure(
        output={"preview": False}, retry={"first_seconds": 0.2, "factor": 1.0, "longest_seconds": 0.2, "attempts": 3}
    )
    process = site.launch("run", staged="quick", environ={"LD_PRELOAD": str(library), "WALL_CLOCK": str(hands)})
    site.ready(process)
    for number, offset in enumerate(("3600", "-3600", "86400", "-86400", "0")):
        beside = hands.with_suffix(".new")
        beside.write_text(offset)
        beside.replace(hands)
        site.write(f"{number}.tif", number)
        # The line in the log comes after the image: the clock must not jump in between.
        until(lambda number=number: site.said(process).count("denoised '") == number + 1)  # type: ignore[misc]
    assert len(site.images()) == 5
    stamps = [line.split()[0] for line in site.said(process).splitlines() if "denoised '" in line]
    assert len(set(stamps)) == 3, "the clock did not jump"
    process.terminate()
    assert process.wait(60) == 0
    site.check_outputs()
