"""Measures the speed of the GPU path and its limits, on the computer with the card: `make gpu-benchmark`.

It writes `gpu.json`, every measurement raw and the card named, and a timeline of each network, into
benchmarks/results/gpu. For each network and frame size: the bare engine, the pipeline and the whole daemon; the same
tiles by PyTorch (eager, compiled, as a CUDA graph) and by ONNX Runtime; beside them the card's own matrix and copy
rates. If TensorRT does not support the card, PyTorch replaces it behind the same slots and streams, and the result
states so.

`--dry-run` runs every step on a fake card, to test the script; its figures have no meaning.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from fake_gpu import plug_in
from gpu_rivals import Rivals, flop_of
from gpu_weights import RANDOM, engine_without_gate, papers_network
from stand_in import stand_in, why_tensorrt_does_not_run
from timeline import Timeline, draw

from daemon.backends import manifest, open_backend, tiling
from daemon.backends.gpu import shapes
from daemon.backends.gpu.device import Single
from daemon.backends.gpu.nvidia import find_gpu
from daemon.backends.gpu.pipeline import Pipeline
from daemon.backends.manifest import Manifest
from daemon.backends.protocol import SLOTS
from daemon.counts.prepare import plane
from daemon.counts.profiles import Choice
from daemon.output.record import read_record
from daemon.service import inference
from daemon.service.service import Service
from daemon.settings.config import BackendConfig, Config
from daemon.settings.profile import Profile

SIDES = (512, 1024, 2048, 4096, 8192)
HITS = (0, 10, 100, 1000)
"""X-ray hits in a frame: the host's share grows with them."""
USUAL_HITS = 10
LEAST_FRAMES = 12
TARGET_SECONDS = 3.0
"""Approximate length of the run for each figure, seconds."""


@dataclass
class Plan:
    """Extent of the measurements; smaller in a dry run."""

    dry: bool
    sides: tuple[int, ...]
    tile: int
    frames: Callable[[float], int]
    rivals: Rivals


def choice() -> Choice:
    return Choice(Profile(name="benchmark"), "", 1.0, 0.0)


def frames_of(side: int, number: int, hits: int = USUAL_HITS) -> list[np.ndarray]:
    """A few different micrographs, given again and again: a specimen of 20 counts, and so many X-ray hits."""
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(side) / 11)
    made = []
    for _ in range(number):
        frame = np.empty((side, side), np.uint16)
        for top in range(0, side, 512):
            frame[top : top + 512] = rng.poisson(20 * (1 + 0.4 * wave[top : top + 512, None] * wave))
        frame[rng.integers(0, side, hits), rng.integers(0, side, hits)] = rng.integers(2_000, 60_000, hits)
        made.append(frame)
    return made


class Timer:
    """Wall time, and the processor time of this thread."""

    def __enter__(self) -> "Timer":
        self.wall, self.cpu = -time.perf_counter(), -time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter()
        self.cpu += time.thread_time()


