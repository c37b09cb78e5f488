"""`python -m engine_build WEIGHTS -o engines/`: a weights folder → a GPU engine that passed the gate.

Needs neither torch nor the training package. Output, the engine's manifest last; NAME states weights, flavour, tile and
batch:

    NAME.engine        the engine
    NAME.half.onnx     its float16 graph, for inspection
    NAME.engine.json   its source, its target, and the gate's figures

`python -m engine_build WEIGHTS --triton DIR --backend onnxruntime|tensorrt` writes the folder from which a Triton
server serves the weights (`triton_repository`).
"""

import argparse
import fcntl
import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import onnx
except ImportError as error:
    print(f"engine_build: {error}; pip install 'emdenoised[rtx]', or 'emdenoised[gpu]'", file=sys.stderr)
    raise SystemExit(78) from error
import onnxruntime

from daemon.backends import manifest, tiling
from daemon.backends.contract import FLOAT32, HALF, Contract
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
from engine_build import gate, on_card, triton_repository
from engine_build.build import build
from engine_build.half import finite, half_body

log = logging.getLogger("engine_build")

_GATE_SIDE = 256
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
    card = _card(flavour, device)
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
        precision=HALF,
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


def _card(flavour: Flavour, device: int) -> Gpu | None:
    """The card `device`, None without one. Raises ConfigError where an engine cannot be built without."""
    card = find_gpu(device)
    if flavour == "tensorrt" and card is None:
        raise ConfigError(
            "TensorRT tunes an engine on the card it will run on, and there is no NVIDIA driver here; run this on the "
            "microscope PC, or build for RTX cards with --flavour rtx"
        )
    return card


def make_repository(
    folder: Path,
    repository: Path,
    backend: triton_repository.Backend,
    *,
    tile: int = 0,
    batch: int = 1,
    instances: int = 1,
    processor: triton_repository.Processor = "gpu",
    device: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write what a Triton server needs to serve a weights folder; returns the model's folder.

    For tensorrt a plan is built with this computer's TensorRT, which must be of the server's version, for this
    computer's card. Arguments and errors otherwise as of `make_engine`.
    """
    weights = manifest.load(folder)
    model = onnx.load(folder / weights.onnx)
    side = max(_sides(model)) or weights.tile_of(tile)
    _require_shape(model, (weights.tile_of(tile),) * 2, folder)
    tiling.require(folder, weights, side, weights.halo, 0)
    own = weights.sha256[weights.onnx]
    if backend == "onnxruntime":
        content, fixed = (folder / weights.onnx).read_bytes(), bool(max(_sides(model)))
        contract = Contract(own, str(side), str(weights.halo), FLOAT32, "none: it is the weights' own network")
        remarks: tuple[tuple[str, str], ...] = ()
    else:
        trt, card = load_tensorrt("tensorrt"), find_gpu(device)
        if processor == "cpu" or card is None:
            raise ConfigError(
                "a TensorRT plan is built on a card of the server's type, with the server's version of TensorRT, and "
                f"{'it cannot run on a processor' if processor == 'cpu' else 'there is no NVIDIA driver here'}; run "
                "this on the server, or use --backend onnxruntime"
            )
        half, verdict = _halved(folder, weights, model, (side, side), progress)
        shapes = {"units": (batch, 1, side, side), "level": (batch, 1, 1, 1)}
        built = build(half, shapes, "tensorrt", (), repository / "timing.cache", progress, up_to=True)
        content, fixed = built.engine, True
        contract = Contract(own, str(side), str(weights.halo), HALF, verdict.model_dump_json())
        remarks = (("tensorrt", trt.__version__), ("card", card.name))
    served = triton_repository.Model(
        weights.name, backend, content, contract, side, fixed, batch, instances, processor, remarks
    )
    return triton_repository.write(repository, served)


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
    folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # of a share that has no locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


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
    return max(_sides(model)) or min(*sides, _GATE_SIDE)


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
        "--flavour", choices=("tensorrt", "rtx"),
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
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("-o", "--out", type=Path, help="folder for engine and manifest")
    place.add_argument("--triton", type=Path, metavar="DIR", help="write the weights' folder of a Triton repository")
    served = parser.add_argument_group("with --triton")
    served.add_argument(
        "--backend", choices=("onnxruntime", "tensorrt"), default="onnxruntime",
        help="what Triton runs them with; tensorrt: a plan, built on the server's card (onnxruntime)",
    )  # fmt: skip
    served.add_argument("--instances", type=int, default=1, help="copies that compute at the same time (1)")
    served.add_argument("--processor", choices=("gpu", "cpu"), default="gpu", help="what they run on (gpu)")
    return parser


def _serve(options: argparse.Namespace) -> Path:
    """`--triton`."""
    if options.flavour == "rtx" or options.targets:
        raise ConfigError(
            "Triton loads plans of TensorRT, and an engine of TensorRT-RTX is none; leave out --flavour rtx and "
            "--targets, and use --backend tensorrt or onnxruntime"
        )
    if options.gate_only:
        raise ConfigError("--gate-only is for engines: a plan is compared with float32 when it is built; leave it out")
    if not isinstance(options.tile, int):
        raise ConfigError("a server's tiles are square: state one side, as --tile 2048")
    with _alone(options.triton):
        return make_repository(
            manifest.locate(options.weights),
            options.triton,
            options.backend,
            tile=options.tile,
            batch=options.batch,
            instances=options.instances,
            processor=options.processor,
            device=options.device,
            progress=log.info,
        )


def _engine(options: argparse.Namespace) -> Path:
    """Build the engine, or take the existing one, and run it where there is a card."""
    folder = manifest.locate(options.weights)
    flavour: Flavour = options.flavour or "rtx"
    with _alone(options.out):
        if options.gate_only:
            weights = manifest.load(folder)
            tile = tile_of(weights, options.tile) if isinstance(options.tile, int) else options.tile
            engine = engine_path(options.out, weights, flavour, tile, options.batch)
        else:
            engine = make_engine(
                folder,
                options.out,
                flavour,
                targets=tuple(filter(None, options.targets.split(","))),
                tile=options.tile,
                batch=options.batch,
                device=options.device,
                progress=log.info,
            )
        if options.gate_only or find_gpu(options.device):
            finish_gate(folder, engine, options.device, log.info)
    return engine


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if options.batch < 1 or options.instances < 1:
        parser.error("--batch and --instances must be at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if options.triton is not None:
            print(f"{_serve(options)}: written; restart the server, or have it load the model again")
            return 0
        engine = _engine(options)
    except EmdenoisedError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return EX_CONFIG if isinstance(error, (ConfigError, WeightsError)) else 1
    except OSError as error:
        print(f"{parser.prog}: {options.triton or options.out}: cannot be written ({error.strerror})", file=sys.stderr)
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
