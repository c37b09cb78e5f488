"""One archive that installs emdenoised on a computer without internet: `make bundle`, or `python systemd/bundle.py`.

In it: the wheels of emdenoised and of everything it needs, pycuda built, the reader of vendors' formats, its
licence and source, weights, service file, settings, install.sh.
It fits computers with the same version of Python, the same kind of processor and a C library no older than here.
"""

import argparse
import hashlib
import platform
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pycuda_wheel
import third_party
from pycuda_wheel import PYCUDA, BuildError, run

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = {"rtx": "[completion,rtx,formats]", "tensorrt": "[completion,gpu,formats]", "cpu": "[completion,formats]"}
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
READER = "rosettasciio"
"""Reads vendors' formats, under the GPL: its licence and its source come along."""
NVIDIAS = "; TensorRT comes from NVIDIA's own package index, which must be reachable"

README = """\
emdenoised {version} for computers without internet ({what})

To install it into /opt/emdenoised, unpack this archive, and in its folder:

    sudo ./install.sh               (--help lists more options, such as another folder)
    sudo ./install.sh --service     also the system service and its settings, if there are none yet

Needed on the computer: Linux on {machine} with a C library of {libc} or later, and Python {python} with venv
(Debian, Ubuntu: apt install python3-venv).{driver}

What is in it: `wheels`, what is installed; `weights`, the networks and their model cards, to read; the settings and
the service file; THIRD-PARTY.md, the licence of each package, and sbom.cdx.json, the same in CycloneDX; SHA256SUMS,
which install.sh checks first.

emdenoised is under the Apache License 2.0 (LICENSE). DM3, DM4, SER, EMD and HyperSpy files are read by a program of its
own, {reader}, under the GNU General Public License 3: `gpl` has its licence and its source. It runs in a process of its
own. To install without it: sudo ./install.sh --without-reader
"""
DRIVER = """ An NVIDIA driver of version 580 or later (CUDA 13).
Neither a CUDA toolkit nor a compiler is needed. The first start makes an engine for the card, in seconds to minutes."""


def _collect_wheels(flavour: str, wheels: Path, cache: Path) -> None:
    """emdenoised and everything it needs, as wheels."""
    pip: tuple[str | Path, ...] = (sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", wheels)
    run(*pip, "--no-deps", ROOT, failing="emdenoised's own wheel could not be built")
    (own,) = wheels.glob("emdenoised-*.whl")
    built: list[str | Path] = [] if flavour == "cpu" else ["--find-links", pycuda_wheel.build(cache).parent]
    with tempfile.TemporaryDirectory() as place:
        pinned = Path(place) / "constraints.txt"
        pinned.write_text(f"pycuda=={PYCUDA}\n")
        run(*pip, "--constraint", pinned, *built, f"{own}{EXTRAS[flavour]}",
            failing=f"not everything that emdenoised needs could be fetched{NVIDIAS if flavour == 'tensorrt' else ''}",
        )  # fmt: skip
    for source in [*wheels.glob("*.tar.gz"), *wheels.glob("*.zip")]:
        raise BuildError(f"{source.name}: is no wheel; it could not be installed without a compiler")


def _collect_source(wheels: Path, gpl: Path) -> str:
    """Licence and source of the reader, of the version among the wheels; returns its name and version."""
    (wheel,) = wheels.glob(f"{READER}-*.whl")
    version = wheel.name.split("-")[1]
    run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", READER, "--dest", gpl,
        f"{READER}=={version}", failing=f"the source of {READER} {version} could not be fetched")  # fmt: skip
    with zipfile.ZipFile(wheel) as archive:
        licences = [name for name in archive.namelist() if re.search(r"\.dist-info/(.*/)?(LICEN[CS]E|COPYING)", name)]
        if not licences:
            raise BuildError(f"{wheel.name}: holds no licence, so it may not be passed on; make a bundle by hand")
        for name in licences:
            (gpl / Path(name).name).write_bytes(archive.read(name))
    return f"RosettaSciIO {version}"


