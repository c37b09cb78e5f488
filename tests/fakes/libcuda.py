"""Builds a libcuda.so.1 that computes on the processor (`libcuda.cpp`), so that the real pycuda runs without a card."""

import re
import subprocess
from pathlib import Path

import pycuda_wheel

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build"
"""Where `make bundle` and `make gpu` keep CUDA's headers and the built pycuda."""
KERNELS = HERE.parents[1] / "daemon" / "backends" / "gpu" / "kernels.cu"


def build(folder: Path, user: Path) -> None:
    """Into `folder`, for the shared object `user`; what that asks for beyond libcuda.cpp is there and not supported."""
    root = pycuda_wheel.headers(CACHE).root
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
