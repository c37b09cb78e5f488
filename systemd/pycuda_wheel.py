"""pycuda as a wheel: it is on the index as source only, so it is compiled, once, and kept.

Its headers come from packages on the index, so neither a CUDA toolkit nor a GPU is needed; a C++ compiler and Python's
own headers are. `build` does all of it; `headers` is the folder with cuda.h.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

PYCUDA = "2026.1"
CUDA = "13.0"
"""The oldest that TensorRT's packages for CUDA 13 run on: pycuda must not ask libcuda for what came later."""
PACKAGES = ("nvidia-cuda-runtime", "nvidia-cuda-crt", "nvidia-cuda-profiler-api")
"""In which cuda.h and what it and pycuda include are found."""
STUB = "libcuda.so"
"""What pycuda is linked to: an empty library of that name. The real one comes with the driver, where it runs."""


class BuildError(Exception):
    """What is missing, and what to do about it."""


@dataclass(frozen=True)
class Toolkit:
    """Where `include/cuda.h` is, and of which CUDA."""

    root: Path
    version: str


def run(*command: str | Path, env: dict[str, str] | None = None, failing: str) -> None:
    """Run a program; raises BuildError with `failing` and its last words."""
    done = subprocess.run(
        [str(word) for word in command], env={**os.environ, **(env or {})}, capture_output=True, text=True
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise BuildError(f"{failing}\n{said}")


def headers(cache: Path) -> Toolkit:
    """CUDA's headers: those of CUDA_HOME if it is set, else from the index, else of a toolkit on this computer."""
    cache = cache.resolve()
    stated = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_ROOT")
    if stated:
        if found := _toolkit(Path(stated)):
            return found
        raise BuildError(f"CUDA_HOME is {stated}, which has no include/cuda.h: correct it, or unset it")
    try:
        return _from_index(cache)
    except BuildError as error:
        nvcc = shutil.which("nvcc")
        guessed = [Path(nvcc).resolve().parents[1]] if nvcc else []
        if found := next(filter(None, map(_toolkit, [*guessed, Path("/usr/local/cuda")])), None):
            return found
        raise BuildError(
            f"{error}\npycuda has to be compiled with CUDA's headers (cuda.h): make the package index reachable, or "
            "install a CUDA toolkit and set CUDA_HOME to its folder, or use the processor (backend.kind: cpu; bundle: "
            "FLAVOUR=cpu)"
        ) from error


def build(cache: Path) -> Path:
    """The wheel of pycuda for this Python; compiled once (minutes) and kept in `cache`. Raises BuildError."""
    cache = cache.resolve()
    name = f"pycuda-{PYCUDA}-{sys.implementation.cache_tag}-{platform.machine()}"
    kept = sorted(cache.glob(f"{name}-cuda*/pycuda-*.whl"))
    if kept:
        return kept[-1]
    if not shutil.which("g++"):
        raise BuildError("pycuda has to be compiled, and there is no C++ compiler: apt install build-essential")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise BuildError(
            f"pycuda has to be compiled, and {sys.executable} has no headers (Python.h): apt install python3-dev"
        )
    toolkit = headers(cache)
    print(f"building pycuda {PYCUDA} with the headers of CUDA {toolkit.version} (a few minutes, once)", flush=True)
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        (home / "empty.c").touch()
        run("gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", home / STUB, home / "empty.c",
            failing="the C compiler does not work; apt install build-essential")  # fmt: skip
        # pycuda's build reads this file in the home folder.
        (home / ".aksetup-defaults.py").write_text(
            f"CUDA_ROOT = {str(toolkit.root)!r}\nCUDA_ENABLE_CURAND = False\nCUDADRV_LIB_DIR = [{str(home)!r}]\n"
            'CUDADRV_LIBNAME = ["cuda"]\n'
        )
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir", "--no-binary", "pycuda",
            "--wheel-dir", home / "wheel", f"pycuda=={PYCUDA}",
            env={"HOME": str(home), "LDFLAGS": "-Wl,--no-as-needed"}, failing="pycuda could not be built")  # fmt: skip
        folder = cache / f"{name}-cuda{toolkit.version}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(home / "wheel", folder, dirs_exist_ok=True)
    return next(folder.glob("pycuda-*.whl"))


def _from_index(cache: Path) -> Toolkit:
    root = cache / f"cuda-headers-{CUDA}-{platform.machine()}"
    if found := _toolkit(root):
        return found
    with tempfile.TemporaryDirectory() as place:
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target", place,
            *(f"{package}=={CUDA}.*" for package in PACKAGES),
            failing="CUDA's headers could not be had from the package index")  # fmt: skip
        unpacked = root.with_name(root.name + ".unfinished")
        shutil.rmtree(unpacked, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        for include in Path(place).glob("nvidia/*/include"):
            shutil.copytree(include, unpacked / "include", dirs_exist_ok=True)
        shutil.rmtree(root, ignore_errors=True)
        unpacked.rename(root)
    if found := _toolkit(root):
        return found
    raise BuildError(f"{', '.join(PACKAGES)}: hold no cuda.h; report this")


def _toolkit(root: Path) -> Toolkit | None:
    header = root / "include" / "cuda.h"
    content = header.read_text(errors="replace") if header.is_file() else ""
    found = re.search(r"#define CUDA_VERSION (\d+)", content)
    return Toolkit(root, f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}") if found else None
