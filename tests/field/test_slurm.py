"""A real SLURM on loopback: an array job that is killed, queued again, cancelled, and submitted twice.

Needs Debian's slurm-wlm and munge, and root; skipped, with the reason, without. Ports and sockets are its own.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from site_of_daemon import ROOT, free_port, until

pytestmark = [pytest.mark.field, pytest.mark.timeout(900)]

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={0}/munge.socket,cred_expire=5
StateSaveLocation={0}/state
SlurmdSpoolDir={0}/spool
SlurmctldPidFile={0}/slurmctld.pid
SlurmdPidFile={0}/slurmd.pid
SlurmctldPort={ctld}
SlurmdPort={slurmd}
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=5
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""
FILES, TASKS = 40, 4


class Cluster:
    """One node, whose programs run in the foreground as children of this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("state", "spool"):
            (root / name).mkdir()
        (root / "munge.key").write_bytes(os.urandom(64))
        (root / "munge.key").chmod(0o600)
        names = {"host": socket.gethostname().partition(".")[0], "ctld": free_port(), "slurmd": free_port()}
        (root / "slurm.conf").write_text(CONF.format(root, **names))
        self.environment = {**os.environ, "SLURM_CONF": str(root / "slurm.conf"), "PYTHONPATH": str(ROOT)}
        self.environment |= {"OMP_NUM_THREADS": "1"}
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        files = [f"--{name}={self.root}/munge.{end}" for name, end in (
            ("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"),
        )]  # fmt: skip
        self._launch("munged", "--foreground", "--force", *files)
        until((self.root / "munge.socket").exists)
        self._launch("slurmctld", "-D", "-f", str(self.root / "slurm.conf"))
        self._launch("slurmd", "-D", "-f", str(self.root / "slurm.conf"))
        until(lambda: "idle" in self.say("sinfo", "-h", "-o", "%T"), 0.5)

    def _launch(self, *command: str) -> None:
        with (self.root / f"{command[0]}.txt").open("wb") as said:
            self._started.append(subprocess.Popen(command, env=self.environment, stdout=said, stderr=said))

    def say(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout + done.stderr

    def jobs(self, state: str = "pending,running,completing") -> list[str]:
        """Tasks of arrays that are in one of these states, such as 1_0."""
        return self.say("squeue", "-h", "-r", "-o", "%i", "-t", state).split()

    def stop(self) -> None:
        self.say("scancel", "--user=root")
        until(lambda: not self.jobs(), 0.5)
        for one in reversed(self._started):
            one.terminate()
            one.wait(30)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"needs root and Debian's slurm-wlm and munge; missing here: {', '.join(missing) or 'root'}")
    (tmp_path / "slurm").mkdir()
    made = Cluster(tmp_path / "slurm")
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Archive:
    """Micrographs, their results, and the command with real weights."""

    def __init__(self, root: Path, cluster: Cluster, write: Callable[..., Path]) -> None:
        self.source, self.out, self._cluster = root / "an archive", root / "re%sults", cluster
        for number in range(FILES):
            write(self.source / f"grid {number % 3}/{number}.{'mrc' if number % 2 else 'tif'}", number)
        self.template = root / "template.sh"
        shipped = (ROOT / "daemon/batch/slurm.sh").read_text()
        self.template.write_text(
            shipped.replace("--cpus-per-task=4", "--cpus-per-task=1").replace("--mem=8G", "--mem=0")
        )

    def batch(self, *options: str) -> int:
        words = [sys.executable, "-m", "emdenoised", "batch", str(self.source), "-o", str(self.out), *options]
        return subprocess.run(words, env=self._cluster.environment, cwd=ROOT, check=False, timeout=300).returncode

    def submit(self) -> None:
        assert self.batch("--slurm", "--tasks", str(TASKS), "--template", str(self.template)) == 0

    def images(self) -> list[Path]:
        return [path for path in self.out.rglob("*") if path.suffix in (".tif", ".mrc") and path.name[0] != "."]

    def log(self, task: str) -> str:
        file = self.out / f".emdenoised-batch/slurm-{task}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def worker(self, shard: int) -> int:
        """The process that works on a shard."""
        mark = self.out / f".emdenoised-batch/running-{shard}-of-{TASKS}.json"
        found: list[str] = []

        def stated() -> bool:
            with contextlib.suppress(FileNotFoundError):
                found[:] = re.findall(r'"pid": (\d+)', mark.read_text())
            return bool(found)

        until(stated)
        return int(found[0])

    def require_each_once(self) -> None:
        made = Counter(str(path.relative_to(self.out)) for path in self.images())
        wanted = {str(path.relative_to(self.source)) for path in self.source.rglob("*") if path.is_file()}
        assert set(made) == wanted and set(made.values()) == {1}
        raw = [json.loads(path.with_name(f"{path.name}.json").read_text())["raw"]["sha256"] for path in self.images()]
        assert len(set(raw)) == FILES
        kept = {"manifest.jsonl", "slurm.sh"}
        rest = [path.name for path in self.out.rglob(".*") if path.name != ".emdenoised-batch"]
        rest += [path.name for path in (self.out / ".emdenoised-batch").iterdir() if path.suffix != ".log"]
        assert set(rest) == kept, "neither temporary files nor marks nor failures"


def test_kill_requeue_cancel_resubmit_and_overlap(cluster: Cluster, tmp_path: Path, write: Callable[..., Path]) -> None:
    archive = Archive(tmp_path, cluster, write)
    archive.submit()
    until(lambda: len(archive.images()) >= 3, 0.1)
    os.kill(archive.worker(0), signal.SIGKILL)  # as the kernel does when memory runs out
    os.kill(archive.worker(1), signal.SIGTERM)  # as before the end of the job's time
    until(lambda: "asked to end (SIGTERM)" in archive.log("1_1"), 0.1)
    until(lambda: "1_2" in cluster.jobs("running"), 0.2)
    cluster.say("scontrol", "requeue", "1_2")  # as a node that is drained, or a job of higher priority
    until(lambda: len(archive.images()) >= 12, 0.1)
    cluster.say("scancel", "1_3")
    assert archive.batch("--status") == 75
    archive.submit()
    archive.submit()  # overlaps the second, shard by shard
    until(lambda: not cluster.jobs(), 0.5)
    archive.submit()  # what was left by kills
    until(lambda: not cluster.jobs(), 0.5)
    assert archive.batch("--status", "--verify") == 0
    archive.require_each_once()
