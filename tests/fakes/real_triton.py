"""A real Triton server on a loopback port: the binary of the wheel nvidia-pytriton, in an environment of its own.

`make triton` installs it (447 MB) into build/triton, which EMDENOISED_TRITON replaces. That wheel has Triton's python
backend only, so `triton_model.py` stands in for its ONNX and TensorRT backends, under their names: the server loads the
repository as `engine_build` writes it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from site_of_daemon import ROOT, free_port, until

from daemon.backends import manifest

HOME = Path(os.environ.get("EMDENOISED_TRITON", ROOT / "build" / "triton"))
PACKAGES = HOME / "lib" / "python3.11" / "site-packages"
SERVER = PACKAGES / "pytriton" / "tritonserver"
MODEL = manifest.aliases()["fast"]
TILE = 256


class Triton:
    """Serves one model of a repository that `engine_build` writes. Use as a context manager."""

    def __init__(self, root: Path, *options: str, batch: int = 1, port: int | None = None) -> None:
        if not (SERVER / "bin" / "tritonserver").is_file():
            pytest.skip(f"no Triton server in {HOME}: `make triton` installs one")
        root.mkdir(exist_ok=True)
        self.root, self.options = root, options
        self.repository, self.port = root / "repository", port or free_port()
        self.process: subprocess.Popen[bytes] | None = None
        command = [sys.executable, "-m", "engine_build", MODEL, "--triton", str(self.repository)]
        command += ["--tile", str(TILE), "--processor", "cpu", "--batch", str(batch)]
        subprocess.run(command, check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(ROOT)})
        self.folder = self.repository / MODEL
        backends = root / "backends"
        shutil.copytree(SERVER / "backends" / "python", backends / "python")
        for name in ("onnxruntime", "tensorrt"):
            (backends / name).mkdir()
            shutil.copy(Path(__file__).parent / "triton_model.py", backends / name / "model.py")
        for stub in (SERVER / "python_backend_stubs" / "3.11").iterdir():
            shutil.copy(stub, backends / "python")

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def configure(self, old: str, new: str) -> None:
        """Change the configuration that the next start reads."""
        path = self.folder / "config.pbtxt"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def delay(self, seconds: float) -> None:
        """Before each answer from now on."""
        (self.folder / "1" / "delay").write_text(str(seconds))

    def start(self, wait: bool = True) -> None:
        with (self.root / "triton.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    SERVER / "bin" / "tritonserver", "--model-repository", self.repository,
                    "--backend-directory", self.root / "backends", "--grpc-port", str(self.port),
                    "--grpc-address", "127.0.0.1", "--allow-http", "false", "--allow-metrics", "false",
                    "--exit-timeout-secs", "10", *self.options,
                ],
                stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "PYTHONPATH": "", "LD_LIBRARY_PATH": str(PACKAGES / "nvidia_pytriton.libs"),
                     "PATH": f"{HOME / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        if wait:
            until(self._ready)

    def _ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.root / "triton.log").read_text()
        return "Started GRPCInferenceService" in (self.root / "triton.log").read_text().rpartition("server_id")[2]

    def stubs(self) -> list[int]:
        """Processes of the python backend."""
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill −9, with its children, and wait for the end."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def __enter__(self) -> "Triton":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
