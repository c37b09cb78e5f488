"""A training on a lent card, rehearsed on the processor: packed here, run as there, brought back and exported from."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file

from daemon.errors import ConfigError
from training import curve
from training.data import simulate
from training.data.truths import Truth, bin2, load_truths
from training.distributed import Place
from training.lease import Deadline, compiles, scenes_of
from training.loop import CHECKPOINT, RECORD, WEIGHTS
from training.network import build
from training.packed import Pack, cut, pack, unpack
from training.presets import LEASE
from training.state import read

ARGUMENTS = {"widths": [8, 16], "blocks": [1, 1]}
TINY = replace(LEASE, arguments=ARGUMENTS, batch=4, crop=64, scenes=60, finish={"crop": 96, "batch": 2})
THERE = """
import sys
for name in ("pydantic", "watchdog", "imagecodecs", "mrcfile", "tifffile"):
    sys.modules[name] = None
from training.lease import main
main()
"""
"""The command, without what the lent machine lacks."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, scene in zip("abc", simulate.bank(40, 3, 200), strict=True):
        tifffile.imwrite(folder / f"{name}_1.tif", (5000 * scene).astype(np.uint16))
    return folder


def launch(*arguments: "str | Path") -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)


def there(pack: Path, back: Path, work: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    return launch("-c", THERE, "run", pack, "--out", back, "--work", work, "--processes", "1", "--no-compile", *more)


@pytest.mark.slow
def test_packed_here_run_there_and_brought_back(data: Path, tmp_path: Path) -> None:
    changes = ["arguments=" + json.dumps(ARGUMENTS), "batch=4", "crop=64", "scenes=57", "validate_every=2",
               "validation_crops=4", 'finish={"crop": 96, "batch": 2}']  # fmt: skip
    settings = [part for change in changes for part in ("--set", change)]
    packed = launch("-m", "training.lease", "pack", data, "--out", tmp_path / "lease.npz", "--limit", "1", *settings)
    assert packed.returncode == 0, packed.stderr
    back, work = tmp_path / "back", tmp_path / "work"
    first = there(tmp_path / "lease.npz", back, work, "--steps", "6", "--finish", "0.34", "--save-every", "0")
    assert first.returncode == 0, first.stderr
    assert "validation_gain_low" in first.stdout, "progress, without a terminal"
    names = {path.relative_to(back).as_posix() for path in back.rglob("*") if path.is_file()}
    run = {f"run/{name}" for name in (WEIGHTS, RECORD, curve.CURVE, curve.PICTURE)}
    assert names == {CHECKPOINT, "evaluation.json", "log.txt", *run}
    record = json.loads((back / "run" / RECORD).read_text())
    assert record["steps"] == 6
    assert record["recipe"]["course"] == "decay"
    assert len(record["micrographs"]) == 2
    build("fast", record["recipe"]["arguments"]).load_state_dict(load_file(back / "run" / WEIGHTS))
    assert [row["step"] for row in curve.read(back / "run")] == [2, 4, 6]
    assert read(back / CHECKPOINT)["step"] == 4, "of the plateau, which another call prolongs"
    assert "validation_gain_camera" in json.loads((back / "evaluation.json").read_text())["trained"]
    # Another machine goes on from the checkpoint that was brought back.
    second = there(tmp_path / "lease.npz", tmp_path / "again", tmp_path / "elsewhere", "--steps", "8",
                   "--finish", "0", "--resume", str(back / CHECKPOINT))  # fmt: skip
    assert second.returncode == 0, second.stderr
    assert "resumed at step 4" in second.stdout
    assert read(tmp_path / "again" / CHECKPOINT)["step"] == 8


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_weights_record_and_curve(data: Path, tmp_path: Path) -> None:
    truths = load_truths(data)
    pack(Pack(replace(TINY, validate_every=2, validation_crops=4), truths[:2], truths[2:], {}), tmp_path / "p", 10**6)
    command = [sys.executable, "-c", THERE, "run", str(tmp_path / "p"), "--out", str(tmp_path / "back"),
               "--work", str(tmp_path / "work"), "--processes", "1", "--no-compile", "--save-every", "0",
               "--minutes", "60"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        rows = 0
        for line in process.stdout:
            rows += "validation_gain_low" in line
            if rows == 3:
                break
        process.kill()
    run = tmp_path / "back" / "run"
    build("fast", ARGUMENTS).load_state_dict(load_file(run / WEIGHTS))
    assert json.loads((run / RECORD).read_text())["steps"] >= 6
    assert len(curve.read(run)) >= 2
    assert read(tmp_path / "back" / CHECKPOINT)["step"] >= 4


def test_a_pack_holds_micrographs_to_a_fraction_of_their_noise_and_their_further_versions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scene = simulate.bank(4, 1, 128)[0]
    noisy = (scene + rng.normal(0, 0.03, scene.shape)).clip(0, 1).astype(np.float32)
    truths = [
        Truth("n", "s", (noisy, bin2(bin2(noisy))), (1, 4)),
        Truth("q", "s", (scene[:100, :77],), (2,)),
    ]
    size = pack(Pack(TINY, truths, truths[:1], {"micrographs": ["n", "q"]}, b"weights"), tmp_path / "p", 10**6)
    assert (tmp_path / "p").stat().st_size == size
    back = unpack(tmp_path / "p")
    assert (back.recipe, back.start, back.provenance) == (TINY, b"weights", {"micrographs": ["n", "q"]})
    assert [(t.name, t.source, t.binned) for t in back.truths] == [("n", "s", (1, 4)), ("q", "s", (2,))]
    assert [one.shape for one in back.truths[0].versions] == [(128, 128), (32, 32)]
    error = back.truths[0].versions[0] - noisy
    assert error.std() < 0.03 / 4 / 12**0.5 * 1.3
    assert abs(np.mean(error)) < 1e-3
    assert np.abs(back.truths[0].versions[1] - truths[0].versions[1]).max() < 0.01
    assert np.abs(back.truths[1].versions[0] - scene[:100, :77]).max() < 1 / 64
    assert len(back.unseen) == 1


def test_a_pack_is_made_coarser_until_it_is_small_enough_and_refused_if_that_does_not_help(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0.5, 0.03, (200, 200)).clip(0, 1).astype(np.float32)
    content = Pack(TINY, [Truth("n", "s", (noise,), (1,))], [], {})
    fine = pack(content, tmp_path / "p", 10**6)
    coarse = pack(content, tmp_path / "p", fine - 1000)
    assert coarse < fine
    assert unpack(tmp_path / "p").truths[0].versions[0].std() == pytest.approx(0.03, rel=0.1)
    with pytest.raises(ConfigError, match=r"1 micrographs need .* MiB, more than the .* allowed.*--largest"):
        pack(content, tmp_path / "p", 1000)


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4 and then nothing"])
def test_a_pack_that_is_none_is_refused(tmp_path: Path, content: "bytes | None") -> None:
    if content is not None:
        (tmp_path / "p").write_bytes(content)
    with pytest.raises(ConfigError, match="no pack, or damaged"):
        unpack(tmp_path / "p")


def test_large_micrographs_are_cut_to_their_middle() -> None:
    image = np.arange(40 * 60, dtype=np.float32).reshape(40, 60) / 2400
    small = cut(Truth("n", "s", (image, bin2(image)), (1, 2)), 48)
    assert np.array_equal(small.versions[0], image[:, 6:54])
    assert small.versions[1].shape == (20, 24)


def test_scenes_are_the_same_whatever_process_draws_a_piece_of_them() -> None:
    recipe = replace(TINY, scenes=58)
    first, last = scenes_of(recipe, 0), scenes_of(recipe, 56)
    assert (len(first), len(last)) == (56, 2)
    assert np.array_equal(last[1], scenes_of(recipe, 56)[1])
    assert not np.array_equal(first[0], last[0])


def test_time_is_shared_between_plateau_and_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("training.lease.time.monotonic", lambda: now[0])
    deadline = Deadline(700.0, None, 0.25)
    assert deadline.plateau(60.0).minutes == pytest.approx((60 + 450) / 60), "earlier calls are counted in"
    now[0] = 580.0
    assert deadline.decay().minutes == pytest.approx(2)
    now[0] = 701.0
    with pytest.raises(ConfigError, match="give more"):
        deadline.decay()
    assert (Deadline(0.0, 8, 0.25).plateau(0).steps, Deadline(0.0, 8, 0.25).decay().steps) == (6, 2)


def test_it_trains_without_a_compiler_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(0, 1, torch.device("cpu"))
    asked = []

    def absent(module: torch.nn.Module, dynamic: bool) -> torch.nn.Module:
        asked.append(module)
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", absent)
    assert not compiles(TINY, place)
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: asked.append(module) or module)
    assert compiles(TINY, place)
    assert len(asked) == 3, "plateau and finish are both tried"
