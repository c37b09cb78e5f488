"""A Debian package of emdenoised and everything it needs: `make deb`, or `python systemd/deb.py`.

In it: a virtual environment in /opt/emdenoised, made of the bundle's wheels; units, settings, and the reader's licence
and source. It installs without internet where Debian or Ubuntu has the same version of Python as this one.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import bundle
import third_party
from pycuda_wheel import BuildError, run

ROOT = bundle.ROOT
HERE = ROOT / "systemd"
PREFIX = "opt/emdenoised"
PYTHON = f"python{bundle.PYTHON}"
KEPT = {"emdenoised", "python", "python3", PYTHON}
"""Of the environment's programs."""
COMPLETION = "share/bash-completion/completions/emdenoised"
"""Where bash looks for what the Tab key may complete, below /usr."""
CONTROL = """\
Package: emdenoised
Version: {version}
Architecture: {architecture}
Maintainer: the emdenoised project <root@localhost>
Installed-Size: {size}
Depends: {python}, libc6 (>= {libc}), libstdc++6, passwd, init-system-helpers (>= 1.54)
Suggests: acl
Section: science
Priority: optional
Description: denoises each electron micrograph that lands in a drop folder
 A service that watches a folder: each TEM, STEM or SEM image that is saved there
 appears denoised in a second folder, in the same units, with a verdict and a
 record of how it was made. Raw files are only read.
 .
 This package is for {what}.
"""
WHAT = {"rtx": "GeForce RTX and RTX workstation cards, and the processor",
        "tensorrt": "NVIDIA cards by TensorRT, and the processor", "cpu": "the processor"}  # fmt: skip
LIBC = "2.28"
"""The oldest that the wheels (manylinux_2_28) run with."""


