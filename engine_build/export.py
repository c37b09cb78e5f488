"""Trained weights → a weights folder for the daemon: safetensors, ONNX, manifest.

`python -m engine_build.export RUN --name fast-4 -o weights/fast-4`
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from daemon.backends.manifest import MANIFEST, Manifest, sha256, shipped_weights
from daemon.counts.scaling import MINMAX_CROP, NOISE_UNITS, noise_units
from daemon.errors import ConfigError
from training import levelling
from training.data import simulate
from training.network import Ede2018, FastDenoiser, NetworkName, build
from training.presets import Doses

_OPSET = 20
HALO_RMS, HALO_MAX = 0.003, 0.03
"""Largest effect of missing context, in noise σ: a third of the limits in service (1 % RMS, 10 % at worst)."""


_PAPER_HALO = 32
"""The overlap of 25 pixels that the paper's program uses, rounded up to its network's grid."""

DOSES, CONTRASTS = (0.5, 5000.0), (0.02, 1.0)
"""Mean counts per pixel and contrasts of our own protocol."""
PAPER_DOSES: dict[Doses, tuple[float, float]] = {
    "low": (8.0, 250.0),
    "ordinary": (60.0, 1750.0),
    "all": (8.0, 1750.0),
}
"""Mean counts per pixel of the paper's laws of peak counts: the mean of a stretched crop is 0.3 to 0.7 of its peak."""
_PAPER_CONTRASTS = (1.0, 1.0)
"""Every crop is stretched to the full range."""


