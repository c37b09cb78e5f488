"""Tests whether an NVIDIA driver answers, by asking libcuda itself; anything later may crash without one.

Where the kernel's module is loaded and libcuda still fails, the card is not ready yet or cannot be reached. The
daemon waits, and then raises an error: otherwise a service would stay on the processor unnoticed. libcuda
may keep its first answer for the life of a process, so there each attempt is a process of its own.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from daemon.backends.gpu import probe
from daemon.backends.gpu.probe import NO_LIBRARY
from daemon.errors import BackendError

log = logging.getLogger(__name__)

LOADED = Path("/proc/driver/nvidia")
"""Exists where the kernel's NVIDIA module is loaded."""
_EVERY_SECONDS = 2.0
PROBE_SECONDS = 30.0
PROBE = Path(probe.__file__)

_REMEDIES = {
    46: "another program holds the card in exclusive mode: end it, or `nvidia-smi -c DEFAULT`",
    100: "no card can be reached: /dev/nvidia* are missing or they are not open to this user: start "
    "emdenoised-gpu.service or run `sudo nvidia-modprobe -c 0 -u`; `ls -l /dev/nvidia0` shows the group to be in",
    802: "the system's fabric manager is not ready: start nvidia-fabricmanager",
    803: "the driver was updated and its module is still the old one: restart the computer",
    804: "this libcuda does not fit the driver: remove the cuda-compat package, or update the driver",
    999: "the module nvidia-uvm or its nodes are missing: `sudo nvidia-modprobe -c 0 -u`, or restart the computer",
}
"""By code of CUDA's."""


def driver_answers(
    patience: float = 0.0,
    progress: Callable[[], None] = lambda: None,
    *,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether there is a card that answers; False where there is none.

    `patience`: seconds to wait for a card that is present but does not answer. `progress`: called before each
    attempt, at the latest every PROBE_SECONDS + _EVERY_SECONDS, for a watchdog. Raises BackendError with libcuda's code
    and the remedy if the card still does not answer.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):  # somebody hides the cards on purpose
        return False
    if not LOADED.exists():
        return probe.answer() == 0
    end = now() + patience
    progress()
    while (code := ask()) > 0 and now() < end:
        log.warning("%s; it is asked again for %.0f s", code_in_words(code), end - now())
        wait(_EVERY_SECONDS)
        progress()
    if code > 0:
        raise BackendError(
            f"{code_in_words(code)}. backend.kind: cpu uses the processor; `nvidia-smi` shows more about the card"
        )
    return code == 0


def ask() -> int:
    """libcuda's code in a process of its own: 0 if a card answers, NO_LIBRARY without libcuda."""
    environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    try:
        done = subprocess.run(
            [sys.executable, "-I", PROBE], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=PROBE_SECONDS, check=False, env=environment,
        )  # fmt: skip
        return int(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):  # it hangs or crashes
        return 999


def code_in_words(code: int) -> str:
    """A code of libcuda's in words, with the remedy."""
    if code == NO_LIBRARY:
        return f"an NVIDIA driver is loaded ({LOADED}), but its library libcuda.so.1 is not installed"
    remedy = _REMEDIES.get(code, "run `nvidia-smi`, then restart the computer")
    return f"an NVIDIA driver is loaded ({LOADED}), but no card answers (cuInit: CUDA error {code}): {remedy}"


def why_no_gpu(device: int) -> str:
    """Why card number `device` cannot be used, for people."""
    code = ask()
    if code == 0:
        return f"an NVIDIA driver answers, but there is no GPU {device}: `nvidia-smi` lists the cards"
    if LOADED.exists():
        return code_in_words(code)
    return "no NVIDIA driver is loaded on this computer: install one of version 580 or later, or load its module"
