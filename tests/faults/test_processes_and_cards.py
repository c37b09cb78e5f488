"""Processes that are killed, a graphics card that fails, and memory: on the real process.

The numbers are those of the list of faults in docs/field.md.
"""

import json
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import CARD
from fault_steps import as_tiff, jobs, poisson, stopped
from site_of_daemon import LIMIT, Site, folder_state, until

from daemon.backends import manifest
from daemon.backends.gpu import provision
from daemon.backends.gpu.engine import load_manifest, manifest_of
from daemon.errors import ConfigError
from daemon.settings.config import BackendConfig


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
    order = provision.EngineOrder(settings, folder, manifest.load(folder), tmp_path, CARD, (256, 256), 1)
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