def to_onnx(network: FastDenoiser | Ede2018, path: Path, tile: int) -> None:
    """Write the network as ONNX: inputs `units` (N, 1, H, W) and, where used, `level` (N, 1, 1, 1); output `denoised`.

    N stays free; so do H and W (multiples of its stride) of the fast network, while the paper's is fixed at its tile,
    on whose side its batch statistics and the reach of its pyramid depend. Arithmetic is float32; weights are stored
    as float16, which halves the file and is the precision of an FP16 engine.
    """
    network = network.eval()
    size = torch.export.Dim.DYNAMIC
    sides = {2: size, 3: size} if isinstance(network, FastDenoiser) else {}
    units, level = torch.zeros(2, 1, tile, tile), torch.full((2, 1, 1, 1), 0.1)
    program = torch.onnx.export(
        network,
        (units, level),
        input_names=["units", "level"],
        output_names=["denoised"],
        dynamic_shapes={"units": {0: size, **sides}, "level": {0: size}},
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    if program is None:  # only the exporter's signature allows this
        raise RuntimeError("torch.onnx.export returned nothing")
    model = program.model_proto
    store_as_half(model.graph)
    for item in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del item.metadata_props[:]  # the exporter stores paths of this computer
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def store_as_half(graph: onnx.GraphProto, smallest: int = 64) -> None:
    """Store every float32 initialiser of at least `smallest` elements as float16, cast back where it is used.

    Runtimes fold the casts away when they load the model. Raises ValueError for a weight float16 cannot hold.
    """
    casts = []
    for initialiser in graph.initializer:
        values = numpy_helper.to_array(initialiser)
        if values.dtype != np.float32 or values.size < smallest:
            continue
        half = values.astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError(f"{initialiser.name}: a weight is not finite in float16")
        name = initialiser.name
        initialiser.CopyFrom(numpy_helper.from_array(half, name + ".half"))
        casts.append(helper.make_node("Cast", [name + ".half"], [name], name=name + ".cast", to=TensorProto.FLOAT))
    for index, node in enumerate(casts):
        graph.node.insert(index, node)


def _halo_frames(side: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Noisy frames (1, 1, side, side) over doses and kinds of specimen, on which the halo is measured."""
    rng = np.random.default_rng(7)
    for scene, dose in zip(simulate.bank(11, 4, side), (2.0, 20.0, 200.0, 2000.0), strict=True):
        counts = rng.poisson(dose * scene / scene.mean()).astype(np.float32)
        scaling = noise_units(float(counts.mean()))
        yield torch.from_numpy(scaling.to_units(counts))[None, None], torch.full((1, 1, 1, 1), scaling.level)


@torch.no_grad()
def measure_halo(network: FastDenoiser, side: int = 768, step: int = 32) -> int:
    """The smallest halo (a multiple of `step`) with which a tile agrees with the whole frame to HALO_RMS, HALO_MAX.

    The tile is cut from the frame's middle, so that only its own missing context has an effect.
    """
    network.eval()
    wholes = [(units, level, network(units, level)) for units, level in _halo_frames(side)]
    for halo in range(step, side // 4, step):
        start, stop = side // 4 // network.stride * network.stride, side - side // 4 // network.stride * network.stride
        inner = slice(start + halo, stop - halo)
        worst_rms = worst = 0.0
        for units, level, whole in wholes:
            part = network(units[..., start:stop, start:stop], level)
            difference = part[..., halo:-halo, halo:-halo] - whole[..., inner, inner]
            worst_rms = max(worst_rms, float(difference.square().mean().sqrt()))
            worst = max(worst, float(difference.abs().max()))
        print(f"halo {halo}: RMS {worst_rms:.5f}, largest {worst:.4f} of the noise σ")
        if worst_rms <= HALO_RMS and worst <= HALO_MAX:
            return halo
    raise ConfigError("no halo up to a quarter of the frame is wide enough; train longer or check the network")


def as_half(name: str, value: Tensor) -> Tensor:
    """A weight in float16; counters stay integers. Raises ValueError for what float16 cannot hold."""
    if not value.is_floating_point():
        return value
    half = value.half()
    if not torch.isfinite(half).all():
        raise ValueError(f"{name}: a weight is not finite in float16")
    return half


_WORSE = {"worse": "made the weights worse", "mixed": "made the weights better at some doses and worse at others"}
"""Verdicts on a fine-tuning (`training.finetuning.before_after`) with which it is not exported."""

_FAST_TILE = 2240
"""Side of the largest tiles on which the processor serves the fast network, pixels. With 64 features at half of the
resolution each pixel needs about 370 bytes of memory, 1.8 GB in all; cameras of 4096² and 8192² are divided into tiles
of 2048² and their halo. The paper's takes what it was trained with."""


def export(
    run: Path,
    name: str,
    out: Path,
    tile: int = 0,
    flats: int = levelling.FRAMES,
    *,
    force: bool = False,
    only_served: bool = False,
) -> Manifest:
    """Make the weights folder `out` from a finished training run; returns its manifest.

    `tile`: side of the tiles to serve, pixels; 0 for the network's usual one. `flats`: flat fields of each dose on
    which the fast network's pattern is measured (`training.levelling`). `only_served`: without the safetensors file,
    which nothing but training reads. A network trained by the paper's protocol is served as it was trained, every tile
    scaled to [0, 1] by its own extremes; only the mean of each tile is carried. Raises ConfigError for a
    folder that is no finished run, for a fine-tuning that made things worse unless `force`, and ValueError,
    before `out` is touched, for a weight that float16 cannot hold.
    """
    record, network_name, arguments, network = _trained(run, force)
    # The side of its batch statistics and pyramid is that of its training crops.
    tile = tile or (record["recipe"]["crop"] if network_name == "ede2018" else _FAST_TILE)
    # Round first, so that all measurements are of the shipped weights.
    try:
        loaded = load_file(run / "model.safetensors")
        network.load_state_dict(loaded | _blank(network))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigError(f"{run / 'model.safetensors'}: missing, damaged, or of another network ({error})") from error
    state = {key: as_half(key, value) for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    if isinstance(network, FastDenoiser):
        levelling.level(network, flats)
        state["pattern"] = as_half("pattern", network.pattern)
        network.load_state_dict(state)
    halo = measure_halo(network) if isinstance(network, FastDenoiser) else _PAPER_HALO
    if tile % network.stride:
        raise ConfigError(f"{run}: tiles of {tile} pixels do not fit its network; give a multiple of {network.stride}")
    if tile <= 2 * halo:
        raise ConfigError(f"{run}: tiles of {tile} pixels leave nothing inside a halo of {halo}; train on larger crops")
    if (out / MANIFEST).is_file() and out.resolve().parent == shipped_weights().resolve():
        raise ConfigError(f"{out}: released weights never change: results must be repeatable; choose a new name")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written elsewhere and moved file by file, the manifest last, so that files of two versions are never mixed.
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        beside = Path(folder)
        manifest = _write_weights(
            beside, network, {} if only_served else state, name, network_name, arguments, record, tile, halo
        )
        out.mkdir(exist_ok=True)
        for file in (*manifest.sha256, MANIFEST):
            (beside / file).replace(out / file)
    return manifest


def _trained(run: Path, force: bool) -> tuple[dict[str, Any], NetworkName, dict[str, Any], FastDenoiser | Ede2018]:
    """Record, network's name and arguments as it is served, and the network without weights. Raises ConfigError."""
    try:
        record: dict[str, Any] = json.loads((run / "record.json").read_text())
        recipe = record["recipe"]
        name: NetworkName = recipe.get("network", "fast")
        served = {"levelled": True, "knots": list(levelling.KNOTS)} if name == "fast" else {"carried": True}
        arguments = recipe["arguments"] | served
        network = build(name, arguments)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{run}: not a finished training run ({error}); `python -m training fit` makes one"
        ) from error
    if (effect := record.get("before_after", {}).get("verdict")) in _WORSE and not force:
        raise ConfigError(
            f"{run}: on held-out files this fine-tuning {_WORSE[effect]} (figures: its report); train on more or other "
            "micrographs, or export it nevertheless with --force"
        )
    return record, name, arguments, network


def _blank(network: FastDenoiser | Ede2018) -> dict[str, Tensor]:
    """What a network is served with but not trained with: the pattern, which is measured below."""
    return {"pattern": network.pattern} if isinstance(network, FastDenoiser) else {}


def _write_weights(
    out: Path,
    network: FastDenoiser | Ede2018,
    state: dict[str, Tensor],
    name: str,
    network_name: NetworkName,
    arguments: dict[str, Any],
    record: dict[str, Any],
    tile: int,
    halo: int,
) -> Manifest:
    """Write safetensors (if there is a `state`), ONNX and manifest into an empty folder; returns the manifest."""
    recipe = record["recipe"]
    paper = recipe.get("protocol") == "paper"
    files = ["model.onnx"]
    if state:
        files.append("model.safetensors")
        (out / "model.safetensors").write_bytes(save(state))
    to_onnx(network, out / "model.onnx", tile)
    manifest = Manifest(
        name=name,
        network=network_name,
        arguments=arguments,
        scaling=MINMAX_CROP if paper else NOISE_UNITS,
        tile=tile,
        halo=halo,
        align=network.stride,
        dose_range=PAPER_DOSES[recipe["doses"]] if paper else DOSES,
        contrast_range=_PAPER_CONTRASTS if paper else CONTRASTS,
        safetensors="model.safetensors" if state else None,
        sha256={file: sha256(out / file) for file in files},
        training=record,
    )
    (out / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    return manifest


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m engine_build.export", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished `python -m training fit`")
    parser.add_argument("--name", required=True, help="what the weights are called in config.yaml")
    parser.add_argument("-o", "--out", type=Path, required=True, help="weights folder to write")
    parser.add_argument("--tile", type=int, default=0, help="side of the tiles to serve, pixels (0: the usual one)")
    parser.add_argument("--only-served", action="store_true", help="no safetensors file: not for training on")
    parser.add_argument("--force", action="store_true", help="also what a fine-tuning made worse on held-out files")
    options = parser.parse_args()
    try:
        manifest = export(
            options.run,
            options.name,
            options.out,
            options.tile,
            force=options.force,
            only_served=options.only_served,
        )
    except (ConfigError, ValueError, OSError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    print(f"{options.out}: tile {manifest.tile}, halo {manifest.halo}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
