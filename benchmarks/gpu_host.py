"""What a frame costs the host beside a graphics card that takes no time, and how many frames a second that allows.

    PYTHONPATH=.:tests/fakes:tests/gpu python benchmarks/gpu_host.py -o benchmarks/results/gpu_host.json

Takes about a minute on two idle cores.

Processor time, not wall time: the machine may have others on it. The network thread's is that of the real pipeline on
a driver that only surveys, beforehand; the rest is each of the other steps by itself. The model for more cores takes
the largest of three: the network thread (one core), everything together over all cores, and the part of the other steps
in which their thread holds Python's lock, which only one thread has at a time.
"""

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from gpu import HITS, choice, frames_of

from daemon import formats
from daemon.backends import manifest
from daemon.backends.gpu.buffers import HEADER
from daemon.backends.gpu.device import Single
from daemon.backends.gpu.pipeline import Pipeline
from daemon.backends.protocol import SLOTS
from daemon.counts import profiles, spikes
from daemon.counts.prepare import plane
from daemon.files import sha256, sha256_around
from daemon.micrograph import Micrograph, PixelSize
from daemon.output import preview
from daemon.verdict import judge

WEIGHTS = manifest.load(manifest.locate("fast"))
PROFILE = choice().profile
ROUNDS = 5
LOCK: dict[str, Any] = {
    "samples": 1099,
    "holding it": 112,
    "by": "py-spy 0.4 with and without --gil, 50 samples a second of the other steps, one after the other, 2026-12-01",
}
"""How often a thread at work on the other steps holds Python's lock, where nothing else wants its core.

Otherwise a thread that waits for its core holds the lock for longer: 20 % instead of 10 % with twice the time a frame.
"""


class NoTime:
    """`device.Driver` of a card that has done everything the moment it is asked."""

    def __init__(self, frame: np.ndarray) -> None:
        survey, self._streams = spikes.survey(frame, 1.0, 0.0), 0
        self._finds = np.zeros(HEADER // 8 + len(survey.suspects), np.uint64)
        self._finds[0] = len(survey.suspects)
        self._finds[1:2] = np.array([survey.total]).view(np.uint64)
        self._finds[HEADER // 8 :] = survey.suspects

    def host(self, nbytes: int) -> Any:
        return SimpleNamespace(array=np.zeros(nbytes, np.uint8))

    def device(self, nbytes: int) -> Any:
        return SimpleNamespace(at=lambda offset: offset)

    def download(self, source: Any, target: Any, nbytes: int, stream: Any) -> None:
        if stream == "upload":  # what the survey found
            target.array[: self._finds.nbytes] = self._finds.view(np.uint8)

    def stream(self) -> str:
        self._streams += 1
        return "upload" if self._streams == 1 else "other"

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class NoNetwork:
    tile, batch = (4096, 4096), 1

    def enqueue(self, *given: Any) -> None:
        pass


def least(run: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Milliseconds: the least of some rounds, which others disturb the least."""
    found = []
    for _ in range(ROUNDS):
        begin = clock()
        run()
        found.append(clock() - begin)
    return round(1e3 * min(found), 2)


def network_thread(frame: np.ndarray) -> dict[str, float]:
    one = Pipeline(NoTime(frame), Single(NoNetwork()), WEIGHTS, halo=WEIGHTS.halo)  # type: ignore[arg-type]
    asked = plane(frame, choice(), WEIGHTS.dose_range)
    list(one.denoise([asked] * SLOTS))  # every slot's memory has been touched
    survey = spikes.survey(frame, 1.0, 0.0)
    pinned = np.empty_like(frame)
    return {
        "all": least(lambda: list(one.denoise([asked])), time.thread_time),
        "of_it_copy_to_pinned_memory": least(lambda: np.copyto(pinned, frame), time.thread_time),
        "of_it_prepare": least(lambda: asked.prepare(survey), time.thread_time),
    }


def others(frame: np.ndarray, place: Path) -> dict[str, float]:
    """Everything but the network thread."""
    prepared = plane(frame, choice(), WEIGHTS.dose_range).prepare(spikes.survey(frame, 1.0, 0.0))
    denoised = np.random.default_rng(1).normal(20, 0.5, frame.shape).astype(np.float32)
    micrograph = Micrograph(frame, place / "raw.tif", "tiff")
    size = PixelSize(0.1, 0.1, "nm")
    formats.write(place / "raw.tif", "tiff", denoised[: len(frame) // 2], micrograph, {})  # as long as 16-bit pixels
    begin = formats.write(place / "out.tif", "tiff", denoised, micrograph, {})
    shown = preview.render(frame, denoised, pixels=1024, size=size, title="a", caption="b")
    return {
        "hash_raw": least(lambda: sha256(place / "raw.tif")),
        "read": least(lambda: formats.read(place / "raw.tif", 1 << 30)),
        "choose_profile": least(lambda: profiles.scaled(PROFILE, "", micrograph, profiles.dose_evidence(micrograph))),
        "judge": least(lambda: judge.judge(denoised, prepared, choice())),
        "write": least(lambda: formats.write(place / "out.tif", "tiff", denoised, micrograph, {})),
        "hash_result": least(lambda: sha256_around(place / "out.tif", begin, denoised.data)),
        "draw_preview": least(lambda: preview.render(frame, denoised, pixels=1024, size=size, title="a", caption="b")),
        "save_preview": least(lambda: preview.save(shown, place / "out.png", "benchmark")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=4096, help="of the frames, pixels (4096)")
    options = parser.parse_args()
    threads = {str(hits): network_thread(frames_of(options.side, 1, hits)[0]) for hits in HITS}
    before, ram = os.getloadavg()[0], Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=ram if ram.is_dir() else None) as place:
        rest = others(frames_of(options.side, 1)[0], Path(place))
    content = bytes(6 * options.side**2)  # of raw file and result
    floor = least(lambda: hashlib.sha256(content))
    network, together = threads["100"]["all"], sum(rest.values())
    locked = together * LOCK["holding it"] / LOCK["samples"]
    found = {
        "machine": platform.platform(), "cores": os.cpu_count(), "load_at_start": round(before, 1),
        "date": time.strftime("%Y-%m-%d"), "side": options.side, "unit": "milliseconds of processor time a frame",
        "network_thread_by_hits": threads, "other_steps": rest, "other_steps_together": round(together, 1),
        "sha256_alone_of_raw_and_result": floor,
        "pythons_lock": LOCK, "other_steps_with_the_lock": round(locked, 1),
        "model_frames_a_second": {
            str(cores): round(1e3 / max(network, locked, (network + together) / cores), 1) for cores in (2, 4, 8, 16)
        },
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
