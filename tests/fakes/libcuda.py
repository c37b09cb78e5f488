"""Builds a libcuda.so.1 that computes on the processor (`libcuda.cpp`), so that the real pycuda runs without a card."""

import os
import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "daemon" / "backends" / "gpu" / "kernels.cu"


def toolkit() -> Path | None:
    """Where a CUDA toolkit's headers are."""
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    return next((Path(place) for place in filter(None, places) if (Path(place) / "include" / "cuda.h").is_file()), None)


def toolkit_is_missing() -> bool:
    return toolkit() is None


def build(folder: Path, user: Path) -> None:
    """Into `folder`, for the shared object `user`; what that asks for beyond libcuda.cpp is there and not supported."""
    root = toolkit()
    assert root is not None
    source = (HERE / "libcuda.cpp").read_text()
    symbols = subprocess.run(["nm", "-D", "--undefined-only", user], check=True, capture_output=True, text=True).stdout
    missing = [name for name in re.findall(r" U (cu\w+)", symbols) if not re.search(rf"\b{name}\(", source)]
    rest = folder / "rest.cpp"
    rest.write_text("".join(f'extern "C" int {name}() {{ return 801; }}\n' for name in missing))
    command = [
        "g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-I", root / "include",
        f'-DKERNELS="{KERNELS}"', "-o", folder / "libcuda.so.1", HERE / "libcuda.cpp", rest,
    ]  # fmt: skip
    subprocess.run([str(word) for word in command], check=True, timeout=120)
