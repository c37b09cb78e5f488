"""The measurement on a GPU is one command; here it goes through every step without one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import libcuda
import pycuda_wheel
import pytest

ROOT = Path(__file__).parents[2]


def run(out: Path, *paths: Path, **environment: str) -> dict[str, Any]:
    """The benchmark's figures."""
    own = [ROOT, ROOT / "tests/fakes", ROOT / "tests/gpu"]
    found = os.pathsep.join(map(str, [*paths, *own]))
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry-run", "-o", str(out)],
        env={**os.environ, "PYTHONPATH": found, **environment}, capture_output=True, text=True, timeout=880,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    figures: dict[str, Any] = json.loads((out / "gpu.json").read_text())
    return figures


def check(found: dict[str, Any], out: Path) -> None:
    assert found["dry_run"]
    assert set(found["networks"]) == {"fast", "ede2018"}
    assert found["networks"]["ede2018"]["batch"] == 4
    for name, rows in found["networks"].items():
        assert (out / f"timeline-{name}.png").stat().st_size > 5_000
        assert rows["flop_a_tile"] > 1e6
        assert rows["torch_seconds_a_batch"]["eager"]
        assert set(rows["by_hits"]) == {"0", "10", "100", "1000"}
        for row in rows["sides"].values():
            assert len(row["engine"]["seconds"]) >= 4
            assert row["pipeline"]["mean"] > 0
            assert row["daemon"]["frames"] >= 6
            assert set(row["daemon"]["steps"]) == {"read", "prepare", "network", "judge"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_takes_every_step_and_is_marked_as_dry(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert found["card"].startswith("none")
    check(found, tmp_path)


@pytest.mark.field
@pytest.mark.timeout(1500)
def test_with_the_real_pycuda_and_the_real_builder_it_goes_through_on_a_stand_in_driver(tmp_path: Path) -> None:
    packages, driver, out = tmp_path / "packages", tmp_path / "driver", tmp_path / "out"
    driver.mkdir()
    wheel = pycuda_wheel.build(libcuda.CACHE)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", packages, wheel]
    subprocess.run(command, check=True, timeout=200)
    for known in packages.glob("numpy*"):  # the environment's own
        known.rename(tmp_path / known.name)
    (extension,) = packages.glob("pycuda/_driver.*.so")
    libcuda.build(driver, extension)
    fakes = ROOT / "tests/fakes/stand_in_driver"
    found = run(out, fakes, packages, LD_LIBRARY_PATH=str(driver), CUDA_VISIBLE_DEVICES="0")
    assert (found["card"], found["runs"]) == ("Fake card", "TensorRT")
    assert found["networks"]["fast"]["backend"].startswith("tensorrt: TensorRT-RTX 1.")
    check(found, out)


def test_no_figures_of_a_dry_run_are_kept() -> None:
    for path in (ROOT / "benchmarks" / "results").rglob("gpu.json"):
        assert not json.loads(path.read_text())["dry_run"], path
