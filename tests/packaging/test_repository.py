"""The repository and what it asks of a microscope PC stay small, and weights come with their papers."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.backends import manifest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it along

ROOT = Path(__file__).parents[2]
LARGEST = 32 << 20
BASE = {
    "imagecodecs",
    "mrcfile",
    "numpy",
    "onnxruntime",
    "pillow",
    "prometheus-client",
    "pydantic",
    "pyyaml",
    "tifffile",
    "watchdog",
}
"""All that a microscope PC installs. A longer list is a decision, made here on purpose."""
HEAVY = {"torch", "onnx", "onnxscript", "safetensors", "scipy", "matplotlib", "skimage", "rsciio", "bm3d"}

IMPORT_ALL = """
import importlib, pkgutil, sys
import daemon
names = [found.name for found in pkgutil.walk_packages(daemon.__path__, "daemon.") if "__main__" not in found.name]
for name in names:
    importlib.import_module(name)
print(len(names), *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_tracked_files_stay_within_32_mib() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    files = [ROOT / name for name in listed.split("\0") if name]
    sizes = {path: path.stat().st_size for path in files if path.is_file()}
    largest = sorted(sizes, key=lambda path: sizes[path])[-3:]
    assert len(sizes) > 20
    assert sum(sizes.values()) <= LARGEST, f"the largest: {', '.join(str(path.relative_to(ROOT)) for path in largest)}"


@pytest.mark.parametrize("folder", sorted(p.parent for p in (ROOT / "weights").glob("*/*.onnx")), ids=lambda p: p.name)
def test_weights_have_a_manifest_and_a_model_card(folder: Path) -> None:
    about = manifest.load(folder)
    assert {about.onnx, about.safetensors} - {None} <= {path.name for path in folder.iterdir()}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# Model card: `{about.name}`")
    for subject in ("licence", "trained", "use", "limit"):
        assert subject in card.lower(), f"the card says nothing of: {subject}"


def test_the_base_installs_little_and_nothing_restrictive() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {re.split(r"[<>=~! \[;]", line)[0].lower() for line in project["dependencies"]} == BASE
    assert project["license"] == "Apache-2.0"
    assert {"gpu", "rtx", "formats", "train", "dev"} <= set(project["optional-dependencies"])


def test_no_module_of_the_daemon_imports_training_or_its_tools() -> None:
    """import-linter reads the source; this runs it, so that nothing comes in by the back door."""
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    number, *modules = done.stdout.split()
    assert int(number) > 20
    assert not (HEAVY | {"training", "engine_build"}) & set(modules)


def test_every_package_is_marked_as_typed() -> None:
    for package in ("daemon", "emdenoised", "training", "engine_build"):
        assert (ROOT / package / "py.typed").is_file()


def test_no_code_at_run_time_executes_the_content_of_files() -> None:
    """No pickles, no eval, YAML by a loader that makes plain values only."""
    for path in sorted((ROOT / "daemon").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {name.split(".")[0] for name in names} & {"pickle", "marshal", "shelve", "dill"}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"), path
                assert not any(word.arg == "shell" or word.arg == "allow_pickle" for word in node.keywords), (
                    f"{path}: {ast.unparse(node)}"
                )
    from daemon.settings.yaml_file import _Loader

    for tag in ("tag:yaml.org,2002:python/object/apply:os.system", "!anything"):
        assert tag not in _Loader.yaml_constructors or _Loader.yaml_constructors[tag] is None


def test_only_the_monitor_listens_and_nothing_else_opens_the_network() -> None:
    """Besides it there are the service manager's socket and the one to the reading process, both local."""
    found = set()
    for path in sorted((ROOT / "daemon").rglob("*.py")):
        text = path.read_text()
        if re.search(r"^(?:import|from) (?:socket|http|urllib|asyncio|ssl)", text, re.MULTILINE):
            found.add(path.relative_to(ROOT / "daemon").as_posix())
    assert found == {
        "commands/doctor.py",
        "formats/decoder.py",
        "live_page/server.py",
        "live_page/socket_file.py",
        "output/disk.py",
        "service/systemd.py",
        "settings/monitor.py",
    }


def test_the_help_loads_nothing_that_takes_long() -> None:
    code = "import sys, daemon.commands.main; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"onnxruntime", "PIL", "numpy", "tifffile", "imagecodecs", "rsciio"} & set(loaded.split())
