"""`python -m engine_build WEIGHTS -o engines/`: a weights folder → a GPU engine that passed the gate.

Needs neither torch nor the training package. Output, the engine's manifest last; NAME states weights, flavour, tile and
batch:

    NAME.engine        the engine
    NAME.half.onnx     its float16 graph, for inspection
    NAME.engine.json   its source, its target, and the gate's figures
"""

import argparse
import fcntl
import hashlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import onnx
except ImportError as error:
    print(f"engine_build: {error}; pip install 'emdenoised[rtx]', or 'emdenoised[gpu]'", file=sys.stderr)
    raise SystemExit(78) from error
import onnxruntime

from daemon.backends import manifest, tiling
from daemon.backends.gpu.engine import (
    OPTIONS,
    EngineManifest,
    Gate,
    Sides,
    engine_path,
    load_manifest,
    manifest_of,
    tile_of,
)
from daemon.backends.gpu.nvidia import RTX_CARDS, RTX_TARGETS, Flavour, Gpu, find_gpu, load_tensorrt
from daemon.errors import BackendError, ConfigError, EmdenoisedError, WeightsError
from daemon.files import save
from daemon.settings.config import EX_CONFIG
from engine_build import gate, on_card
from engine_build.build import build
from engine_build.half import finite, half_body

log = logging.getLogger("engine_build")

GATE_SIDE = 256
"""Side of the gate's tiles on the processor, pixels; a GPU is judged on its own tiles."""


