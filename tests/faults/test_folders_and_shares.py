"""Drop, output and state folders that vanish, fill up or lie on a share: on the real process.

The numbers are those of the list of faults in docs/field.md.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_steps import as_tiff, jobs, mounts, poisson, stopped
from site_of_daemon import Site, until


def test_04_a_share_that_vanishes_is_waited_for_without_loss(site: Site) -> None:
    site.write("before.tif", 1)
    process = site.launch("run", staged="quick")
    until(lambda: site.images() == {"before.tif"})
    away = site.root / "away"
    site.drop.rename(away)
    until(lambda: "the service waits for it, nothing is lost" in site.said(process))
    shutil.copy(away / "before.tif", away / "meanwhile.tif")
    assert process.poll() is None
    away.rename(site.drop)
    until(lambda: "meanwhile.tif" in site.images())
    site.write("after.tif", 2)
    until(lambda: site.images() == {"before.tif", "meanwhile.tif", "after.tif"})
    stopped(process)
    site.check_outputs()


def test_05_a_share_that_sends_no_events_is_polled_and_this_is_logged(site: Site) -> None:
    process = site.launch("run", staged="mounts", environ=mounts(site, site.drop, "cifs"))
    until(lambda: "is polled every" in site.said(process))
    assert "cifs sends no events" in site.said(process)
    assert "is watched for events" not in site.said(process)
    site.write("a.tif", 1)
    until(lambda: site.images() == {"a.tif"})
    stopped(process)


def test_06_more_events_than_the_queue_holds_lose_nothing(site: Site) -> None:
    """Moved in at once from beside the drop folder, while the daemon runs: a hundredth of the field test's."""
    beside = site.root / "beside"
    beside.mkdir()
    content = as_tiff(poisson(5, (32, 32)), site.root)
    for number in range(400):
        (beside / f"{number:05}.tif").write_bytes(content + number.to_bytes(4, "little"))
    process = site.launch("run", staged="quick")
    site.ready(process)
    for path in beside.iterdir():
        path.rename(site.drop / path.name)
    until(lambda: len(site.images()) == 400)
    stopped(process)
    site.check_outputs()


def test_07_clocks_an_hour_off_change_nothing(site: Site) -> None:
    process = site.launch("run", staged="quick")
    site.ready(process)
    for name, skew in (("ahead.tif", 3600), ("behind.tif", -3600), ("epoch.tif", -time.time())):
        path = site.write(name, 1)
        os.utime(path, (time.time() + skew, time.time() + skew))
    until(lambda: site.images() == {"ahead.tif", "behind.tif", "epoch.tif"})
    stopped(process)
    site.check_outputs()
    assert len(jobs(site)) == 3


@pytest.fixture
def small_disk(site: Site) -> Iterator[Path]:
    """The output folder on a disk of 400 kB."""
    site.output.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(site.output)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield site.output
    subprocess.run(["umount", "-l", str(site.output)], check=True)


def test_10_a_full_disk_pauses_keeps_the_queue_and_goes_on(site: Site, small_disk: Path) -> None:
    site.configure(retry={"first_seconds": 0.3, "factor": 1.0, "longest_seconds": 0.3}, output={"preview": False})
    filler = small_disk / "filler.bin"
    filler.write_bytes(b"\0" * 330_000)
    for number in range(5):
        site.write(f"{number}.tif", number, shape=(100, 100))  # 40 kB each as a result
    process = site.launch("run", staged="quick")
    until(lambda: "the queue is kept and everything waits" in site.said(process))
    assert process.poll() is None
    # Between two attempts there is none; the next one may have begun.
    until(lambda: not [path for path in small_disk.iterdir() if path.name.startswith(".emdenoised")])
    filler.unlink()
    until(lambda: len(site.images()) == 5)
    stopped(process)
    site.check_outputs()
    assert {job.attempts for job in jobs(site)} == {1}, "a full disk is no fault of the micrograph"


def test_11_an_output_folder_inside_the_drop_folder_is_a_configuration_error(site: Site) -> None:
    site.configure(folders={"drop": "drop", "output": "drop/denoised", "state": "state"})
    status, said = site.finish("run")
    assert status == 78
    assert "lies inside `drop`" in said


NASTY = [
    b"new\nline.tif",
    b"quotes'\"`$(touch x).tif",
    b"-rf --out=x.tif",
    b"not utf-8 \xff\xfe.tif",
    b"\x1b[2J\x07bell.tif",
    b"trailing space .tif",
    b"a%s%d{0}.tif",
    "\u202egnp.tif".encode(),
    "\U0001f52c \u0431\u0435\u043b\u043e\u043a.tif".encode(),
    b"x" * 236 + b".tif",
]


def test_unusual_file_names(site: Site) -> None:
    content = as_tiff(poisson(50), site.root)
    for name in NASTY:
        (Path(os.fsdecode(os.fsencode(site.drop) + b"/" + name))).write_bytes(content)
    too_long = os.fsdecode(b"y" * 251 + b".tif")
    (site.drop / too_long).write_bytes(content)
    status, said = site.finish("once")
    assert status == 1, "one name leaves no room for the endings of JSON and preview"
    assert {os.fsencode(name) for name in site.images()} == set(NASTY)
    (refused,) = [job for job in jobs(site) if job.state == "quarantined"]
    assert refused.path == too_long and "the name is too long for the output disk" in (refused.error or "")
    assert said.count("denoised '") + said.count('denoised "') == len(NASTY)
    assert not (site.root / "x").exists() and "\x1b" not in said


def test_16_the_same_name_in_two_folders_makes_two_results(site: Site) -> None:
    site.write("grid1/a.tif", 1)
    site.write("grid2/a.tif", 2)
    status, said = site.finish("once", staged="quick")
    assert status == 0, said
    assert site.images() == {"grid1/a.tif", "grid2/a.tif"}
    site.check_outputs()


def test_17_a_ledger_on_a_network_share_is_refused(site: Site) -> None:
    site.write("a.tif", 1)
    status, said = site.finish("run", staged="mounts", environ=mounts(site, site.state, "nfs4"))
    assert status == 78
    assert "network filesystem (nfs4)" in said
    assert not site.output.exists() or site.images() == set()
