"""Files that are still being written, held or replaced, and files that are damaged: on the real process.

The numbers are those of the list of faults in docs/field.md. Times that pass here are times the daemon waits by design.
"""

import fcntl
import hashlib
import json
import signal
import time

import mrcfile
import numpy as np
import pytest
import tifffile
from fault_steps import as_tiff, jobs, poisson, stopped
from site_of_daemon import Site, until


def test_01_a_preallocated_copy_is_held_until_its_tail_is_there(site: Site) -> None:
    site.configure(arrival={"settle_seconds": 0.2, "rescan_seconds": 0.5, "suspicious_tail_seconds": 600})
    content = as_tiff(poisson(1), site.root)
    process = site.launch("run", staged="quick")
    site.ready(process)
    with (site.drop / "copy.tif").open("wb") as copy:  # as Windows Explorer: the full size first
        copy.write(content[: len(content) // 2])
        copy.write(b"\0" * (len(content) - len(content) // 2))
        copy.flush()
        until(lambda: "waiting for 'copy.tif'" in site.said(process))
        assert site.images() == set()
        copy.seek(0)
        copy.write(content)
    until(lambda: site.images() == {"copy.tif"})
    stopped(process)
    site.check_outputs()
    assert len(jobs(site)) == 1


def test_01_a_dark_image_and_zero_borders_pass_with_a_remark(site: Site) -> None:
    bordered = poisson(2)
    bordered[-60:] = 0
    tifffile.imwrite(site.drop / "drift-corrected.tif", bordered)
    status, said = site.finish("once", staged="quick")
    assert status == 0, said
    assert site.images() == {"drift-corrected.tif"}
    record = json.loads((site.output / "drift-corrected.tif.json").read_text())
    assert any("zero" in warning for warning in record["warnings"])


def test_02_a_writer_that_opens_and_closes_several_times_is_waited_for(site: Site) -> None:
    site.configure(arrival={"settle_seconds": 1.5, "rescan_seconds": 0.5, "suspicious_tail_seconds": 1.5})
    content = as_tiff(poisson(3), site.root)
    process = site.launch("run", staged="quick")
    site.ready(process)
    target = site.drop / "pieces.tif"
    for part in range(8):
        with target.open("ab") as piece:
            piece.write(content[part * len(content) // 8 : (part + 1) * len(content) // 8])
        time.sleep(0.1)
        assert site.images() == set()
    until(lambda: site.images() == {"pieces.tif"})
    stopped(process)
    site.check_outputs()
    assert [job.revision for job in jobs(site)] == [1]


def test_03_an_event_before_the_write_ends_is_no_reason_to_read(site: Site) -> None:
    site.configure(arrival={"settle_seconds": 1.0, "rescan_seconds": 0.2, "suspicious_tail_seconds": 1.0})
    content = as_tiff(poisson(4, (400, 300)), site.root)
    process = site.launch("run", staged="quick")
    site.ready(process)
    with (site.drop / "slow.tif").open("wb") as slow:
        for start in range(0, len(content), 8192):  # an event for each
            slow.write(content[start : start + 8192])
            slow.flush()
            time.sleep(0.05)
    until(lambda: site.images() == {"slow.tif"})
    stopped(process)
    site.check_outputs()
    (job,) = jobs(site)
    assert job.attempts == 1


def test_08_a_corrupt_file_costs_itself_only(site: Site) -> None:
    process = site.launch("run", staged="impatient")
    site.ready(process)
    content = as_tiff(poisson(6), site.root)
    (site.drop / "corrupt.tif").write_bytes(content[: len(content) // 3])
    site.write("next.tif", 2)
    until(lambda: site.images() == {"next.tif"})
    until(lambda: "quarantined 'corrupt.tif'" in site.said(process))
    stopped(process)
    reasons = {job.path: job.error for job in jobs(site) if job.state == "quarantined"}
    assert list(reasons) == ["corrupt.tif"]
    assert "copy it again" in (reasons["corrupt.tif"] or "")


def test_15_odd_headers_are_read(site: Site) -> None:
    with mrcfile.new(site.drop / "stamp.mrc", poisson(8).astype(np.int16)) as mrc:
        mrc.voxel_size = 2.0
    odd = bytearray((site.drop / "stamp.mrc").read_bytes())
    odd[212:216] = bytes([0x44, 0x00, 0x00, 0x00])  # a machine stamp of 0x44 and nothing more
    (site.drop / "stamp.mrc").write_bytes(odd)
    with mrcfile.new(site.drop / "fei.mrc", poisson(9).astype(np.int16)) as mrc:
        mrc.set_extended_header(np.zeros(768, "V1"))
        mrc.header.exttyp = b"FEI2"
    with mrcfile.new(site.drop / "unsigned.mrc", poisson(10, dose=40_000).view(np.int16)) as mrc:
        mrc.header.dmax = 41_000
    status, said = site.finish("once", staged="quick")
    assert status == 0, said
    assert site.images() == {"stamp.mrc", "fei.mrc", "unsigned.mrc"}
    site.check_outputs()
    with mrcfile.open(site.output / "unsigned.mrc") as mrc:
        assert float(mrc.data.mean()) == pytest.approx(40_000, rel=0.01)


def test_15_a_file_that_another_program_holds_is_waited_for(site: Site) -> None:
    path = site.write("held.tif", 1)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # what the kernel tells the holder when somebody opens it
    try:
        with path.open("r+b") as held:
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)  # as a file server does for a client that writes
            process = site.launch("run", staged="quick")
            until(lambda: "no program has locked the file" in site.said(process))
            assert site.images() == set()
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        until(lambda: site.images() == {"held.tif"})
    finally:
        signal.signal(signal.SIGIO, before)
    stopped(process)
    site.check_outputs()


def test_a_name_used_again_gets_a_new_revision_each_time(site: Site) -> None:
    process = site.launch("run", staged="quick")
    site.ready(process)
    means = []
    for number, name in enumerate(("scan.tif", "scan.r2.tif", "scan.r3.tif")):
        pixels = poisson(30 + number, dose=20.0 + 10 * number)
        beside = site.root / "scratch.tif"
        tifffile.imwrite(beside, pixels)
        beside.replace(site.drop / "scan.tif")
        means.append(pixels.mean())
        until(lambda name=name: name in site.images())  # type: ignore[misc]
    (site.drop / "scan.tif").unlink()
    tifffile.imwrite(site.drop / "scan.tif", poisson(99))
    until(lambda: len(site.images()) == 4)
    stopped(process)
    for name, mean in zip(("scan.tif", "scan.r2.tif", "scan.r3.tif"), means, strict=True):
        assert float(tifffile.imread(site.output / name).mean()) == pytest.approx(mean, rel=1e-3)
    assert [job.state for job in jobs(site)] == ["done"] * 4


def test_a_file_replaced_while_it_is_read_is_denoised_as_the_new_one(site: Site) -> None:
    """It is swapped for another a hundred times, without a pause; the last one stays."""
    process = site.launch("run", staged="quick")
    site.ready(process)
    contents = [as_tiff(poisson(40 + number, dose=10.0 + number), site.root) for number in range(2)]
    for number in range(100):
        (site.root / "scratch.tif").write_bytes(contents[number % 2])
        (site.root / "scratch.tif").replace(site.drop / "swap.tif")
        time.sleep(0.005)
    digest = hashlib.sha256(contents[1]).hexdigest()

    def last() -> bool:
        records = [json.loads(path.read_text()) for path in site.output.glob("swap*.json")]
        return any(record["raw"]["sha256"] == digest for record in records)

    until(last)
    stopped(process)
    for path in site.output.glob("swap*.json"):
        record = json.loads(path.read_text())
        assert record["raw"]["sha256"] in {hashlib.sha256(content).hexdigest() for content in contents}
        image = path.with_suffix("").read_bytes()
        assert record["output"]["sha256"] == hashlib.sha256(image).hexdigest()
