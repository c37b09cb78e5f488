"""What a daemon beside a microscope must survive: a test for each fault, on the real process where it is about one.

The numbers are those of the project's list of faults. Times that pass here are times the daemon has to wait by design.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile
from fake_gpu import CARD
from site_of_daemon import LIMIT, Site, folder_state, until

from daemon.backends import manifest
from daemon.backends.gpu import provision
from daemon.backends.gpu.engine import load_manifest, manifest_of
from daemon.errors import ConfigError
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.settings.config import BackendConfig


def poisson(seed: int, shape: tuple[int, int] = (96, 80), dose: float = 20.0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(dose, shape).astype(np.uint16)


def as_tiff(pixels: np.ndarray, folder: Path) -> bytes:
    """The bytes of an uncompressed TIFF."""
    path = folder / "scratch.tif"
    tifffile.imwrite(path, pixels)
    content = path.read_bytes()
    path.unlink()
    return content


def stopped(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 0


def jobs(site: Site) -> list[Job]:
    with Ledger(site.state, "read") as ledger:
        return list(ledger.recent(10_000))


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


def mounts(site: Site, folder: Path, kind: str) -> dict[str, str]:
    """What the kernel would list if `folder` were such a share."""
    lines = Path("/proc/self/mountinfo").read_text() + f"999 1 0:99 / {folder} rw - {kind} //server/share rw\n"
    (site.root / "mountinfo").write_text(lines)
    return {"STAGED_MOUNTS": str(site.root / "mountinfo")}


def test_05_a_share_that_sends_no_events_is_polled_and_that_is_said(site: Site) -> None:
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


@pytest.mark.slow
def test_09_kill_9_at_any_instruction_leaves_whole_outputs_or_none(site: Site) -> None:
    rng = np.random.default_rng(9)
    for number in range(60):
        site.write(f"{number:02}.tif", number, shape=(64, 64))
    for _ in range(12):
        process = site.launch("run", staged="quick")
        site.ready(process)
        time.sleep(float(rng.uniform(0, 0.6)))  # a moment nobody chose
        process.kill()
        process.wait(LIMIT)
    status, said = site.finish("once", staged="quick")
    assert status == 0, said
    site.check_outputs()
    assert {job.state for job in jobs(site)} == {"done"}


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


def test_12_a_poisoned_context_ends_the_process_and_the_next_one_does_the_work(site: Site) -> None:
    site.configure(backend={"kind": "tensorrt", "tile": 256})
    for number in range(4):
        site.write(f"{number}.tif", number)
    status, said = site.finish("run", staged="poisoned", environ={"STAGED_CALLS": "6"})
    assert status == 1
    assert "an illegal memory access" in said
    status, said = site.finish("once", staged="poisoned")
    assert status == 0, said
    site.check_outputs()
    record = json.loads((site.output / "0.tif.json").read_text())
    assert record["backend"].startswith("tensorrt")


def test_13_an_engine_of_an_older_driver_or_tensorrt_is_found_out_and_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = manifest.locate("fast")
    settings = BackendConfig(kind="tensorrt", flavour="rtx", tile=256)
    order = provision.Order(settings, folder, manifest.load(folder), tmp_path, CARD, (256, 256), 1)
    real = provision.run

    def without_card(command: list[str], progress: Callable[[], None]) -> None:
        """The real builder; the card's part of the gate is played."""
        if "--gate-only" not in command:
            real(command, progress)
            return
        (engine,) = tmp_path.glob("*.engine")
        about = load_manifest(engine)
        gate = about.gate.model_copy(update={"ran_on": str(CARD), "on_gpu": True})
        manifest_of(engine).write_text(about.model_copy(update={"gate": gate}).model_dump_json())

    monkeypatch.setattr(provision, "run", without_card)
    engine, _ = provision.engine(order)
    assert "there is no such engine yet" in caplog.text
    caplog.clear()
    assert provision.engine(order)[0] == engine
    assert caplog.text == ""
    manifest_of(engine).write_text(load_manifest(engine).model_copy(update={"version": "1.0.0"}).model_dump_json())
    _, about = provision.engine(order)
    assert "it was built for TensorRT 1.0.0" in caplog.text
    assert about.version != "1.0.0"
    manifest_of(engine).unlink()
    with pytest.raises(ConfigError, match="build it yourself"):
        provision.engine(replace(order, settings=settings.model_copy(update={"rebuild": False})))


