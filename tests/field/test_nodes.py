"""Training on several nodes: two agents of torchrun on this computer, a worker that is killed, and mistakes."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from site_of_daemon import ROOT, free_port

pytest.importorskip("torch")

from training import curve
from training.loop import CHECKPOINT, WEIGHTS

pytestmark = [pytest.mark.field, pytest.mark.timeout(1200)]

TINY = [
    "--set", 'arguments={"widths": [8, 16], "blocks": [1, 1]}', "--set", "batch=4", "--set", "crop=64",
    "--set", "simulated=0", "--set", "validate_every=6", "--set", "validation_crops=4",
]  # fmt: skip


class Nodes:
    """Agents that meet at one port, as `srun torchrun` starts them, and what each says."""

    def __init__(self, root: Path, *command: str, restarts: int = 3) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        meeting = f"127.0.0.1:{free_port()}"
        self._said = [root / f"node-{number}.txt" for number in (0, 1)]
        self._agents = [
            subprocess.Popen(
                [
                    sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
                    f"--max-restarts={restarts}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}",
                    "--rdzv-id=1", "-m", "training", *command,
                ],
                stdout=said.open("wb"), stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
            )
            for said in self._said
        ]  # fmt: skip

    def workers(self) -> list[int]:
        """Processes that train."""
        agents = {agent.pid for agent in self._agents}
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent in agents:
                found.append(int(process.name))
        return found

    def until(self, condition: Callable[[], object]) -> None:
        """Wait as long as both agents run: four processes load torch, which a busy computer takes minutes for."""
        while not condition():
            assert all(agent.poll() is None for agent in self._agents), self.said
            time.sleep(0.1)

    def wait(self) -> list[int]:
        return [agent.wait() for agent in self._agents]

    @property
    def said(self) -> str:
        return "".join(said.read_text(errors="replace") for said in self._said)

    def end(self) -> None:
        for agent in self._agents:
            if agent.poll() is None:
                agent.terminate()
                agent.wait(60)


@pytest.fixture
def nodes(tmp_path: Path) -> Any:
    started: list[Nodes] = []

    def start(*command: str, **more: Any) -> Nodes:
        started.append(Nodes(tmp_path, *command, **more))
        return started[-1]

    yield start
    for one in started:
        one.end()


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(
    nodes: Callable[..., Nodes], tmp_path: Path, write: Callable[..., Path]
) -> None:
    for name in "abc":
        write(tmp_path / f"data/{name}.tif", ord(name), 5000.0, (200, 200))
    out = tmp_path / "run"
    both = nodes(
        "fit", str(tmp_path / "data"), "--out", str(out), "--finish", "0", "--steps", "12", "--save-every", "0", *TINY
    )
    both.until((out / CHECKPOINT).exists)
    os.kill(both.workers()[0], signal.SIGKILL)
    assert both.wait() == [0, 0]
    assert re.search(r"resumed at step [1-9]", both.said)
    assert (out / WEIGHTS).exists() and not list(out.glob(".*.part"))
    steps = [row["step"] for row in curve.read(out)]
    assert steps == sorted(set(steps)) and steps[-1] == 12


@pytest.mark.parametrize(
    ("mistake", "message"),
    [(["--set", "batch=5"], "a batch of 5 cannot be shared evenly by 2 processes"), (["--steps", "x"], "invalid int")],
)
def test_a_mistake_ends_all_at_once(
    nodes: Callable[..., Nodes], tmp_path: Path, write: Callable[..., Path], mistake: list[str], message: str
) -> None:
    for name in "abc":
        write(tmp_path / f"data/{name}.tif", ord(name), 5000.0, (200, 200))
    both = nodes("fit", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--steps", "2", *TINY, *mistake)
    assert 0 not in both.wait()
    assert 1 <= both.said.count(message) <= 2, "once for each node, not four times"
