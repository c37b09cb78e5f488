"""The GPU's kernels: the very source, compiled for the processor."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "daemon" / "backends" / "gpu" / "kernels.cu"

SHIM = """
#define __global__
#define __device__
struct { unsigned x; } blockIdx = {0}, blockDim = {1}, threadIdx = {0}, gridDim = {1};
static unsigned long long atomicAdd(unsigned long long *at, unsigned long long more)
{
    unsigned long long before = *at;
    *at += more;
    return before;
}
"""
"""One thread of a grid of one: every kernel walks all its elements, whatever the grid."""

FLAGS = "KERNEL_FLAGS"
"""Of the environment: more for the compiler."""

C_TYPES = {
    "P": ctypes.c_void_p, "q": ctypes.c_longlong, "Q": ctypes.c_ulonglong, "d": ctypes.c_double, "f": ctypes.c_float,
}  # fmt: skip
"""Letters of `pipeline.SIGNATURES`."""


@lru_cache
def library() -> ctypes.CDLL:
    compiler = shutil.which("g++")
    assert compiler, "g++ is needed to test the kernels"
    folder = Path(tempfile.mkdtemp(prefix="kernels-"))
    try:
        (folder / "kernels.cpp").write_text(SHIM + SOURCE.read_text())
        made = folder / "kernels.so"
        more = os.environ.get(FLAGS, "").split()
        command = [compiler, "-O1", *more, "-shared", "-fPIC", "-o", made, folder / "kernels.cpp"]
        subprocess.run(command, check=True, timeout=120)
        return ctypes.CDLL(str(made))
    finally:
        shutil.rmtree(folder)  # what is loaded stays
