"""Steps that the tests of faults share: files as cameras write them, and mounts as the kernel lists them."""

import os
import signal
import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import tifffile
from site_of_daemon import LIMIT, Site

from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger


def poisson(seed: int, shape: tuple[int, int] = (96, 80), dose: float = 20.0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(dose, shape).astype(np.uint16)


def as_tiff(pixels: np.ndarray, folder: Path) -> bytes:
    """The bytes of an uncompressed TIFF."""
    path = folder / "scratch.tif"
    tifffile.imwrite(path, pixels)
    content = path.read_bytes()
    path.unlink()
    return content


def stopped(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 0


def jobs(site: Site) -> list[Job]:
    with Ledger(site.state, "read") as ledger:
        return list(ledger.recent(10_000))


def mounts(site: Site, folder: Path, kind: str) -> dict[str, str]:
    """What the kernel would list if `folder` were such a share."""
    lines = Path("/proc/self/mountinfo").read_text() + f"999 1 0:99 / {folder} rw - {kind} //server/share rw\n"
    (site.root / "mountinfo").write_text(lines)
    return {"STAGED_MOUNTS": str(site.root / "mountinfo")}


def grow(site: Site, name: str, sections: list[np.ndarray]) -> None:
    """Bring a stack to these sections as SerialEM does: first the new ones, then the header that counts them."""
    whole, path = site.root / "scratch.mrc", site.drop / name
    with mrcfile.new(whole, np.stack(sections), overwrite=True) as mrc:
        mrc.set_image_stack()
    content = whole.read_bytes()
    with path.open("r+b" if path.exists() else "wb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.write(content[stream.tell() :])
        stream.flush()
        stream.seek(0)
        stream.write(content[:1024])
