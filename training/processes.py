"""Where a training runs: one process or several that ``torchrun`` started, each with a device."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed


@dataclass(frozen=True, slots=True)
class Place:
    """Which of how many processes this is (``torchrun`` says so), and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @staticmethod
    def join() -> "Place":
        """Join the processes that ``torchrun`` started, if it did."""
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
        if world > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if cuda else "gloo")
        return Place(rank, world, device)

    def agree(self, value: float) -> float:
        """The first process's value, everywhere: clocks differ, and all must stop at the same step."""
        if self.world == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64, device=self.device)
        distributed.broadcast(box, 0)
        return float(box.item())

    @property
    def described(self) -> str:
        """For the record."""
        if self.device.type == "cuda":
            return f"{self.world} × {torch.cuda.get_device_name(self.device)}"
        model = next(
            (row.split(":")[1].strip() for row in _cpuinfo() if row.startswith("model name")), platform.processor()
        )
        return f"{self.world} × {torch.get_num_threads()} threads of {model}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
