"""Asks libcuda whether a card answers, and prints its code when it is run as a program.

It imports nothing of ours, so that a process of its own starts at once (`driver.ask`).
"""

import ctypes

LIBRARY = "libcuda.so.1"
NO_LIBRARY = -1
"""In place of a code of CUDA's: there is no libcuda."""
_NO_DEVICE = 100


def answer() -> int:
    """libcuda's code in this process: 0 if a card answers."""
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError:
        return NO_LIBRARY
    count = ctypes.c_int()
    code = int(cuda.cuInit(0)) or int(cuda.cuDeviceGetCount(ctypes.byref(count)))
    return code or (0 if count.value else _NO_DEVICE)


if __name__ == "__main__":
    print(answer())
