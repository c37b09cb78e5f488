"""The paper's network for the GPU benchmark, with random weights where none are shipped."""

from pathlib import Path

import onnx
import safetensors.torch
import torch

from daemon.backends import manifest
from daemon.backends.gpu.engine import OPTIONS, EngineManifest, Gate, batch_of, engine_path, manifest_of, tile_of
from daemon.backends.gpu.nvidia import RTX_CARDS, choose, find_gpu, load_tensorrt
from daemon.backends.manifest import Manifest
from engine_build.build import build as build_engine
from engine_build.export import to_onnx
from engine_build.half import half_body
from training.network import build

RANDOM = "ede2018-random"


def papers_network(folder: Path, width: float, tile: int) -> Path:
    """A weights folder for the paper's network with random weights: they cost the same. For speed only."""
    torch.manual_seed(0)
    arguments = {"width": width}
    folder.mkdir(parents=True)
    network = build("ede2018", arguments)
    to_onnx(network, folder / "model.onnx", tile)
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    about = Manifest(
        name=RANDOM, network="ede2018", arguments=arguments, scaling="minmax_crop", tile=tile, halo=32,
        align=32, dose_range=(1, 5000), contrast_range=(0, 1),
        sha256={"model.onnx": manifest.sha256(folder / "model.onnx")},
        training={"note": "random weights, for a measurement of speed"},
    )  # fmt: skip
    (folder / manifest.MANIFEST).write_text(about.model_dump_json())
    return folder


def engine_without_gate(folder: Path, engines: Path, asked: int) -> None:
    """Write an engine as the builder does, but without a gate: random weights pass none, and results are not used.

    `asked`: tiles at once, as the settings have it.
    """
    weights, card = manifest.load(folder), find_gpu()
    assert card is not None
    flavour = choose("auto", card)
    tile, batch = tile_of(weights), batch_of(weights, asked)
    targets = [card.capability if card.capability in RTX_CARDS else "current"] if flavour == "rtx" else []
    half = half_body(onnx.load(folder / weights.onnx)).SerializeToString()
    made = build_engine(half, {"units": (batch, 1, *tile), "level": (batch, 1, 1, 1)}, flavour, targets)
    path = engine_path(engines, weights, flavour, tile, batch)
    engines.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made.engine)
    path.with_suffix(".half.onnx").write_bytes(half)
    gate = Gate(ran_on=str(card), on_gpu=True, rms=0, largest=0, psnr_loss=0, cases=1)
    about = EngineManifest(
        weights=weights.name, network=weights.network, onnx_sha256=weights.sha256[weights.onnx],
        engine_sha256=manifest.sha256(path), precision="float16 body, random weights", flavour=flavour,
        version=load_tensorrt(flavour).__version__, targets=tuple(targets) or (card.capability,), gpu=card.name,
        driver=card.driver, tile=tile, batch=batch, options=OPTIONS, layers=made.layers,
        scratch=made.scratch, seconds=made.seconds,
        said=made.said, gate=gate,
    )  # fmt: skip
    manifest_of(path).write_text(about.model_dump_json())