def _write_third_party(wheels: Path, out: Path) -> None:
    """The licences of all packages, and the SBOM. Raises BuildError for a package that states no licence."""
    try:
        third_party.write(wheels, out)
    except ValueError as error:
        raise BuildError(str(error)) from error


def _write_sums(folder: Path) -> None:
    """SHA256SUMS of every file, as sha256sum reads it."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def pack(folder: Path, archive: Path) -> None:
    """A tar whose bytes depend on nothing but its contents. Wheels are compressed already."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "root", "root"
        entry.mode = 0o755 if entry.isdir() or entry.name.endswith(".sh") else 0o644
        return entry

    unfinished = archive.with_name(archive.name + ".tmp")
    with tarfile.open(unfinished, "w") as tar:
        tar.add(folder, folder.name, recursive=False, filter=plain)
        for path in sorted(folder.rglob("*")):
            tar.add(path, f"{folder.name}/{path.relative_to(folder)}", recursive=False, filter=plain)
    unfinished.replace(archive)


def version() -> str:
    """Of this checkout. Raises BuildError."""
    found = re.search(r'__version__ = "([^"]+)"', (ROOT / "daemon" / "__init__.py").read_text())
    if found is None:
        raise BuildError("daemon/__init__.py states no version")
    return found[1]


def fill(flavour: str, folder: Path, cache: Path) -> None:
    """Put everything that the archive holds into an empty folder. Raises BuildError."""
    (folder / "wheels").mkdir(parents=True)
    _collect_wheels(flavour, folder / "wheels", cache)
    (folder / "gpl").mkdir()
    reader = _collect_source(folder / "wheels", folder / "gpl")
    _write_third_party(folder / "wheels", folder)
    shutil.copytree(
        ROOT / "weights", folder / "weights", ignore=shutil.ignore_patterns("__pycache__", "*.py", "py.typed")
    )
    units = "systemd/emdenoised.service", "systemd/emdenoised-gpu.service", "systemd/emdenoised.slice"
    for file in ("config.yaml", "LICENSE", *units, "systemd/install.sh"):
        shutil.copyfile(ROOT / file, folder / Path(file).name)
    libc = " ".join(platform.libc_ver()) or "this computer's"
    text = README.format(
        version=version(), what=flavour, machine=platform.machine(), libc=libc, python=PYTHON,
        driver="" if flavour == "cpu" else DRIVER, reader=reader,
    )  # fmt: skip
    (folder / "README.txt").write_text(text)
    (folder / "FOR").write_text(f"{PYTHON} {platform.machine()} {flavour}\n")
    _write_sums(folder)


def make(flavour: str, out: Path, cache: Path) -> Path:
    """Collect, sum and pack; returns the archive. Raises BuildError."""
    name = f"emdenoised-{version()}-{flavour}-linux-{platform.machine()}-python{PYTHON}"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / name
        fill(flavour, folder, cache)
        archive = out / f"{name}.tar"
        pack(folder, archive)
    return archive


def command_line(about: str | None) -> argparse.ArgumentParser:
    """The options that archive and Debian package share."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--flavour", choices=EXTRAS, default="rtx",
        help="rtx: for GeForce RTX and RTX workstation cards; tensorrt: for other NVIDIA cards; cpu: for none (rtx)",
    )  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "dist", help="folder for the finished file (dist)")
    parser.add_argument("--cache", type=Path, default=ROOT / "build", help="keeps the built pycuda (build)")
    return parser


def main() -> int:
    options = command_line(__doc__).parse_args()
    try:
        archive = make(options.flavour, options.out, options.cache)
    except BuildError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 1
    print(f"{archive}: {archive.stat().st_size / 1e6:.0f} MB; copy it to the computer and unpack it there: tar xf")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
