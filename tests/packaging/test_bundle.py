"""The archive for computers without internet: unpacked and installed as there, with every way out closed."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import libcuda
import pytest

from daemon.backends import manifest

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build"

FLAVOURS = ["cpu", pytest.param("rtx", marks=pytest.mark.field)]
"""That for RTX cards compiles pycuda, which takes minutes."""


def run(*command: object, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], env={**offline(), **environ}, capture_output=True, text=True, timeout=280
    )


def offline() -> dict[str, str]:
    """An environment in which whoever asks the network is refused at once."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
    nowhere = "http://127.0.0.1:9"
    return {**kept, "HOME": "/nonexistent", "PIP_INDEX_URL": nowhere, "http_proxy": nowhere, "https_proxy": nowhere,
            "ALL_PROXY": nowhere, "PYTHON": sys.executable}  # fmt: skip


@pytest.fixture(scope="module", params=FLAVOURS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive, in a folder with a space in its name."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, ROOT / "systemd" / "bundle.py", "--flavour", request.param, "-o", out, "--cache", CACHE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=290 if request.param == "cpu" else 1500)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = out.glob("emdenoised-*.tar")
    place = tmp_path_factory.mktemp("a microscope PC")
    with tarfile.open(archive) as tar:
        tar.extractall(place, filter="data")
    (folder,) = place.iterdir()
    assert f"-{request.param}-" in folder.name
    return folder


@pytest.fixture(scope="module")
def prefix(bundle: Path) -> Path:
    """Where it was installed."""
    prefix = bundle.parent / "installed here"
    done = run(bundle / "install.sh", prefix)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "doctor" in done.stdout
    return prefix


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """The archive's folder, to be spoilt; the large files are links."""
    return Path(shutil.copytree(bundle, tmp_path / "copy", copy_function=os.link))


@pytest.mark.slow
def test_it_installs_and_works_without_the_network(prefix: Path, tmp_path: Path) -> None:
    done = run(prefix / "bin" / "emdenoised", "doctor", HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(prefix) in done.stdout
    assert "canary tile came out right" in done.stdout
    assert "reader of .dm3, .dm4, .ser, .emd, .hspy files: RosettaSciIO" in done.stdout


@pytest.mark.slow
def test_the_tab_key_completes(prefix: Path) -> None:
    ask = '. "$1"; COMP_LINE=$2 COMP_POINT=${#2} COMP_TYPE=9; _python_argcomplete emdenoised; echo "${COMPREPLY[@]}"'
    file = prefix / "share/bash-completion/completions/emdenoised"
    done = run("bash", "-c", ask, "bash", file, "emdenoised acknow", PATH=f"{prefix}/bin:{os.environ['PATH']}")
    assert done.stdout.split() == ["acknowledge"], done.stderr


@pytest.mark.slow
def test_it_installs_without_the_reader_too(bundle: Path, tmp_path: Path) -> None:
    if "-cpu-" not in bundle.name:
        pytest.skip("one flavour will do")
    done = run(bundle / "install.sh", "--without-reader", tmp_path / "here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((tmp_path / "here").glob("lib/*/site-packages/rsciio"))
    done = run(tmp_path / "here/bin/emdenoised", "doctor", HOME=str(tmp_path))
    assert done.returncode == 0 and "-m pip install 'rosettasciio[hdf5]>=0.7'" in done.stdout


@pytest.mark.slow
def test_it_can_be_installed_over_itself(bundle: Path, prefix: Path) -> None:
    (prefix / "bin" / "emdenoised").unlink()
    done = run(bundle / "install.sh", prefix)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (prefix / "bin" / "emdenoised").is_file()


@pytest.mark.slow
def test_an_upgrade_in_place_takes_the_ledger_of_the_first_version_along(
    bundle: Path, prefix: Path, tmp_path: Path
) -> None:
    """The ledger as the first landed version wrote it; settings, results and ledger outlive both steps."""
    for name in ("drop", "denoised", "state"):
        (tmp_path / name).mkdir()
    with sqlite3.connect(tmp_path / "state/ledger.db") as database:
        database.executescript((ROOT / "tests/daemon/ledger/ledger_first.sql").read_text())
    database.close()
    config = tmp_path / "config.yaml"
    config.write_text("folders: {drop: drop, output: denoised, state: state}\nmonitor: {listen: null}\n")
    done = run(bundle / "install.sh", prefix)
    assert done.returncode == 0, done.stdout + done.stderr
    command = prefix / "bin/emdenoised"
    before = run(command, "status", "--config", config)
    assert before.returncode == 1 and "older version; start the service once" in before.stderr
    once = run(command, "once", "--config", config)
    assert "running.tif" in once.stderr, "what was in hand is taken up"
    after = run(command, "status", "--config", config)
    assert after.returncode == 0 and "2 done" in after.stdout and "'broken.tif': damaged" in after.stdout


@pytest.mark.slow
def test_uninstalling_leaves_nothing_but_what_is_yours(bundle: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "here"
    assert run(bundle / "install.sh", prefix).returncode == 0
    mine = tmp_path / "mine"
    mine.mkdir()
    refused = run(bundle / "install.sh", "--uninstall", mine)
    assert refused.returncode == 1 and "was not installed by this program" in refused.stderr and mine.is_dir()
    done = run(bundle / "install.sh", "--uninstall", prefix)
    assert done.returncode == 0 and f"removed: {prefix}" in done.stdout
    assert not prefix.exists()


@pytest.mark.slow
def test_with_the_gpus_flavour_an_engine_can_be_built(bundle: Path, prefix: Path, tmp_path: Path) -> None:
    names = {path.name.split("-")[0] for path in (bundle / "wheels").iterdir()}
    if "-cpu-" in bundle.name:
        assert not names & {"pycuda", "tensorrt_rtx_cu13", "torch"}
        return
    assert names >= {"pycuda", "tensorrt_rtx_cu13", "onnx"}
    assert "torch" not in names
    python = prefix / "bin" / "python"
    done = run(python, "-c", "import pycuda, tensorrt_rtx; print(pycuda.VERSION)")
    assert done.returncode == 0, done.stderr
    done = run(python, "-m", "engine_build", "fast", "--tile", "256", "--targets", "sm86", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.engine"))) == 1


@pytest.mark.slow
def test_the_pycuda_that_was_built_drives_a_card(bundle: Path, prefix: Path, tmp_path: Path) -> None:
    if "-cpu-" in bundle.name:
        assert not list(prefix.glob("lib/*/site-packages/pycuda"))
        return
    (extension,) = prefix.glob("lib/*/site-packages/pycuda/_driver.*.so")
    libcuda.build(tmp_path, extension)
    script = ROOT / "tests" / "fakes" / "on_fake_libcuda.py"
    done = run(prefix / "bin" / "python", script, LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all went through pycuda" in done.stdout
    assert "full: CUDA is out of memory" in done.stdout
    assert "broken: CUDA failed" in done.stdout
    assert done.stderr == ""
    forgetful = "from daemon.backends.gpu.cuda import Cuda; card = Cuda(0); memory = card.host(99), card.device(99)"
    done = run(prefix / "bin" / "python", "-c", forgetful, LD_LIBRARY_PATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_it_holds_what_an_administrator_looks_for(bundle: Path) -> None:
    for name in ("README.txt", "LICENSE", "config.yaml", "emdenoised.service", "emdenoised-gpu.service", "SHA256SUMS",
                 "emdenoised.slice", "THIRD-PARTY.md", "sbom.cdx.json",
                 "weights/aliases.yaml", *(f"weights/{weights}/{file}" for weights in manifest.names() for file in (
                     "README.md", *manifest.load(manifest.locate(weights)).sha256))):  # fmt: skip
        assert (bundle / name).is_file(), name
    text = (bundle / "README.txt").read_text()
    assert "sudo ./install.sh" in text
    (reader,) = (bundle / "wheels").glob("rosettasciio-*.whl")
    version = reader.name.split("-")[1]
    assert f"RosettaSciIO {version}, under the GNU General Public License 3" in text and "--without-reader" in text
    assert any("GNU GENERAL PUBLIC LICENSE" in path.read_text("latin-1") for path in (bundle / "gpl").iterdir())
    assert (bundle / "gpl" / f"rosettasciio-{version}.tar.gz").stat().st_size > 100_000
    assert "gpl/" in (bundle / "SHA256SUMS").read_text()
    assert {path.suffix for path in (bundle / "wheels").iterdir()} == {".whl"}


def damage(folder: Path) -> None:
    wheel = next((folder / "wheels").glob("numpy-*.whl"))
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.unlink()
    wheel.write_bytes(content)


def forge(line: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "FOR").unlink()
        (folder / "FOR").write_text(line)

    return change


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (damage, "files are damaged or missing: copy the bundle again"),
        (lambda folder: (folder / "wheels").rename(folder / "gone"), "files are damaged or missing"),
        (forge("3.2 x86_64 cpu\n"), "this bundle is for Python 3.2"),
        (forge(f"3.{sys.version_info.minor} riscv64 cpu\n"), "this bundle is for riscv64"),
    ],
    ids=["damaged", "incomplete", "another Python", "another machine"],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_installed(
    copied: Path, tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(copied)
    done = run(copied / "install.sh", tmp_path / "prefix")
    assert done.returncode == 1
    assert says in done.stderr
    assert not (tmp_path / "prefix").exists()


def test_a_folder_with_something_else_in_it_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("five years of work")
    done = run(bundle / "install.sh", tmp_path)
    assert done.returncode == 1
    assert "holds something else" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_python_that_is_not_there_and_an_option_that_is_none_are_named(bundle: Path, tmp_path: Path) -> None:
    done = run(bundle / "install.sh", tmp_path / "prefix", PYTHON="python2.1")
    assert "python2.1 was not found" in done.stderr
    done = run(bundle / "install.sh", "--sevrice")
    assert "unknown option --sevrice" in done.stderr
    done = run(bundle / "install.sh", "--drop")
    assert "--drop needs a value" in done.stderr
    done = run(bundle / "install.sh", "--help")
    assert done.returncode == 0
    assert "usage: install.sh" in done.stdout
