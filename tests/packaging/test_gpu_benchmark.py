"""The measurement on a GPU is one command; here it goes through every step on a fake card."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_dry_run_goes_through_every_step_and_says_that_it_was_one(tmp_path: Path) -> None:
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "tests/fakes", "tests/gpu"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry-run", "-o", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["dry_run"]
    assert found["card"].startswith("none")
    assert set(found["networks"]) == {"fast", "ede2018"}
    for name, rows in found["networks"].items():
        assert (tmp_path / f"timeline-{name}.png").stat().st_size > 5_000
        assert rows["flop_a_tile"] > 1e6
        assert rows["torch_seconds_a_batch"]["eager"]
        for row in rows["sides"].values():
            assert len(row["engine"]["seconds"]) >= 4
            assert row["pipeline"]["mean"] > 0
            assert row["daemon"]["frames"] >= 6
            assert set(row["daemon"]["steps"]) == {"read", "prepare", "network", "judge"}


def test_no_figures_of_a_dry_run_are_kept() -> None:
    for path in (ROOT / "benchmarks" / "results").rglob("gpu.json"):
        assert not json.loads(path.read_text())["dry_run"], path
