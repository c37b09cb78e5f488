"""Coverage-guided fuzzing of everything that reads what strangers write: micrographs, settings. `make fuzz`.

    python tests/fuzz/fuzz.py [--runs N] [--record FILE] [tiff] [mrc] [foreign] [sidecar] [config]

Each target runs in a process of its own, starting from the files in corpus/TARGET. A finding is an exception that is
not one of ours, one input that takes longer than five seconds, or memory beyond what `max_pixels` allows for; the
input is kept in the working folder and the exit status is 1. What it once found is kept in the corpus, where the
ordinary tests read it.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
RUNS = {"tiff": 0.2, "mrc": 0.45, "foreign": 0.05, "sidecar": 0.15, "config": 0.15}
"""Each target's share of the inputs. TIFF and vendors' formats are the slowest: what a codec stumbles on costs a new
process."""
TARGETS = tuple(RUNS)
MAX_PIXELS = 1 << 18
ALLOWANCE = 256 << 20
"""Bytes of address space above what the process has before the first input: the fuzzer's own, and `max_pixels`."""
ROUND = 30_000
"""Inputs of one process at most: atheris never frees arrays that instrumented code compares, 2 kB an input."""
SLOWEST = 5
LONGEST = 1 << 14


def _scratch(suffix: str) -> Path:
    """A file of this process's own, in memory where that can be."""
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    return folder / f"emdenoised-fuzz-{os.getpid()}{suffix}"


def readers(suffix: str, crashes: list[str]) -> Callable[[bytes], None]:
    """Probe, then read, a file of these bytes, as the daemon does: what is compressed is decoded by a child process.

    It may raise MicrographError only. `crashes` gets the codecs that crashed that process.
    """
    from daemon import formats
    from daemon.errors import MicrographError
    from daemon.formats.decoder import Reader

    reader = Reader(MAX_PIXELS, SLOWEST)
    path = _scratch(suffix)

    def one(data: bytes) -> None:
        path.write_bytes(data)
        for use in (formats.probe, reader.count, reader.read, lambda path: reader.read(path, 1)):
            try:
                use(path)
            except MicrographError as error:
                assert str(path) in str(error), "the message must name the file"
                if "its decoder crashed on it" in str(error):
                    crashes.append(str(error))

    return one


def foreign(crashes: list[str]) -> Callable[[bytes], None]:
    """Probe, then read, a vendor's file of these bytes; `crashes` as in `readers`.

    The daemon has all of them read by its child process, which takes half a second to replace. Here RosettaSciIO's own
    Python is read in this process, where the fuzzer sees which branches an input reaches, and HDF5, which is C, in a
    fork; what brings that down goes through the daemon's own reader.
    """
    from daemon import formats
    from daemon.errors import MicrographError, TransientError

    path, hdf5 = _scratch(".vendor"), _scratch(".emd")
    through_the_child = readers(".emd", crashes)

    def read(path: Path) -> None:
        for use in (formats.probe, lambda path: formats.read(path, MAX_PIXELS)):
            try:
                use(path)
            except MicrographError as error:
                assert str(path) in str(error), "the message must name the file"
            except TransientError as error:  # the child would report that it needs more memory than is allowed
                assert isinstance(error.__cause__, MemoryError), "nothing else can pass by itself"

    def one(data: bytes) -> None:
        if not data.startswith(b"\x89HDF"):
            path.write_bytes(data)
            read(path)
            return
        hdf5.write_bytes(data)
        if not _holds(lambda: read(hdf5)):
            through_the_child(data)

    return one


