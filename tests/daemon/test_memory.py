"""What the kernel reports of free memory."""

from pathlib import Path

from daemon.memory import memory_available


def test_free_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    assert memory_available(tmp_path / "meminfo") is None
    (tmp_path / "meminfo").write_text("MemTotal:  100 kB\nMemAvailable:     42 kB\n")
    assert memory_available(tmp_path / "meminfo") == 42 << 10
    free = memory_available()
    assert free is not None and free > 1 << 20, "of this computer"