def make_engine(
    folder: Path,
    out: Path,
    flavour: Flavour,
    *,
    targets: tuple[str, ...] = (),
    tile: int | Sides = 0,
    batch: int = 1,
    device: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Build the engine of a weights folder and compare float16 with float32 on the processor; returns its path.

    `targets`: compute capabilities for rtx, as "sm86", or "current". `tile`: side, or rows and columns, in pixels;
    0 for the default.
    Raises WeightsError for weights that are damaged, exceed half precision or that TensorRT cannot read, ConfigError if
    this computer cannot build the engine, BackendError if building fails; nothing is written then.
    """
    weights = manifest.load(folder)
    trt = load_tensorrt(flavour)
    card = find_gpu(device)
    if flavour == "tensorrt" and card is None:
        raise ConfigError(
            "TensorRT tunes an engine on the card it will run on, and there is no NVIDIA driver here; run this on the "
            "microscope PC, or build for RTX cards with --flavour rtx"
        )
    targets = _targets(trt, flavour, targets, card.capability if card else None)
    sides = tile_of(weights, tile) if isinstance(tile, int) else tile
    tiling.require(folder, weights, sides, weights.halo, 0)
    progress("reading the network")
    model = onnx.load(folder / weights.onnx)
    _require_shape(model, sides, folder)
    content, verdict = _halved(folder, weights, model, sides, progress)
    shapes = {"units": (batch, 1, *sides), "level": (batch, 1, 1, 1)}
    with _unsuitable_cards_named(flavour, card):
        built = build(content, shapes, flavour, targets, out / "timing.cache", progress)
    engine = engine_path(out, weights, flavour, sides, batch)
    manifest_of(engine).unlink(missing_ok=True)  # beside an old manifest a new engine would count as damaged
    save(engine, built.engine)
    save(engine.with_suffix(".half.onnx"), content)
    about = EngineManifest(
        weights=weights.name,
        network=weights.network,
        onnx_sha256=weights.sha256[weights.onnx],
        engine_sha256=hashlib.sha256(built.engine).hexdigest(),
        precision="float16 body, float32 around it",
        flavour=flavour,
        version=trt.__version__,
        targets=targets,
        gpu=card.name if card else None,
        driver=card.driver if card else None,
        tile=sides,
        batch=batch,
        options=OPTIONS,
        layers=built.layers,
        scratch=built.scratch,
        seconds=round(built.seconds, 2),
        said=built.said,
        gate=verdict,
    )
    save(manifest_of(engine), about.model_dump_json(indent=1).encode() + b"\n")
    return engine


def _halved(
    folder: Path, weights: manifest.Manifest, model: onnx.ModelProto, sides: Sides, progress: Callable[[str], None]
) -> tuple[bytes, Gate]:
    """The float16 graph, and its comparison with float32 on the processor. Raises WeightsError beyond the limits."""
    try:
        finite(model)
        half = half_body(model)
        on_cpu = gate.rounded(model)
    except ValueError as error:
        raise WeightsError(f"{folder / weights.onnx}: {error}") from error
    progress("comparing float16 with float32 on the processor")
    cases = gate.cases((_gate_side(model, sides),) * 2, weights.scaling)
    ran_on = f"cpu: ONNX Runtime {onnxruntime.__version__}"
    verdict = gate.judge(gate.on_processor(model), gate.on_processor(on_cpu), cases, ran_on, on_gpu=False)
    return half.SerializeToString(), verdict


@contextmanager
def _unsuitable_cards_named(flavour: Flavour, card: Gpu | None) -> Iterator[None]:
    """Raises ConfigError instead if a build fails because the flavour does not support the card."""
    try:
        yield
    except BackendError as error:
        if flavour == "rtx" and card is not None and card.capability not in RTX_CARDS:
            raise ConfigError(
                f"{error}. TensorRT-RTX is made for {', '.join(RTX_CARDS)}, and {card.name} is {card.capability}: "
                "use --flavour tensorrt (backend.flavour in config.yaml), or backend.kind: cpu"
            ) from error
        raise


def finish_gate(folder: Path, engine: Path, device: int = 0, progress: Callable[[str], None] = lambda _: None) -> Gate:
    """Compare an engine with float32 on this computer's card, and write the figures to its manifest.

    Raises WeightsError if they exceed the limits, BackendError if the card cannot run the engine.
    """
    weights, about, card = manifest.load(folder), load_manifest(engine), find_gpu(device)
    if card is None:
        raise BackendError(f"{engine}: no NVIDIA driver answers for GPU {device}, so it cannot be run here")
    progress(f"comparing the engine with float32 on {card.name}")
    model = onnx.load(folder / weights.onnx)
    cases = gate.cases(about.tile, weights.scaling)
    windows = gate.windows(about.tile, weights.halo, weights.align)
    with on_card.loaded(engine, about, device) as candidate:
        verdict = gate.judge(gate.on_processor(model), candidate, cases, str(card), on_gpu=True, windows=windows)
    save(manifest_of(engine), about.model_copy(update={"gate": verdict}).model_dump_json(indent=1).encode() + b"\n")
    return verdict


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Lock a folder for one builder: a service and `emdenoised doctor` may need the same engine."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "builder.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _targets(trt: Any, flavour: Flavour, asked: tuple[str, ...], capability: str | None) -> tuple[str, ...]:
    if flavour == "rtx":
        return tuple(target.lower() for target in asked) or tuple(
            target for target in RTX_TARGETS if target.upper() in trt.ComputeCapability.__members__
        )
    if asked:
        raise ConfigError("--targets is for --flavour rtx: TensorRT builds for the card that is in this computer")
    return (capability,) if capability else ()


def _sides(model: onnx.ModelProto) -> list[int]:
    """Height and width of the network's tiles; 0: any."""
    (units,) = (given for given in model.graph.input if given.name == "units")
    return [dimension.dim_value for dimension in units.type.tensor_type.shape.dim[2:]]


def _require_shape(model: onnx.ModelProto, sides: Sides, folder: Path) -> None:
    for fixed, side in zip(_sides(model), sides, strict=True):
        if fixed not in (0, side):
            raise ConfigError(f"{folder}: these weights work on tiles of {fixed} pixels only; state --tile {fixed}")


def _gate_side(model: onnx.ModelProto, sides: Sides) -> int:
    return max(_sides(model)) or min(*sides, GATE_SIDE)


def _tile(text: str) -> int | Sides:
    """ "1024" or "4096x3072" (rows x columns)."""
    numbers = [int(part) for part in text.split("x")]
    if len(numbers) > 2 or any(number < 0 for number in numbers):
        raise ValueError
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine_build",
        description="Make a GPU engine from a weights folder: float16 arithmetic between float32 inputs and outputs, "
        "compared with float32 before it is accepted.",
        epilog=f"Without --targets an rtx engine runs on {', '.join(RTX_TARGETS)} (RTX 30, 40 and 50 series); "
        "--targets sm75 is for the RTX 20 series.",
    )
    parser.add_argument("weights", help="a shipped name or a weights folder")
    parser.add_argument(
        "--flavour", choices=("tensorrt", "rtx"), default="rtx",
        help="rtx: for GeForce RTX and RTX workstation cards, built on any computer; tensorrt: for all others, built "
        "on the computer they are in (rtx)",
    )  # fmt: skip
    parser.add_argument(
        "--targets", default="",
        help="for rtx: compute capabilities, for instance sm86,sm89, or current for the card in this computer",
    )  # fmt: skip
    parser.add_argument(
        "--tile", type=_tile, default=0,
        help="side of the tiles in pixels, or rows x columns as 4096x3072 (as the daemon asks for by default)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=1, help="tiles computed at once (1)")
    parser.add_argument("--device", type=int, default=0, help="number of the card, as nvidia-smi counts (0)")
    parser.add_argument(
        "--gate-only", action="store_true",
        help="build nothing: run the existing engine on this computer's card and compare it with float32",
    )  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for engine and manifest")
    return parser


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if options.batch < 1:
        parser.error("--batch must be at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    targets = tuple(filter(None, options.targets.split(",")))
    folder = manifest.locate(options.weights)
    try:
        with _alone(options.out):
            if options.gate_only:
                weights = manifest.load(folder)
                tile = tile_of(weights, options.tile) if isinstance(options.tile, int) else options.tile
                engine = engine_path(options.out, weights, options.flavour, tile, options.batch)
            else:
                engine = make_engine(
                    folder,
                    options.out,
                    options.flavour,
                    targets=targets,
                    tile=options.tile,
                    batch=options.batch,
                    device=options.device,
                    progress=log.info,
                )
            if options.gate_only or find_gpu(options.device):
                finish_gate(folder, engine, options.device, log.info)
    except EmdenoisedError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return EX_CONFIG if isinstance(error, (ConfigError, WeightsError)) else 1
    except OSError as error:
        print(f"{parser.prog}: {options.out}: cannot be written ({error.strerror})", file=sys.stderr)
        return EX_CONFIG
    about = EngineManifest.model_validate_json(manifest_of(engine).read_bytes())
    for line in about.said:
        print(f"TensorRT: {line}")
    print(_account(engine, about))
    return 0


def _account(engine: Path, about: EngineManifest) -> str:
    """Facts of the engine, for the terminal."""
    judged = about.gate
    lines = [
        f"{engine}: {engine.stat().st_size / 1e6:.1f} MB, {about.layers} layers, built in {about.seconds:.1f} s by "
        f"{about.flavour} {about.version} for {', '.join(about.targets)}, tiles of "
        f"{about.tile[0]} x {about.tile[1]}, {about.batch} at once",
        f"against float32 on {judged.cases} tiles, on {judged.ran_on}: {judged.rms:.2%} of the noise (RMS), "
        f"{judged.largest:.2%} at worst, "
        f"{judged.psnr_loss:.4f} dB lost at most",
    ]
    if not judged.on_gpu:
        lines.append("not yet run on a GPU: the daemon does that, and compares again, when it first loads it")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
