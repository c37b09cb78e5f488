"""`python -m engine_build WEIGHTS -o engines/`: a weights folder → a gated GPU engine the daemon can load.

Needs neither torch nor the training package. What is written, the engine's manifest last:

    NAME.FLAVOUR.engine        the engine
    NAME.FLAVOUR.half.onnx     the float16 graph it was built from, to look at
    NAME.FLAVOUR.engine.json   what it was built from and for, and how the gate judged it
"""

import argparse
import hashlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime

from daemon import manifest
from daemon.engine import SUFFIX, EngineManifest, Flavour, find_gpu, manifest_of
from daemon.errors import BackendError, EmdenoisedError
from daemon.whole import save
from engine_build import gate
from engine_build.build import WORKSPACE, build, load_tensorrt
from engine_build.half import finite, half_body

log = logging.getLogger("engine_build")

RTX_TARGETS = ("sm75", "sm86", "sm89", "sm120")
"""RTX 20, 30, 40 and 50 series and the workstation cards of the same generations."""
OPTIONS: dict[str, str | int | bool] = {"workspace": WORKSPACE, "tf32": False, "half_body": 1}
"""What else decides the engine; one built with others is stale. `half_body` counts up with `engine_build.half`."""
GATE_SIDE = 256
"""Side of the gate's tiles on the processor, pixels; a GPU is judged on its own tiles."""


def make_engine(
    folder: Path,
    out: Path,
    flavour: Flavour,
    *,
    targets: tuple[str, ...] = (),
    tile: int = 0,
    batch: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Build and gate the engine of a weights folder; returns its path in `out`.

    `targets`: compute capabilities for rtx, as "sm86", or "current". `tile`: side in pixels, 0 for the weights' own.
    Raises WeightsError for weights that are damaged or that half precision cannot hold, BackendError for what
    TensorRT refuses and for an engine that the gate refuses; nothing is written then.
    """
    weights = manifest.load(folder)
    trt = load_tensorrt(flavour)
    card = find_gpu()
    if flavour == "tensorrt" and card is None:
        raise BackendError(
            "TensorRT tunes an engine on the card it will run on, and there is no NVIDIA driver here; run this on the "
            "microscope PC, or build for RTX cards with --flavour rtx"
        )
    targets = _targets(flavour, targets, card.capability if card else None)
    side = -(-(tile or weights.tile) // weights.align) * weights.align
    progress("reading the network")
    model = onnx.load(folder / weights.onnx)
    _require_shape(model, side, folder)
    try:
        finite(model)
        half = half_body(model)
        on_cpu = gate.rounded(model)
    except ValueError as error:
        raise BackendError(f"{folder / weights.onnx}: {error}") from error
    progress("comparing float16 with float32 on the processor")
    cases = gate.cases(_gate_side(model, side), weights.scaling)
    ran_on = f"cpu: ONNX Runtime {onnxruntime.__version__}"
    verdict = gate.judge(gate.on_processor(model), gate.on_processor(on_cpu), cases, ran_on, on_gpu=False)
    content = half.SerializeToString()
    shapes = {"units": (batch, 1, side, side), "level": (batch, 1, 1, 1)}
    built = build(content, shapes, flavour, targets, out / "timing.cache", progress)
    name = f"{weights.name}.{flavour}"
    engine = out / f"{name}{SUFFIX}"
    out.mkdir(parents=True, exist_ok=True)
    manifest_of(engine).unlink(missing_ok=True)  # a new engine beside an old manifest would be called damaged
    save(engine, built.engine)
    save(out / f"{name}.half.onnx", content)
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
        tile=side,
        batch=batch,
        options=OPTIONS,
        layers=built.layers,
        seconds=round(built.seconds, 2),
        said=built.said,
        gate=verdict,
    )
    save(manifest_of(engine), about.model_dump_json(indent=1).encode() + b"\n")
    return engine


def _targets(flavour: Flavour, asked: tuple[str, ...], capability: str | None) -> tuple[str, ...]:
    if flavour == "rtx":
        return tuple(target.lower() for target in asked) or RTX_TARGETS
    if asked:
        raise BackendError("--targets is for --flavour rtx: TensorRT builds for the card that is in this computer")
    return (capability,) if capability else ()


def _sides(model: onnx.ModelProto) -> list[int]:
    """Height and width of the network's tiles; 0 where any will do."""
    (units,) = (given for given in model.graph.input if given.name == "units")
    return [dimension.dim_value for dimension in units.type.tensor_type.shape.dim[2:]]


def _require_shape(model: onnx.ModelProto, side: int, folder: Path) -> None:
    for fixed in _sides(model):
        if fixed not in (0, side):
            raise BackendError(f"{folder}: these weights work on tiles of {fixed} pixels only; leave --tile out")


def _gate_side(model: onnx.ModelProto, side: int) -> int:
    return max(_sides(model)) or min(side, GATE_SIDE)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m engine_build",
        description="Make a GPU engine from a weights folder: float16 arithmetic between float32 inputs and outputs, "
        "compared with float32 before it is let through.",
        epilog=f"Without --targets an rtx engine runs on {', '.join(RTX_TARGETS)} (RTX 20, 30, 40 and 50 series).",
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
    parser.add_argument("--tile", type=int, default=0, help="side of the tiles in pixels (the weights' own)")
    parser.add_argument("--batch", type=int, default=1, help="tiles computed at once (1)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for engine and manifest")
    options = parser.parse_args()
    if options.tile < 0 or options.batch < 1:
        parser.error("--tile must not be negative and --batch at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    targets = tuple(filter(None, options.targets.split(",")))
    try:
        engine = make_engine(
            manifest.locate(options.weights),
            options.out,
            options.flavour,
            targets=targets,
            tile=options.tile,
            batch=options.batch,
            progress=log.info,
        )
    except EmdenoisedError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    about = EngineManifest.model_validate_json(manifest_of(engine).read_bytes())
    for line in about.said:
        print(f"TensorRT: {line}")
    print(_account(engine, about))
    return 0


def _account(engine: Path, about: EngineManifest) -> str:
    """What was built, and what is known of it, in a few lines."""
    judged = about.gate
    lines = [
        f"{engine}: {engine.stat().st_size / 1e6:.1f} MB, {about.layers} layers, built in {about.seconds:.1f} s by "
        f"{about.flavour} {about.version} for {', '.join(about.targets)}, tiles of {about.tile}, {about.batch} at once",
        f"against float32 on {judged.cases} tiles: {judged.rms:.2%} of the noise (RMS), {judged.largest:.2%} at worst, "
        f"{judged.psnr_loss:.4f} dB lost at most",
    ]
    if not judged.on_gpu:
        lines.append("not yet run on a GPU: it is unproven, and this version of the daemon does not load it")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