def _make_environment(wheels: Path, flavour: str, stage: Path) -> None:
    """The virtual environment of Debian's own Python, compiled, with nothing in it that names `stage`."""
    base = Path("/usr/bin") / PYTHON
    if subprocess.run([base, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode:
        raise BuildError(f"{base} with venv is needed, since the package uses it: apt install {PYTHON}-venv")
    prefix = stage / PREFIX
    run(base, "-m", "venv", prefix, failing="the virtual environment could not be made")
    (own,) = wheels.glob("emdenoised-*.whl")
    pip = prefix / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"
    nowhere = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    run(*pip, "install", "--no-compile", "--find-links", wheels, f"{own}{bundle.EXTRAS[flavour]}", env=nowhere,
        failing="the wheels could not be installed")  # fmt: skip
    run(*pip, "uninstall", "--yes", "pip", "setuptools", env=nowhere, failing="pip could not be removed")
    for program in (prefix / "bin").iterdir():
        if program.name not in KEPT:
            program.unlink()
    command = prefix / "bin" / "emdenoised"
    command.write_text(re.sub(r"\A#!.*", f"#!/{PREFIX}/bin/python", command.read_text()))
    completion = prefix / COMPLETION
    completion.parent.mkdir(parents=True)
    ask = f"import argcomplete; open({str(completion)!r}, 'w').write(argcomplete.shellcode(['emdenoised']))"
    run(prefix / "bin" / "python", "-B", "-c", ask, failing="what the Tab key completes could not be written")
    settings = prefix / "pyvenv.cfg"
    settings.write_text("".join(line for line in settings.open() if not line.startswith("command")))
    for origin in prefix.glob("lib/*/site-packages/*.dist-info/direct_url.json"):
        origin.unlink()
    run(base, "-m", "compileall", "-q", "-j", "0", "-s", stage, "-p", "/", "--invalidation-mode", "unchecked-hash",
        prefix / "lib", failing="Python files could not be compiled")  # fmt: skip


def _write_documents(source: Path, stage: Path) -> None:
    folder = stage / "usr/share/doc/emdenoised"
    shutil.copytree(source / "gpl", folder / "gpl")
    shutil.copyfile(ROOT / "LICENSE", folder / "copyright")
    for file in (source / third_party.PAGE, source / third_party.SBOM, ROOT / "docs/operations.md",
                 ROOT / "docs/troubleshooting.md", ROOT / "docs/licences.md"):  # fmt: skip
        shutil.copyfile(file, folder / file.name)


def _write_control(stage: Path, version: str, flavour: str) -> None:
    """DEBIAN/: what dpkg needs to know of the package, and its scripts."""
    folder = stage / "DEBIAN"
    folder.mkdir()
    files = sorted(path for path in stage.rglob("*") if path.is_file() and not path.is_symlink())
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(stage)}\n" for path in files]
    (folder / "sha256sums").write_text("".join(sums))
    (folder / "conffiles").write_text("/etc/emdenoised/config.yaml\n")
    size = sum(path.stat().st_size for path in files) // 1024
    (folder / "control").write_text(
        CONTROL.format(version=version, architecture=architecture(), size=size, python=PYTHON, libc=LIBC,
                       what=WHAT[flavour])
    )  # fmt: skip
    for script in (HERE / "debian").iterdir():
        shutil.copy(script, folder / script.name)


def architecture() -> str:
    """As dpkg calls this kind of processor."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def make(source: Path, revision: int, out: Path) -> Path:
    """The package of what an unpacked bundle holds. Raises BuildError."""
    stated = source / "FOR"
    if not stated.is_file():
        raise BuildError(f"{source}: is no unpacked bundle, since it has no file FOR: make one with `make bundle`")
    python, machine, flavour = stated.read_text().split()
    if python != bundle.PYTHON:
        raise BuildError(f"{source}: is for Python {python}; run this with python{python}")
    if machine != platform.machine():
        raise BuildError(
            f"{source}: is for {machine}, and this computer is {platform.machine()}; make the package there"
        )
    upstream = re.sub(r"(a|b|rc|[.]dev)(?=[0-9])", r"~\1", bundle.version())  # 1.0rc2 comes before 1.0
    version = f"{upstream}-{revision}+{flavour}"
    out.mkdir(parents=True, exist_ok=True)
    package = out / f"emdenoised_{version}_{architecture()}.deb"
    with tempfile.TemporaryDirectory() as place:
        stage = Path(place) / "stage"
        stage.mkdir(mode=0o755)
        _make_environment(source / "wheels", flavour, stage)
        _write_documents(source, stage)
        setup = f"{PREFIX}/share/emdenoised/setup.sh"
        run("sh", stage / setup, "--stage", stage, failing="units and settings could not be written")
        links = {"usr/bin/emdenoised": f"{PREFIX}/bin/emdenoised", "usr/sbin/emdenoised-setup": setup,
                 f"usr/{COMPLETION}": f"{PREFIX}/{COMPLETION}"}  # fmt: skip
        for link, target in links.items():
            (stage / link).parent.mkdir(parents=True, exist_ok=True)
            (stage / link).symlink_to(f"/{target}")
        (stage / setup).chmod(0o755)
        _write_control(stage, version, flavour)
        run("chmod", "-R", "u=rwX,go=rX", stage, failing="the files' rights could not be set")
        run("dpkg-deb", "--root-owner-group", "-Zzstd", "--build", stage, package, failing="dpkg-deb failed")
    return package


def main() -> int:
    parser = bundle.command_line(__doc__)
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="an unpacked bundle, instead of collecting its contents"
    )
    parser.add_argument("--revision", type=int, default=1, help="of the package, for the same version (1)")
    options = parser.parse_args()
    try:
        if shutil.which("dpkg-deb") is None:
            raise BuildError("dpkg-deb is needed: make the package on Debian or Ubuntu, or use `make bundle`")
        with tempfile.TemporaryDirectory() as place:
            source = options.bundle or Path(place) / "bundle"
            if options.bundle is None:
                bundle.fill(options.flavour, source, options.cache)
            package = make(source, options.revision, options.out)
    except BuildError as error:
        print(f"deb: {error}", file=sys.stderr)
        return 1
    print(f"{package}: {package.stat().st_size / 1e6:.0f} MB; on the computer: sudo apt install ./{package.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
