"""A short run of the fuzzer (`make fuzz` is the long one; what that found is in benchmarks/results/fuzz.json)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import TARGETS
from site_of_daemon import ROOT

pytestmark = pytest.mark.field

INPUTS = os.environ.get("EMDENOISED_FUZZ", "30000")


def test_random_bytes_find_nothing_but_our_own_errors(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="needs atheris (Python 3.11 to 3.13)")
    command = [sys.executable, str(ROOT / "tests/fuzz/fuzz.py"), "--runs", INPUTS, "--seed", str(os.getpid())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("'findings': 0") == len(TARGETS)
