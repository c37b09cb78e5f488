"""The real process: signals, kills, hostile files, the service manager's socket, and what users read.

Waiting is always for something to happen, with a generous limit; the only times that pass by design are those before
a kill, whose very point is a moment nobody chose.
"""

import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from site_of_daemon import LIMIT, Site, folder_state, until

from daemon.backends import manifest
from daemon.commands.main import main
from daemon.service import steps


def test_sigterm_drains_and_the_service_manager_is_told(site: Site) -> None:
    address = site.root / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.setblocking(False)
        told: list[str] = []

        def listen(word: str) -> bool:
            while True:
                try:
                    told.append(manager.recv(4096).decode())
                except BlockingIOError:
                    return any(word in message for message in told)

        for number in range(3):
            site.write(f"{number}.tif", number)
        process = site.launch("run", environ={"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "1000000"})
        until(lambda: listen("READY=1") or process.poll() is not None)
        until(lambda: len(site.images()) == 3)
        until(lambda: listen("done, 0 quarantined"))
        alive = sum("WATCHDOG=1" in message for message in told)
        until(lambda: listen("") and sum("WATCHDOG=1" in message for message in told) > alive + 1)  # also when idle

        status, said = site.finish("once")
        assert status == 78 and f"in use by another emdenoised (process {process.pid})" in said

        listen("")  # or the socket's queue, which takes ten messages, would be full
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
        assert listen("STOPPING=1")
    order = [next(i for i, message in enumerate(told) if word in message) for word in ("READY=1", "STOPPING=1")]
    assert order == sorted(order) and "ready, cpu" in told[order[0]]
    said = site.said(process)
    assert said.count("denoised '") == 3 and "Traceback" not in said

    site.check_outputs()
    before = folder_state(site.output)
    assert site.finish("once")[0] == 0
    assert folder_state(site.output) == before, "the second run did something again"


def test_sigterm_in_the_middle_leaves_the_rest_for_the_next_start(site: Site) -> None:
    for number in range(12):
        site.write(f"{number}.tif", number, shape=(200, 200))
    process = site.launch("run")
    until(lambda: site.output.is_dir() and site.images())
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 0
    assert "Traceback" not in site.said(process)
    early = site.images()
    assert site.finish("once")[0] == 0
    site.check_outputs()
    assert len(early) < 12, "too fast to be a test of anything"


def test_kill_9_at_any_moment_loses_nothing_and_does_nothing_twice(site: Site) -> None:
    moments = random.Random(2018)
    number = 0
    for _ in range(4):
        process = site.launch("run")
        if moments.random() < 0.8:
            site.ready(process)
        for _ in range(3):
            site.write(f"{('', 'low/')[number % 2]}{number}{('.tif', '.mrc')[number % 3 == 0]}", number)
            number += 1
            time.sleep(moments.uniform(0, 0.4))
        process.kill()
        process.wait()
        assert "Traceback" not in site.said(process)
    raw = folder_state(site.drop)
    status, said = site.finish("once")
    assert status == 0, said
    site.check_outputs()
    assert folder_state(site.drop) == raw, "a raw file was touched"
    with_status = json.loads(site.finish("status", "--json")[1])
    assert with_status["counts"] == {"pending": 0, "running": 0, "retry": 0, "done": number, "quarantined": 0}


def test_hostile_files_are_quarantined_with_a_reason_and_stop_nothing(site: Site) -> None:
    site.configure(backend={"kind": "cpu", "max_pixels": 50_000})
    whole = site.write("whole.tif", 1).read_bytes()
    garbage = random.Random(1).randbytes(5000)
    claims = bytearray(1024)  # an MRC header of 60000 x 60000 float32
    claims[0:16] = np.array([60_000, 60_000, 1, 2], "<i4").tobytes()
    claims[208:216] = b"MAP \x44\x44\0\0"
    hostile: dict[str, tuple[bytes, str]] = {
        "empty.tif": (b"", "empty"),
        "zeros.mrc": (bytes(4096), "zeros"),
        "garbage.tif": (garbage, "no kind of micrograph"),
        "garbage.mrc": (garbage, "no kind of micrograph"),
        "truncated.tif": (whole[: len(whole) // 2], "places pixels beyond"),
        "header.tif": (whole[:9], ""),
        "picture.tif": (b"\x89PNG\r\n\x1a\n" + garbage, "PNG"),
        "loop.tif": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", ""),
        "claims.mrc": (bytes(claims) + garbage, "missing"),
    }
    for name, (data, _) in hostile.items():
        (site.drop / name).write_bytes(data)
    site.write("too large.tif", 2, shape=(300, 300))
    site.write("too small.tif", 2, shape=(20, 300))
    tifffile.imwrite(site.drop / "constant.tif", np.full((64, 64), 7, np.uint16))
    tifffile.imwrite(site.drop / "nan.tif", np.full((64, 64), np.nan, np.float32))
    (site.drop / "folder.tif").mkdir()
    os.mkfifo(site.drop / "pipe.tif")
    (site.drop / "link.tif").symlink_to(site.drop / "whole.tif")
    expected = {name: words for name, (_, words) in hostile.items()} | {
        "too large.tif": "claims 300 x 300 pixels",
        "too small.tif": "at least 32 x 32",
        "constant.tif": "no noise",
        "nan.tif": "NaN",
    }

    status, said = site.finish("once", staged="impatient")
    assert status == 1 and "ERROR" in said
    assert site.images() == {"whole.tif"}

    report = json.loads(site.finish("status", "--json")[1])
    assert report["counts"]["quarantined"] == len(expected) and report["counts"]["done"] == 1
    reasons = {name: next(line for line in said.splitlines() if f"quarantined {name!r}" in line) for name in expected}
    for name, words in expected.items():
        assert words in reasons[name], reasons[name]
        assert "error(" not in reasons[name].lower() and "errno" not in reasons[name].lower()

    # Quarantined: not read again until it changes.
    site.write("garbage.tif", 3)
    status, said = site.finish("once", staged="impatient")
    assert status == 0, said
    assert site.images() == {"whole.tif", "garbage.tif"} and "quarantined" not in said


def test_a_network_that_fails_at_work_ends_the_process_with_an_error(site: Site) -> None:
    site.write("a.tif", 1)
    status, said = site.finish("run", staged="failing")
    assert status == 1
    assert "stopped: staged: the network cannot go on" in said
    assert site.finish("once")[0] == 0
    site.check_outputs()


def test_an_engine_that_takes_long_to_build_holds_the_start_open_and_a_signal_ends_it(site: Site) -> None:
    address = site.root / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(LIMIT)
        process = site.launch("run", staged="building", environ={"NOTIFY_SOCKET": str(address)})
        assert manager.recv(4096).decode().startswith("EXTEND_TIMEOUT_USEC=60000000\nSTATUS=preparing the network")
        (child,) = children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
    until(lambda: not Path(f"/proc/{child}").exists())
    said = site.said(process)
    assert "builder: measuring" in said
    assert "SIGTERM: stopped before it was ready" in said
    assert "Traceback" not in said
    assert site.finish("once")[0] == 0


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] or [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def test_damaged_weights_end_the_process_with_78(site: Site) -> None:
    weights = site.root / "weights"
    shutil.copytree(manifest.locate("fast"), weights)
    (weights / "model.onnx").write_bytes((weights / "model.onnx").read_bytes()[:-1000])
    site.configure(profiles={"auto": {"gain": "auto", "weights": "./weights"}})
    status, said = site.finish("once")
    assert status == 78 and "model.onnx" in said and "reinstall" in said
    record = json.loads((weights / "manifest.json").read_text())
    record["sha256"]["model.onnx"] = manifest.sha256(weights / "model.onnx")
    (weights / "manifest.json").write_text(json.dumps(record))
    status, said = site.finish("once")
    assert status == 78 and "cannot be loaded" in said


def test_a_bad_configuration_ends_the_process_with_78(site: Site) -> None:
    site.configure(backend={"kind": "abacus"})
    status, said = site.finish("run")
    assert status == 78
    assert "config.yaml" in said and "backend.kind" in said and "abacus" in said


def test_a_tile_the_weights_cannot_use_ends_the_process_with_78(site: Site) -> None:
    site.configure(backend={"kind": "cpu", "tile": 64})
    status, said = site.finish("run")
    assert status == 78 and "backend.tile" in said


# The other commands, in this process


@pytest.fixture
def emdenoised(site: Site, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`emdenoised(command, ...)` → exit status, stdout, stderr."""

    def run(*command: str) -> tuple[int, str, str]:
        status = main([*command, "--config", str(site.config)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_check_says_what_the_settings_mean(site: Site, emdenoised: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = emdenoised("check")
    assert status == 0 and str(site.drop) in out
    assert "profile auto (default): any dose, weights fast, gain auto" in out
    site.configure(colour="red")
    status, _, err = emdenoised("check")
    assert status == 78 and "colour" in err and "config.yaml" in err


def test_check_loads_the_weights_that_the_settings_name(
    site: Site, emdenoised: Callable[..., tuple[int, str, str]]
) -> None:
    profiles = {"low": {"gain": "auto", "weights": "fats"}, "auto": {"gain": "auto", "weights": "fats"}}
    site.configure(profiles=profiles)
    status, out, err = emdenoised("check")
    assert status == 78 and "usable" not in out
    assert f"{site.config}: weights fats of profile auto, low: " in err and "or one of: fast" in err
    weights = site.root / "weights"
    shutil.copytree(manifest.locate("fast"), weights)
    (weights / "model.onnx").write_bytes(b"no network")
    record = json.loads((weights / "manifest.json").read_text())
    record["sha256"]["model.onnx"] = manifest.sha256(weights / "model.onnx")
    (weights / "manifest.json").write_text(json.dumps(record))
    site.configure(profiles={"auto": {"gain": "auto", "weights": "./weights"}})
    status, _, err = emdenoised("check")
    assert status == 78 and "cannot be loaded" in err and not site.state.exists()


def test_status_and_retry(site: Site, emdenoised: Callable[..., tuple[int, str, str]]) -> None:
    status, _, err = emdenoised("status")
    assert status == 1 and "there is no ledger" in err
    tifffile.imwrite(site.drop / "blank.tif", np.full((64, 64), 7, np.uint16))
    site.write("good.tif")
    assert site.finish("once")[0] == 1
    status, out, _ = emdenoised("status")
    assert f"weights of the latest: {manifest.load(manifest.locate('fast'))}\n" in out and "fast-" in out
    assert status == 0 and "1 quarantined" in out and "'blank.tif'" in out and "no noise" in out
    assert f"{site.drop} → {site.output} (settings: {site.config})\n" in out
    assert "'blank.tif': " in out and "/blank.tif" not in out, "the drop folder's name is not repeated"
    status, out, _ = emdenoised("retry", "nothing*")
    assert status == 0 and "nothing quarantined matches" in out
    status, out, _ = emdenoised("retry")
    assert status == 0 and "again: 'blank.tif'" in out
    assert json.loads(emdenoised("status", "--json")[1])["counts"]["pending"] == 1
    assert site.finish("once")[0] == 1  # tried again indeed, and as blank as before
    assert json.loads(emdenoised("status", "--json")[1])["quarantined"][0]["path"] == "blank.tif"


def test_denoise_does_named_files_and_names_what_it_could_not_do(
    site: Site, emdenoised: Callable[..., tuple[int, str, str]]
) -> None:
    good, other = site.write("good.tif", 1), site.write("other.mrc", 2)
    bad = site.root / "bad.tif"
    bad.write_bytes(b"not a micrograph at all")
    out_dir = site.root / "results"
    status, out, _ = emdenoised("denoise", str(good), str(bad), str(other), "/no/such.tif", "-o", str(out_dir))
    assert status == 1
    assert {path.name for path in out_dir.glob("*.[tm][ir][fc]")} == {"good.tif", "other.mrc"}
    assert "No such file" in out and "no kind of micrograph" in out
    status, out, _ = emdenoised("denoise", str(good), "-o", str(out_dir))
    assert status == 0 and "good.tif (existing result)" in out
    status, _, err = emdenoised("denoise", str(good), "-o", str(out_dir), "--profile", "nonsense")
    assert status == 2 and "low, ordinary, auto" in err
    for words in ("r2.tif\n", "existing result"):
        status, out, _ = emdenoised("denoise", str(good), "-o", str(out_dir), "--profile", "low")
        assert status == 0 and words in out and "profile low" in out and "good.r2.tif" in out
    assert json.loads((out_dir / "good.r2.tif.json").read_text())["profile"]["name"] == "low"
    status, out, _ = emdenoised("denoise", str(good), "-o", str(out_dir), "--passes", "8")
    assert status == 0 and "good.r3.tif" in out, "eight passes give another result"
    made = [json.loads((out_dir / f"{name}.json").read_text())["passes"] for name in ("good.tif", "good.r3.tif")]
    assert made == [1, 8]
    before = good.read_bytes()
    status, out, _ = emdenoised("denoise", str(good), "-o", str(good.parent))
    assert status == 1 and good.read_bytes() == before, "a raw file must never be replaced"


def test_denoise_takes_a_folder_with_its_sub_folders_and_skips_what_has_a_result(
    site: Site, emdenoised: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("a.tif", "grid 2/b.mrc", "grid 2/deep/a.tif", "grid 2/a.tif.part")):
        (site.drop / name).parent.mkdir(parents=True, exist_ok=True)
        (site.drop / name).write_bytes(site.write(f"source{Path(name).suffixes[0]}", seed).read_bytes())
    for one in site.drop.glob("source.*"):
        one.unlink()
    results = site.drop / "results"  # of which nothing is denoised again
    results.mkdir()
    site.write("results/old.tif", 7)
    status, out, _ = emdenoised("denoise", str(site.drop), "-o", str(results))
    assert status == 0 and "[1/3] a.tif ... " in out and "[3/3] grid 2/deep/a.tif ... " in out
    made = {str(path.relative_to(results)) for path in results.rglob("*.json")}
    assert made == {"a.tif.json", "grid 2/b.mrc.json", "grid 2/deep/a.tif.json"}

    def network(*arguments: object) -> None:
        raise AssertionError("the network runs for a result that exists")

    before = folder_state(results)
    monkeypatch.setattr("daemon.backends.cpu.CpuBackend.denoise", network)
    status, out, _ = emdenoised("denoise", str(site.drop), "-o", str(results))
    assert status == 0 and out.count("(existing result)") == 3 and "counts per pixel, profile auto" in out
    assert folder_state(results) == before


def test_folders_that_denoise_cannot_take_are_wrong_arguments(
    site: Site, emdenoised: Callable[..., tuple[int, str, str]]
) -> None:
    status, _, err = emdenoised("denoise", str(site.drop), "-o", str(site.root / "results"))
    assert status == 2 and "has no micrographs; their names end in .tif" in err
    site.write("a.tif")
    status, _, err = emdenoised("denoise", str(site.drop), "-o", str(site.drop))
    assert status == 2 and "is the folder for the results, too" in err


def test_several_folders_keep_their_names_apart(site: Site, emdenoised: Callable[..., tuple[int, str, str]]) -> None:
    one, other = site.write("monday/x.tif", 1), site.write("tuesday/x.tif", 2)
    status, _, _ = emdenoised("denoise", str(one.parent), str(other.parent), "-o", str(site.root / "results"))
    assert status == 0
    assert (site.root / "results/monday/x.tif").exists() and (site.root / "results/tuesday/x.tif").exists()


def test_names_and_words_the_terminal_cannot_show_are_written_out(site: Site) -> None:
    odd = site.root / os.fsdecode(b"odd\xff.tif")
    odd.write_bytes(site.write("a.tif").read_bytes())
    environ = {"PYTHONIOENCODING": "ascii:strict"}
    status, said = site.finish("denoise", str(odd), "-o", str(site.root / "results"), environ=environ)
    assert status == 0 and "\\u2192" in said and "odd\\udcff.tif" in said


def test_memory_that_runs_out_costs_that_micrograph(
    site: Site, emdenoised: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = steps.read

    def read(config: Any, weights: Any, path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "huge.tif":
            raise MemoryError
        return real(config, weights, path, *arguments, **options)

    monkeypatch.setattr(steps, "read", read)
    files = [str(site.write(name, seed)) for seed, name in enumerate(("huge.tif", "good.tif"))]
    status, out, _ = emdenoised("denoise", *files, "-o", str(site.root / "results"))
    assert status == 1 and "not enough memory" in out and (site.root / "results/good.tif").exists()


def test_once_without_a_drop_folder_says_so(site: Site) -> None:
    site.drop.rmdir()
    process = site.launch("run")
    site.ready(process)
    process.terminate()
    assert process.wait(LIMIT) == 0
    first, *_ = site.said(process).splitlines()
    assert f"{site.drop}: the drop folder is missing; mount the share it is on, or create it (--create-drop)" in first
    said = site.said(process)
    assert said.count("drop folder is missing") == 1
    assert f"waiting for the drop folder {site.drop}, results go to" in said
    status, said = site.finish("once")
    assert status == 1 and "the drop folder is missing" in said
    assert site.finish("once", "--create-drop")[0] == 0
