"""Chooses TensorRT or TensorRT-RTX for the card; describes the card; keeps the messages of TensorRT."""

import contextlib
import ctypes
import importlib
import importlib.util
import os
import re
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Literal

from daemon.backends.gpu import probe
from daemon.errors import ConfigError

# Before libcuda is initialised, which otherwise counts the fastest card first, and not as nvidia-smi does.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")

Flavour = Literal["tensorrt", "rtx"]
"""TensorRT for data-centre cards and Jetson, TensorRT-RTX for the RTX cards of workstations."""

MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
EXTRAS: dict[Flavour, str] = {"tensorrt": "gpu", "rtx": "rtx"}
_DRIVER_VERSION = Path("/sys/module/nvidia/version")
RTX_CARDS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""Turing to Blackwell: what TensorRT-RTX is made for. An engine for one of them is built for that one."""
RTX_TARGETS = RTX_CARDS[1:]
"""The cards on which an engine built for no particular card runs, as far as the builder knows them: Turing has other
matrix units, and an engine for it and the others is larger and not as quick."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card as its driver describes it. `capability` is "sm86" and so on; `driver` its version and CUDA's."""

    name: str
    capability: str
    driver: str
    memory: int = field(default=0, compare=False)
    """Bytes; 0 if not known."""

    def __str__(self) -> str:
        return f"{self.name}, driver {self.driver}"

    @property
    def cuda(self) -> int:
        """The CUDA version the driver brings, without its minor number; 0 if it does not state it."""
        found = re.search(r"CUDA (\d+)", self.driver)
        return int(found[1]) if found else 0


def find_gpu(device: int = 0) -> Gpu | None:
    """The card `device`, as libcuda itself reports it, without making a context; None if there is no such card.

    To be asked before TensorRT is: without a driver it hands out objects whose use is a segmentation fault.
    """
    if probe.answer() != 0:
        return None
    cuda = ctypes.CDLL(probe.LIBRARY)
    handle, version, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    answers = (
        cuda.cuDeviceGet(ctypes.byref(handle), device) == 0
        and cuda.cuDeviceGetName(name, len(name), handle) == 0
        and cuda.cuDriverGetVersion(ctypes.byref(version)) == 0
        and cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, handle) == 0
        and cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, handle) == 0
    )
    if not answers:
        return None
    if cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle) != 0:
        memory.value = 0
    driver = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    with contextlib.suppress(OSError):  # not on Jetson
        driver = f"{_DRIVER_VERSION.read_text().strip()} ({driver})"
    return Gpu(name.value.decode(errors="replace"), f"sm{major.value}{minor.value}", driver, memory.value)


def suited(gpu: Gpu) -> Flavour:
    """The flavour made for a card."""
    return "rtx" if gpu.capability in RTX_CARDS else "tensorrt"


def choose(asked: Literal["auto", "tensorrt", "rtx"], gpu: Gpu) -> Flavour:
    """The flavour to use: as asked; for auto, TensorRT-RTX where it is installed and made for the card.

    TensorRT runs on every card, TensorRT-RTX on its own only. Raises ConfigError if none that fits is installed.
    """
    if asked != "auto":
        return asked
    wanted = suited(gpu)
    fitting: list[Flavour] = ["rtx", "tensorrt"] if wanted == "rtx" else ["tensorrt"]
    for flavour in fitting:
        if importlib.util.find_spec(MODULES[flavour]):
            return flavour
    raise ConfigError(
        f"there is an {gpu.name}, but no TensorRT that is made for it: `make gpu`, or pip install "
        f"'emdenoised[{EXTRAS[wanted]}]', or set backend.kind: cpu to use the processor"
    )


def require_driver(flavour: Flavour, gpu: Gpu) -> None:
    """Raises ConfigError where the installed TensorRT is made for a later CUDA than the driver brings.

    TensorRT would only report that CUDA could not be initialised.
    """
    owners = " ".join(packages_distributions().get(MODULES[flavour], []))
    needed = re.search(r"cu(\d+)", owners)
    if needed and 0 < gpu.cuda < int(needed[1]):
        raise ConfigError(
            f"the NVIDIA driver is too old: {gpu.driver}, and {owners} needs CUDA {needed[1]}; update the driver (580 "
            "or later for CUDA 13), or set backend.kind: cpu"
        )


def load_tensorrt(flavour: Flavour) -> Any:
    """The Python module of a flavour. Raises ConfigError, with the command to type, if it is not installed."""
    name = MODULES[flavour]
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"{name} cannot be imported ({error}); pip install 'emdenoised[{EXTRAS[flavour]}]', or choose the other "
            "flavour: rtx is for GeForce RTX and RTX workstation cards, tensorrt for data-centre cards and Jetson"
        ) from error


@cache
def listen(trt: Any) -> Any:
    """The logger for TensorRT: it keeps the last `warnings`, `errors` and `remarks`, and prints nothing.

    One for the whole process: TensorRT takes the first it is given and ignores all others. Call `forget`
    before each request to TensorRT, to drop earlier messages.
    """

    class Listener(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.warnings: deque[str] = deque(maxlen=100)
            self.errors: deque[str] = deque(maxlen=100)
            self.remarks: deque[str] = deque(maxlen=400)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)
            else:
                self.remarks.append(message)

        def forget(self) -> None:
            for said in (self.warnings, self.errors, self.remarks):
                said.clear()

    return Listener()


def last_errors(errors: "deque[str]") -> tuple[str, bool]:
    """The last of TensorRT's errors in one line, and whether memory ran out."""
    text = "; ".join(list(errors)[-3:]) or "it gave no reason"
    memory = any(word in text.lower() for word in ("out of memory", "outofmemory", "bad_alloc", "insufficient memory"))
    return text, memory
