"""The script of the array job: hostile paths, own templates, and what sbatch answers."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from quick_batch import QuickBatch

from daemon.batch import slurm
from daemon.errors import UsageError


def lines(text: str) -> dict[str, str]:
    found = (line.removeprefix("#SBATCH --").partition("=") for line in text.splitlines() if line.startswith("#SBATCH"))
    return {name: value for name, _, value in found}


def test_the_script_quotes_what_the_shell_would_read() -> None:
    command = ["emdenoised", "batch", "/a b/$(touch x)'\n@TASKS@", "-o", "/out"]
    text = slurm.script(Path("/o ut/100%"), command, 5)
    assert lines(text)["array"] == "0-4"
    assert lines(text)["output"] == '"/o ut/100%%/.emdenoised-batch/slurm-%A_%a.log"'
    begin = text.index("emdenoised batch '/a b")
    assert shlex.split(text[begin : text.index(" &\nshard=")])[: len(command)] == command
    assert "$SLURM_ARRAY_TASK_ID/5" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize("name", ["line\nbreak", 'quo"te', "back\\slash"])
def test_paths_that_a_line_of_sbatch_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="SLURM takes no quotes"):
        slurm.script(Path("/") / name, ["emdenoised"], 1)


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.sh"
    mine.write_text("#!/bin/bash\n#SBATCH -p gpu\nsrun @COMMAND@ --shard $SLURM_ARRAY_TASK_ID/@TASKS@\nmail@LOGIN@x\n")
    assert slurm.script(Path("/o"), ["e"], 3, mine).splitlines()[2:] == [
        "srun e --shard $SLURM_ARRAY_TASK_ID/3", "mail@LOGIN@x",
    ]  # fmt: skip
    mine.write_text("#!/bin/bash\n")
    with pytest.raises(UsageError, match=r"lacks @COMMAND@ and @TASKS@; begin with a copy of .*slurm\.sh"):
        slurm.script(Path("/o"), ["e"], 3, mine)
    with pytest.raises(UsageError, match="cannot be read as a template"):
        slurm.script(Path("/o"), ["e"], 3, tmp_path)


def scontrol(tmp_path: Path, status: int, restarts: str, log: Path) -> int:
    """Run the shipped script's end around a command with this status, with a stand-in for scontrol."""
    for name, text in (("scontrol", f'#!/bin/sh\necho "$@" >> {log}\n'), ("sleep", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "work").write_text(f"#!/bin/sh\nexit {status}\n")
    (tmp_path / "work").chmod(0o755)
    text = slurm.script(Path("/o"), [str(tmp_path / "work")], 3)
    values = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_RESTART_COUNT": restarts,
    }  # fmt: skip
    return subprocess.run(["bash"], input=text, text=True, env=values, check=False).returncode


def test_75_is_queued_again_and_others_are_not(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert [scontrol(tmp_path, status, "0", log) for status in (0, 1, 78)] == [0, 1, 78] and not log.exists()
    assert scontrol(tmp_path, 75, "100", log) == 75 and not log.exists(), "it gives up after some tries"
    assert scontrol(tmp_path, 75, "", log) == 75 and log.read_text() == "requeue 7_2\n"


@pytest.fixture
def batch(tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> QuickBatch:
    made = QuickBatch(tmp_path, write, monkeypatch)
    made.write("a.tif", "b.tif")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return made


def sbatch(batch: QuickBatch, text: str) -> None:
    program = batch.root / "bin/sbatch"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def test_submitting(batch: QuickBatch, capsys: pytest.CaptureFixture[str]) -> None:
    sbatch(batch, 'echo "Submitted batch job 12"')
    assert batch.run("--slurm", "--tasks", "9", "--profile", "low", "--verify") == 0
    said = capsys.readouterr().out
    assert "Submitted batch job 12" in said and "2 micrographs in 2 shards" in said and "--status" in said
    text = (batch.out / ".emdenoised-batch/slurm.sh").read_text()
    words = shlex.split(next(line for line in text.splitlines() if "--shard" in line and " batch " in line))
    begin = words.index("batch")
    end = words.index("--shard")
    assert batch.run("--slurm", "--dry-run") == 0 and not batch.made()
    from daemon.commands.main import main

    assert main([*words[begin:end], "--shard", "0/1"]) == 0 and batch.made() == 2, "what a task runs"


def test_nothing_is_written_by_a_dry_run(batch: QuickBatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.run("--slurm", "--dry-run", "--tasks", "3") == 0 and not batch.out.exists()
    assert lines(capsys.readouterr().out)["array"] == "0-2"


def test_sbatch_that_refuses_or_is_missing(
    batch: QuickBatch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch(batch, "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    assert batch.run("--slurm") == 2 and "invalid partition" in capsys.readouterr().err
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert batch.run("--slurm") == 2 and "sbatch is not installed here; submit" in capsys.readouterr().err