def bare_engine(opened: Any, side: int, plan: Plan, weights: Manifest) -> dict[str, Any]:
    """The network that runs on such frames, for all the tiles of one, on one stream with nothing else."""
    network, driver = opened.of((side, side)), opened.driver
    tiles = len(tiling.plan((side, side), network.tile, weights.halo, weights.align))
    runs = -(-tiles // network.batch)
    nbytes = 4 * network.batch * network.tile[0] * network.tile[1]
    units, level, result = (driver.device(size) for size in (nbytes, 4 * network.batch, nbytes))
    given = driver.host(nbytes)
    stream, done = driver.stream(), driver.event()
    # Noise of what it is made for: a card computes zeros with less power, and so faster.
    numbers = given.array[:nbytes].view(np.float32)
    numbers[:] = np.random.default_rng(0).standard_normal(len(numbers), np.float32)
    driver.upload(given, units, nbytes, stream)
    driver.record(done, stream)
    driver.synchronise(done)
    numbers[: network.batch] = 0.1
    driver.upload(given, level, 4 * network.batch, stream)

    def frame() -> float:
        with Timer() as timer:
            for _ in range(runs):
                network.enqueue(units.at(0), level.at(0), result.at(0), stream)
            driver.record(done, stream)
            driver.synchronise(done)
        return timer.wall

    first = frame()
    seconds = [frame() for _ in range(plan.frames(first))]
    for memory in (units, level, result, given):
        driver.free(memory)
    return {
        "tile": list(network.tile), "tiles": tiles, "runs": runs, "seconds": seconds,
        "median": statistics.median(seconds),
    }  # fmt: skip


def settle(opened: Any, side: int, weights: Manifest) -> None:
    """Frames of a shape until their engine is there; building it is no part of what is measured."""
    given = frames_of(side, 1)[0]
    for _ in opened.denoise(plane(given, choice(), weights.dose_range) for _ in range(shapes.FRAMES_FIRST + 2)):
        pass


def pipeline(
    opened: Any, side: int, plan: Plan, weights: Manifest, expected: float, hits: int = USUAL_HITS
) -> dict[str, Any]:
    """Frames from host memory to host memory, as in the daemon's network thread."""
    given = frames_of(side, SLOTS, hits)
    number = 2 * SLOTS if plan.dry else max(3 * SLOTS, plan.frames(expected))
    with Timer() as timer:
        source = (plane(given[index % SLOTS], choice(), weights.dose_range) for index in range(number))
        ended = [time.perf_counter() for _ in opened.denoise(source)]
    steady = [later - earlier for earlier, later in zip(ended[SLOTS:], ended[SLOTS + 1 :], strict=False)]
    mean = (ended[-1] - ended[SLOTS]) / (len(ended) - 1 - SLOTS)
    return {
        "frames": number,
        "seconds": steady,
        "mean": mean,
        "host_cpu_seconds_a_frame": timer.cpu / number,
    }


def whole_daemon(
    name: str, folder: Path, side: int, plan: Plan, expected: float, tile: int, batch: int, engines: Path
) -> dict[str, Any]:
    """Files to files on a RAM disk where there is one, uncompressed, without previews; and the storage on its own.

    `engines`: where the benchmark's own are: the daemon takes the same.
    """
    ram = Path("/dev/shm")
    free = shutil.disk_usage(ram if ram.is_dir() else tempfile.gettempdir()).free
    number = max(6 if plan.dry else LEAST_FRAMES, min(plan.frames(expected), int(0.4 * free) // (6 * side * side)))
    with tempfile.TemporaryDirectory(dir=ram if ram.is_dir() and os.access(ram, os.W_OK) else None) as place:
        root = Path(place)
        config = Config.model_validate(
            {"folders": {part: str(root / part) for part in ("drop", "output", "state")},
             "arrival": {"settle_seconds": 0.01, "rescan_seconds": 0.2, "suspicious_tail_seconds": 0},
             "profiles": {"counts": {"gain": 1.0, "weights": f"{folder}/"}}, "default_profile": "counts",
             "output": {"preview": False},
             "backend": {"kind": "tensorrt", "tile": tile, "batch": batch, "queue": 8}}
        )  # fmt: skip
        for part in ("drop", "output", "state"):
            (root / part).mkdir()
        config.folders.engines.symlink_to(engines, target_is_directory=True)
        given = frames_of(side, 2)
        for index in range(number):
            tifffile.imwrite(root / "drop" / f"{name}-{index:04}.tif", given[index % 2])
        storage = storage_alone(root, side, number)
        cpu = -time.process_time()
        service = Service(config)
        with pytest.MonkeyPatch.context() as patch:
            if manifest.load(folder).name == RANDOM:  # such weights denoise nothing
                patch.setattr(inference, "canary", lambda _: None)
            service.start()
        while not service.idle and service.failure is None:
            time.sleep(0.01)
        service.stop()
        cpu += time.process_time()
        if service.failure is not None:
            raise service.failure
        written = sorted(path.stat().st_mtime_ns * 1e-9 for path in (root / "output").glob("*.tif"))
        if len(written) != number:
            raise RuntimeError(f"{len(written)} of {number} micrographs came out")
        found = [read_record(path) for path in sorted((root / "output").glob("*.json"))]
        steps = [record.seconds for record in found if record is not None]
    warm = min(number // 3, 8)  # the first wait for engine and buffers
    mean = (written[-1] - written[warm]) / (number - 1 - warm)
    return {
        "frames": number,
        "mean": mean,
        "storage_mean": storage,
        "process_cpu_seconds_a_frame": cpu / number,
        "steps": {step: statistics.median(one[step] for one in steps) for step in steps[0]},
    }


def storage_alone(root: Path, side: int, number: int) -> float:
    """Seconds to read a raw file and to write, flush and rename its result, by one thread and nothing else."""
    result = np.zeros((side, side), np.float32)
    with Timer() as timer:
        for index, path in enumerate(sorted((root / "drop").glob("*.tif"))):
            path.read_bytes()
            target = root / "state" / f"{index}"
            with target.open("wb") as stream:
                result.tofile(stream)
                stream.flush()
                os.fsync(stream.fileno())
            target.rename(target.with_suffix(".done"))
    for path in (root / "state").glob("*.done"):
        path.unlink()
    return timer.wall / number


def timeline(opened: Any, side: int, weights: Manifest, frames: int) -> list[dict[str, Any]]:
    """Operations of each stream over time, for a few frames in the middle of a run."""
    recorder = Timeline(opened.driver, opened.of((side, side)))
    one = Pipeline(recorder, Single(recorder.network), weights, halo=weights.halo)  # type: ignore[arg-type]
    given = frames_of(side, SLOTS)
    for _ in one.denoise(plane(given[index % SLOTS], choice(), weights.dose_range) for index in range(2 * SLOTS)):
        pass
    recorder.begin()
    for _ in one.denoise(plane(given[index % SLOTS], choice(), weights.dose_range) for index in range(frames)):
        pass
    spans = recorder.spans()
    one.close()
    return spans


@contextmanager
def cards(plan: Plan, engines: Path) -> Iterator[tuple[str, str]]:
    """Make `open_backend` work: on the real card with TensorRT, or with a stand-in. Yields the card and what runs."""
    patch = pytest.MonkeyPatch()
    try:
        card = find_gpu()
        if plan.dry and card is None:
            plug_in(patch, seed=None)
            yield "none: a dry run on the processor", "ONNX Runtime on a fake card"
            return
        if card is None:
            raise SystemExit("no NVIDIA GPU answers on this computer; --dry-run tests the script without one")
        if why := why_tensorrt_does_not_run(engines):
            stand_in(patch)
            yield card.name, f"PyTorch float16 in TensorRT's place, which refused: {why}"
        else:
            yield card.name, "TensorRT"
    finally:
        patch.undo()


def network_rows(
    name: str, folder: Path, plan: Plan, engines: Path, tile: int, batch: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Every figure of one network."""
    weights = manifest.load(folder)
    settings = BackendConfig(kind="tensorrt", tile=tile, batch=batch)
    opened: Any = open_backend(settings, manifest.verified(folder), engines).inner
    (side_of_tile, _), batch = opened.network.tile, opened.network.batch
    rows: dict[str, Any] = {"backend": opened.name, "tile": side_of_tile, "batch": batch, "sides": {}}
    for side in plan.sides:
        report(f"{name}: {side} x {side}")
        settle(opened, side, weights)
        bare = bare_engine(opened, side, plan, weights)
        piped = pipeline(opened, side, plan, weights, bare["median"])
        rows["sides"][str(side)] = {"engine": bare, "pipeline": piped}
        rows["sides"][str(side)]["pipeline_over_engine_rate"] = bare["median"] / piped["mean"]
    hit = plan.sides[-2]
    expected = rows["sides"][str(hit)]["engine"]["median"]
    rows["by_hits"] = {str(hits): pipeline(opened, hit, plan, weights, expected, hits) for hits in HITS}
    rows["timeline"] = timeline(opened, hit, weights, 2 * SLOTS)
    opened.close()
    for side in plan.sides:
        report(f"{name}: the whole daemon, {side} x {side}")
        row = rows["sides"][str(side)]
        row["daemon"] = whole_daemon(name, folder, side, plan, row["pipeline"]["mean"], tile, batch, engines)
        slower = max(row["engine"]["median"], row["daemon"]["storage_mean"])
        row["daemon_over_slower_of_engine_and_storage"] = slower / row["daemon"]["mean"]
        row["limited_by"] = "engine" if row["engine"]["median"] >= row["daemon"]["storage_mean"] else "storage"
    report(f"{name}: by PyTorch and ONNX Runtime")
    rows["torch_seconds_a_batch"] = plan.rivals.torch_variants(folder, weights, side_of_tile, batch)
    plan.rivals.release()
    rows["onnx_runtime_seconds_a_batch"] = plan.rivals.onnx_runtime(folder, weights, side_of_tile, batch)
    rows["flop_a_tile"] = flop_of(weights, side_of_tile)
    largest = rows["sides"][str(plan.sides[-1])]["engine"]
    # The same number of tiles' pixels, whatever tiles the engine has.
    pixels = batch * side_of_tile**2 / opened_pixels(largest)
    seconds_a_batch = largest["median"] * pixels
    best = min(statistics.median(one) for one in rows["torch_seconds_a_batch"].values() if isinstance(one, list))
    rows["engine_seconds_a_batch"] = seconds_a_batch
    rows["faster_than_best_torch"] = best / seconds_a_batch
    return rows


def opened_pixels(engine: dict[str, Any]) -> int:
    """Pixels that were computed for a frame."""
    return int(engine["tiles"] * engine["tile"][0] * engine["tile"][1])


def in_words(row: dict[str, Any]) -> str:
    engine, piped, daemon = (1e3 * row[what][key] for what, key in (
        ("engine", "median"), ("pipeline", "mean"), ("daemon", "mean")))  # fmt: skip
    return (
        f"engine {engine:.2f} ms, pipeline {piped:.2f} ms ({row['pipeline_over_engine_rate']:.0%}), daemon "
        f"{daemon:.2f} ms ({row['daemon_over_slower_of_engine_and_storage']:.0%} of {row['limited_by']}), host "
        f"{1e3 * row['pipeline']['host_cpu_seconds_a_frame']:.1f} ms"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for gpu.json and timeline.png")
    parser.add_argument("--batch", type=int, default=1, help="tiles at once (1)")
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), help="sides of the frames, pixels")
    parser.add_argument("--networks", nargs="+", choices=("fast", "ede2018"), default=["fast", "ede2018"])
    parser.add_argument("--dry-run", action="store_true", help="every step on a fake card; the figures have no meaning")
    options = parser.parse_args()
    dry = options.dry_run
    plan = Plan(
        dry=dry,
        sides=(128, 300) if dry else tuple(sorted(options.sides)),
        tile=256 if dry else 0,
        frames=lambda seconds: 4 if dry else int(np.clip(TARGET_SECONDS / seconds, 12, 400)),
        rivals=Rivals("cpu" if dry else "cuda"),
    )
    options.out.mkdir(parents=True, exist_ok=True)

    def report(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        card, runs = stack.enter_context(cards(plan, place / "engines"))
        result: dict[str, Any] = {
            "card": card,
            "runs": runs,
            "dry_run": dry,
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "driver": asdict(driver) if (driver := find_gpu()) else None,
            "card_rates": plan.rivals.card_rates(),
            "networks": {},
        }
        plan.rivals.release()
        folders = {"fast": manifest.locate("fast")}
        if "ede2018" in options.networks and "ede2018" in manifest.names() and not dry:
            folders["ede2018"] = manifest.locate("ede2018")
        elif "ede2018" in options.networks:
            width, tile = (1 / 16, 128) if dry else (1.0, 512)
            folders["ede2018"] = papers_network(place / "ede2018", width, tile)
            if runs == "TensorRT":
                engine_without_gate(folders["ede2018"], place / "engines", options.batch)
        for name in options.networks:
            tile = 0 if name == "ede2018" else plan.tile
            rows = network_rows(name, folders[name], plan, place / "engines", tile, options.batch, report)
            spans = rows.pop("timeline")
            side = plan.sides[-2]
            draw(spans, options.out / f"timeline-{name}.png", f"{card}: {name}, {side} x {side} pixels")
            rate = rows["flop_a_tile"] * options.batch / rows["engine_seconds_a_batch"]
            rows["share_of_matrix_rate"] = rate / result["card_rates"]["float16_matrix_flop_per_s"]
            result["networks"][name] = rows
            (options.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
            for side, row in rows["sides"].items():
                report(f"{name} {side}: {in_words(row)}")
    report(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
