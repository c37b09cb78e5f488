"""The processes of a training: one, or several started by ``torchrun``, each with a device."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed

from daemon.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Place:
    """Number of this process and of all (from ``torchrun``), and its device."""

    rank: int
    world: int
    device: torch.device

    @staticmethod
    def join() -> "Place":
        """Join the processes that ``torchrun`` started, if any."""
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
        if world > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if cuda else "gloo")
        return Place(rank, world, device)

    def agree(self, value: float) -> float:
        """The first process's value, for all: clocks differ, and all must stop at the same step."""
        if self.world == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64, device=self.device)
        distributed.broadcast(box, 0)
        return float(box.item())

    def gather(self) -> None:
        """Wait for all processes, so that the others find the files of the first."""
        if self.world > 1:
            distributed.barrier()

    @property
    def described(self) -> str:
        """For the record."""
        if self.device.type == "cuda":
            return f"{self.world} × {torch.cuda.get_device_name(self.device)}"
        model = next(
            (row.split(":")[1].strip() for row in _cpuinfo() if row.startswith("model name")), platform.processor()
        )
        return f"{self.world} × {torch.get_num_threads()} threads of {model}"


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Lock a run's folder, and remove remains of killed trainings. Raises ConfigError if it is locked."""
    out.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("RANK", "0")):
        yield  # the first process locks it for all
        return
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{out}: another training is at work there; stop it, or choose another --out") from error
        for part in out.glob(".*.part"):
            part.unlink(missing_ok=True)
        yield


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
