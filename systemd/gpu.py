"""`make gpu`: what the graphics card of this computer needs, installed into the environment whose Python runs this.

Card → flavour of TensorRT → packages. pycuda is compiled first, once (`pycuda_wheel`). With --stand-in, for tests and
benchmarks, a TensorRT that cannot be had is reported and is no fault: PyTorch stands in for it there.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pycuda_wheel
from pycuda_wheel import PYCUDA, BuildError, run

from daemon.backends.gpu.driver import why_no_gpu
from daemon.backends.gpu.nvidia import EXTRAS, MODULES, Flavour, find_gpu, suited
from daemon.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
LEAST_CUDA = 13
PACKAGES: dict[Flavour, str] = {"rtx": "tensorrt-rtx-cu13", "tensorrt": "tensorrt-cu13"}


def install(device: int, cache: Path, stand_in: bool) -> str:
    """Install and report in one line what was chosen. Raises BuildError, ConfigError."""
    card = find_gpu(device)
    if card is None:
        raise ConfigError(why_no_gpu(device))
    flavour = suited(card)
    print(f"{card} ({card.capability}): {PACKAGES[flavour]} and pycuda {PYCUDA}", flush=True)
    if card.cuda < LEAST_CUDA:
        raise ConfigError(f"the NVIDIA driver is too old: {card.driver}; update it to 580 or later (CUDA {LEAST_CUDA})")
    pip = (sys.executable, "-m", "pip", "install", "--quiet")
    if not _imports("pycuda.driver"):
        run(*pip, pycuda_wheel.build(cache), failing="pycuda was built and cannot be installed")
    needed = _requirements(EXTRAS[flavour])
    tensorrt = needed.pop(PACKAGES[flavour])
    run(*pip, *needed.values(), failing=f"{', '.join(needed)} cannot be installed: is the package index reachable?")
    if not _imports(MODULES[flavour]):
        try:
            run(*pip, tensorrt,
                failing=f"{PACKAGES[flavour]} cannot be installed; it must be had from the package index"
                + ("" if flavour == "rtx" else " and from NVIDIA's own index, to which it refers"))  # fmt: skip
        except BuildError as error:
            if not stand_in:
                raise
            return f"{error}\nPyTorch stands in for {PACKAGES[flavour]}"
    return f"{PACKAGES[flavour]} and pycuda are installed for {card.name}"


def _requirements(extra: str) -> dict[str, str]:
    """Package → requirement, of an extra of the installed emdenoised, whose own installation stays as it is."""
    found = [one for one in metadata.requires("emdenoised") or () if re.search(rf"extra == ['\"]{extra}['\"]", one)]
    return {re.split(r"[^\w.-]", one)[0]: one.partition(";")[0].strip() for one in found}


def _imports(module: str) -> bool:
    """In a process of its own: what is installed meanwhile must be seen."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return False
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=int, default=0, help="number of the card, as nvidia-smi counts (0)")
    parser.add_argument("--cache", type=Path, default=ROOT / "build", help="keeps the built pycuda (build)")
    parser.add_argument("--stand-in", action="store_true", help="go on without TensorRT: for tests and benchmarks")
    options = parser.parse_args()
    try:
        print(install(options.device, options.cache, options.stand_in))
    except (BuildError, ConfigError) as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