@pytest.mark.slow
def test_14_memory_does_not_grow_with_what_was_done(site: Site) -> None:
    """300 micrographs, after 100 to warm up; the field test has 10 000."""
    content = as_tiff(poisson(7, (128, 128)), site.root)
    process = site.launch("run", staged="quick")
    site.ready(process)

    def more(first: int, last: int) -> int:
        for number in range(first, last):
            (site.drop / f"{number:05}.tif").write_bytes(content + number.to_bytes(4, "little"))
        until(lambda: len(site.images()) == last)
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    warm, later = more(0, 100), more(100, 400)
    assert later <= 1.05 * warm, f"{warm} kB, then {later} kB"
    stopped(process)


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


def grow(site: Site, name: str, sections: list[np.ndarray]) -> None:
    """Bring a stack to these sections as SerialEM does: first the new ones, then the header that counts them."""
    whole, path = site.root / "scratch.mrc", site.drop / name
    with mrcfile.new(whole, np.stack(sections), overwrite=True) as mrc:
        mrc.set_image_stack()
    content = whole.read_bytes()
    with path.open("r+b" if path.exists() else "wb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.write(content[stream.tell() :])
        stream.flush()
        stream.seek(0)
        stream.write(content[:1024])


def test_of_a_growing_tilt_series_only_new_sections_are_done_whoever_is_killed_meanwhile(site: Site) -> None:
    sections = [poisson(60 + number) for number in range(6)]
    process = site.launch("run", staged="quick")
    site.ready(process)
    grow(site, "tilt.st", sections[:1])
    until(lambda: site.images() == {"tilt.s0001.st"})
    grow(site, "tilt.st", sections[:3])
    until(lambda: site.images() == {f"tilt.s{number:04d}.st" for number in (1, 2, 3)})
    process.kill()
    process.wait()
    written = {path.name: path.stat().st_mtime_ns for path in site.output.glob("[!.]*")}
    grow(site, "tilt.st", sections[:5])
    process = site.launch("run", staged="quick")
    until(lambda: len(site.images()) == 5)
    (site.drop / "tilt.st").touch()
    grow(site, "other.st", sections[3:5])
    until(lambda: len(site.images()) == 7)
    until(lambda: {job.state for job in jobs(site)} == {"done"})
    for name, when in written.items():
        assert (site.output / name).stat().st_mtime_ns == when, f"{name} was made twice"
    grow(site, "../scratch.st", sections[::-1])  # another stack takes the name
    (site.root / "scratch.st").replace(site.drop / "tilt.st")
    until(lambda: "tilt.s0006.r2.st" in site.images())
    stopped(process)
    assert {(job.path, job.revision, job.sections) for job in jobs(site)} == {("tilt.st", 2, 6), ("other.st", 1, 2)}
    assert not list(site.output.glob(".emdenoised*"))
    for number, section in enumerate(sections[:5], 1):
        record = json.loads((site.output / f"tilt.s{number:04d}.st.json").read_text())
        assert record["raw"]["section"] == number and record["raw"]["metadata"]["frames"] == 1
        for again, raw in (("", section), (".r2", sections[-number])):
            with mrcfile.open(site.output / f"tilt.s{number:04d}{again}.st") as mrc:
                assert float(mrc.data.mean()) == pytest.approx(raw.mean(), rel=1e-3)


def test_a_movie_that_grows_and_is_whole_at_every_pause_ends_with_the_sum_of_all_its_frames(site: Site) -> None:
    """A frame is added, then the header counts it: each pause shows a whole file. That it is a movie, its name says."""
    sections = [poisson(20 + number) for number in range(3)]
    process = site.launch("run", staged="quick")
    site.ready(process)
    results = []
    for number in range(1, 4):
        grow(site, "map_movie.mrc", sections[:number])
        results.append("map_movie.mrc" if number == 1 else f"map_movie.r{number}.mrc")
        until(lambda: site.images() == set(results))
    stopped(process)
    for number, name in enumerate(results, 1):
        record = json.loads((site.output / f"{name}.json").read_text())
        assert record["raw"]["metadata"]["frames"] == number
        with mrcfile.open(site.output / name) as mrc:
            assert float(mrc.data.mean()) == pytest.approx(sum(one.mean() for one in sections[:number]), rel=1e-3)


def test_a_stack_that_nobody_calls_a_movie_is_never_summed_however_it_grows(site: Site) -> None:
    """SerialEM adds pieces of a map to a file that says nothing of what they are."""
    sections = [poisson(20 + number) for number in range(3)]
    process = site.launch("run", staged="quick")
    site.ready(process)
    grow(site, "map.mrc", sections[:2])
    expected = {"map.s0001.mrc", "map.s0002.mrc"}
    until(lambda: site.images() == expected)
    grow(site, "map.mrc", sections)
    until(lambda: site.images() == {*expected, "map.s0003.mrc"})
    stopped(process)
    for number, raw in enumerate(sections, 1):
        record = json.loads((site.output / f"map.s{number:04d}.mrc.json").read_text())
        assert record["raw"]["metadata"]["stack"]["are"] == "unknown"
        with mrcfile.open(site.output / f"map.s{number:04d}.mrc") as mrc:
            assert float(mrc.data.mean()) == pytest.approx(raw.mean(), rel=1e-3)


def test_a_name_that_is_used_again_makes_a_result_of_its_own_each_time(site: Site) -> None:
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


def test_a_file_that_is_replaced_while_it_is_read_is_done_as_what_it_became(site: Site) -> None:
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


def test_names_that_nobody_would_choose(site: Site) -> None:
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


def test_18_a_graphics_card_that_is_not_ready_at_boot_is_tried_again_and_named(site: Site) -> None:
    site.configure(backend={"kind": "tensorrt", "tile": 256})
    site.write("a.tif", 1)
    status, said = site.finish("run")
    assert status == 1, "any status but 78 is started again by the unit"
    assert "no NVIDIA driver answers for GPU 0" in said
    assert folder_state(site.output) == {} if site.output.exists() else True
    status, said = site.finish("once", staged="poisoned")  # now it is there
    assert status == 0, said
    site.check_outputs()


def test_19_what_a_hardened_unit_hides_is_found_by_doctor(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from daemon.commands.main import main

    # The driver is loaded, and its devices are out of reach.
    monkeypatch.setattr("daemon.backends.gpu.driver.LOADED", site.drop)
    site.configure(backend={"kind": "tensorrt"})
    assert main(["doctor", "--config", str(site.config)]) == 1
    said = capsys.readouterr().out
    assert "an NVIDIA driver is loaded" in said
    assert "in a service or a container allow the devices /dev/nvidia*" in said


def test_the_service_manager_sees_every_state_of_a_start_that_fails(site: Site) -> None:
    address = site.root / "notify"
    site.configure(backend={"kind": "tensorrt"})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.setblocking(False)
        assert site.finish("run", environ={"NOTIFY_SOCKET": str(address)})[0] == 1
        with pytest.raises(BlockingIOError):
            manager.recv(4096)  # it never said that it was ready


def test_the_profile_says_whether_a_stack_is_summed_or_each_frame_is_a_micrograph(site: Site) -> None:
    auto = {"gain": "auto"}
    tilts = {**auto, "frames": "each", "match": {"folder": "tilts"}}
    site.configure(profiles={"tilts": tilts, "auto": auto}, default_profile="auto")
    frames = [poisson(70 + number) for number in range(3)]
    for folder in ("tilts", "movies"):
        (site.drop / folder).mkdir()
        grow(site, f"{folder}/a.mrc", frames)
    status, said = site.finish("once", staged="quick")
    assert status == 0, said
    assert site.images() == {"movies/a.mrc", *(f"tilts/a.s{number:04d}.mrc" for number in (1, 2, 3))}
    assert json.loads((site.output / "movies/a.mrc.json").read_text())["raw"]["metadata"]["frames"] == 3
    for number in (1, 2, 3):
        record = json.loads((site.output / f"tilts/a.s{number:04d}.mrc.json").read_text())
        assert record["raw"]["section"] == number and record["profile"]["name"] == "tilts"