def _holds(do: Callable[[], None]) -> bool:
    """Do it in a fork; whether that came back. Raises AssertionError for a Python exception in there."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(SLOWEST)
            do()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "an exception that is not ours, above"
    return os.WIFEXITED(status)


def sidecar() -> Callable[[bytes], None]:
    """Read a sound stack with a SerialEM .mdoc, or one of IMOD's lists, of these bytes beside it, and TIA's .emi.

    None may spoil the image.
    """
    from daemon import formats
    from daemon.formats import sidecars

    path = _scratch(".mrc")
    path.write_bytes((CORPUS / "mrc" / "stack.mrc").read_bytes())

    def one(data: bytes) -> None:
        for beside in (f"{path.name}.mdoc", f"{path.stem}.tlt", f"{path.stem}.pl"):
            path.with_name(beside).write_bytes(data)
        for section in (0, 1):
            formats.read(path, MAX_PIXELS, section)
            sidecars.parse_emi(data, section + 1)

    return one


def settings() -> Callable[[bytes], None]:
    """Read a settings file of these bytes. It is usable, or ConfigError says why not."""
    from daemon.errors import ConfigError
    from daemon.settings import config

    path = Path(tempfile.gettempdir()) / f"emdenoised-fuzz-{os.getpid()}.yaml"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            config.load(path)
        except ConfigError as error:
            assert str(path) in str(error), "the message must name the file"

    return one


def target(name: str, crashes: list[str] | None = None) -> Callable[[bytes], None]:
    """What is done with each input of a target."""
    crashes = [] if crashes is None else crashes
    match name:
        case "config":
            return settings()
        case "foreign":
            return foreign(crashes)
        case "sidecar":
            return sidecar()
    return readers({"tiff": ".tif", "mrc": ".mrc"}[name], crashes)


def fuzz_here(name: str, runs: int, seconds: int, seed: int, corpus: str) -> None:
    """Never returns: the fuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["daemon", "tifffile", "mrcfile", "yaml", "rsciio"]):
        crashes: list[str] = []
        one = target(name, crashes)
        if name == "foreign":  # the daemon's reader loads them only when it meets such a file
            for module in ("digitalmicrograph", "tia", "emd"):
                import_module(f"rsciio.{module}")
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (virtual + ALLOWANCE,) * 2)
    options = [f"-runs={runs}", f"-max_total_time={seconds}", f"-timeout={SLOWEST}", f"-max_len={LONGEST}",
               "-rss_limit_mb=0", "-print_final_stats=1", "-verbosity=0", f"-seed={seed}"]  # fmt: skip

    def kept(data: bytes) -> None:
        try:
            one(data)
            while crashes:
                with Path(f"{corpus}.crashes").open("a") as file:
                    file.write(crashes.pop() + "\n")
        except BaseException:
            Path(f"finding-{name}-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
            raise

    atheris.Setup([sys.argv[0], *options, corpus], kept)
    atheris.Fuzz()


def fuzz(name: str, runs: int, seconds: int, seed: int) -> dict[str, Any]:
    """Run one target, `ROUND` inputs in each process; returns what they counted. Raises RuntimeError for a finding."""
    begin = time.monotonic()
    counted: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory() as grown:
        for known in sorted((CORPUS / name).iterdir()):  # the fuzzer adds to the folder it is given
            (Path(grown) / known.name).write_bytes(known.read_bytes())
        for done in range(0, runs, ROUND):
            left = seconds - int(time.monotonic() - begin)
            if left > 0:
                counted.append(_round(name, min(ROUND, runs - done), left, seed + len(counted), grown))
        interesting = len(list(Path(grown).iterdir()))
        contained = Path(f"{grown}.crashes")
        crashes = len(contained.read_text().splitlines()) if contained.exists() else 0
        contained.unlink(missing_ok=True)
    return {
        "inputs": sum(one["number_of_executed_units"] for one in counted),
        "interesting_inputs": interesting,
        "findings": 0,
        "codec_crashes_contained": crashes,
        "peak_rss_mib": max(one["peak_rss_mb"] for one in counted),
        "slowest_whole_seconds": max(one["slowest_unit_time_sec"] for one in counted),
        "seconds": round(time.monotonic() - begin, 1),
    }


def _round(name: str, runs: int, seconds: int, seed: int, grown: str) -> dict[str, int]:
    """The fuzzer's own figures of one process. Raises RuntimeError for a finding."""
    command = [sys.executable, __file__, "--here", name, "--runs", str(runs), "--seconds", str(seconds),
               "--seed", str(seed), "--grown", grown]  # fmt: skip
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    counted = {name: int(number) for name, number in re.findall(r"stat::(\w+): *(\d+)", done.stderr)}
    if done.returncode or not counted:
        raise RuntimeError(f"{name}: a finding\n{done.stderr[-6000:]}")
    return counted


def record(file: Path, found: dict[str, dict[str, Any]], seed: int) -> None:
    """Write what was counted beside what the file holds of other targets; the sum is of all that it holds."""
    about = {
        "seed": seed,
        "fuzzer": f"atheris {version('atheris')}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
    }
    known = json.loads(file.read_text())["targets"] if file.exists() else {}
    targets = {**known, **{name: {**one, **about} for name, one in found.items()}}
    limits = {"max_pixels": MAX_PIXELS, "allowance_bytes": ALLOWANCE, "slowest_allowed": SLOWEST}
    total = sum(one["inputs"] for one in targets.values())
    file.write_text(json.dumps({"inputs": total, "targets": targets, **limits}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=[], help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs in all (default: 100 000)")
    parser.add_argument("--seconds", type=int, default=86_400, help="stop each target after so long")
    parser.add_argument("--seed", type=int, default=1, help="of the fuzzer's mutations (default: 1)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep what was counted as JSON")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--grown", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        sys.path.insert(0, str(HERE.parents[1]))
        fuzz_here(options.here, options.runs, options.seconds, options.seed, options.grown)
    found: dict[str, Any] = {}
    for name in options.targets or TARGETS:
        share = RUNS[name] / sum(RUNS[other] for other in options.targets or TARGETS)
        try:
            found[name] = fuzz(name, round(options.runs * share), options.seconds, options.seed)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"{name}: {found[name]}", flush=True)
    if options.record:
        record(options.record, found, options.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
