"""The gate: compares an engine's results with float32, in units of the noise, before it is used.

Needs numpy, onnx and ONNX Runtime. Without a GPU, the float16 graph is computed on the processor with every result
rounded to float16 (`rounded`); the engine itself has then not run, as its manifest states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10, sqrt

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from daemon.backends.gpu.engine import Gate
from daemon.counts.scaling import MINMAX_CROP, ScalingKind, minmax_crop, noise_units
from daemon.demo import specimen
from daemon.errors import WeightsError
from engine_build.half import FLOAT_ARGUMENTS, LARGEST_HALF, body_of, replace_nodes

Array = NDArray[np.float32]
Network = Callable[[Array, Array], Array]
"""Units (1, 1, S, S) and level (1, 1, 1, 1) → the result (1, 1, S, S), float32."""

RMS, LARGEST, _PSNR_LOSS = 0.01, 0.1, 0.02
"""Largest differences of an engine: noise σ (RMS over a tile, any pixel), and dB."""

LARGEST_CASE, COMPARED = 1024, 512
"""Sides, pixels: tiles no larger are compared everywhere, of larger ones parts of so many."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Input of a network. `sigma`: the noise in the units of `units`; `truth` in those units, if known."""

    name: str
    units: Array
    level: Array
    sigma: float
    truth: Array | None = None


def cases(sides: tuple[int, int], scaling: ScalingKind) -> list[Case]:
    """Usual tiles (rows, columns) and the extremes of a camera, all seeded: what half precision could stumble over.

    A tile larger than LARGEST_CASE is one of that size, continued by reflection.
    """
    rng = np.random.default_rng(4)
    tile = min(max(sides), LARGEST_CASE)
    scene = specimen.scene(rng, tile)

    def filled(image: Array) -> Array:
        image = image[: sides[0], : sides[1]]
        more = [(0, side - have) for side, have in zip(sides, image.shape, strict=True)]
        return np.pad(image, more, "reflect")[None, None]

    found = []

    def add(name: str, counts: NDArray[np.generic], dose: float, truth: NDArray[np.generic] | None = None) -> None:
        pixels = np.asarray(counts, np.float32)
        chosen = minmax_crop(pixels) if scaling == MINMAX_CROP else noise_units(dose)
        true_units = None if truth is None else filled(chosen.to_units(truth))
        level = np.full((1, 1, 1, 1), chosen.level, np.float32)
        found.append(Case(name, filled(chosen.to_units(pixels)), level, sqrt(dose + 0.375) / chosen.unit, true_units))

    for dose, contrast in ((0.5, 1.0), (20.0, 0.2), (200.0, 1.0), (2500.0, 0.05), (5000.0, 1.0)):
        counts, truth = specimen.expose(scene, dose, contrast, rng)
        add(f"{dose:g} counts, contrast {contrast:g}", counts, dose, truth)
    add("pure noise", rng.poisson(20, (tile, tile)), 20.0, np.full((tile, tile), 20.0))
    add("black, in a frame of 20 counts", np.zeros((tile, tile)), 20.0)
    add("saturated at 65535, in a frame of 20 counts", np.full((tile, tile), 65_535.0), 20.0)
    hot = rng.poisson(20, (tile, tile)).astype(np.float32)
    hot[tile // 2, tile // 2], hot[3, 5] = 65_535.0, 30_000.0
    add("hot pixels of 65535 and 30000", hot, 20.0)
    step = np.full((tile, tile), 2.0)
    step[:, tile // 2 :] = 4000.0
    add("an edge from 2 to 4000 counts", rng.poisson(step), float(step.mean()), step)
    axis = np.arange(tile)
    atoms = np.full((tile, tile), 10.0)
    for row in range(16, tile - 8, 32):
        for column in range(16, tile - 8, 32):
            atoms += 30 * np.exp(-((axis[:, None] - row) ** 2 + (axis - column) ** 2) / 8.0)
    add("single atoms", rng.poisson(atoms), float(atoms.mean()), atoms)
    return found


WHOLE = slice(None), slice(None)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a tile that the processor computes, and the part of that which is compared."""

    outer: tuple[slice, slice]
    inner: tuple[slice, slice]


def windows(sides: tuple[int, int], halo: int, align: int) -> tuple[Window, ...]:
    """The whole of a small tile (rows, columns); of a large one a corner, the middle and the opposite corner.

    The card computes all of it; for the processor that would take minutes.
    """
    if max(sides) <= LARGEST_CASE:
        return (Window(WHOLE, WHOLE),)
    margin = -(-halo // align) * align

    def place(side: int, where: float) -> tuple[slice, slice]:
        length = min(side, COMPARED)
        start = int(where * (side - length)) // align * align
        first, last = max(start - margin, 0), min(start + length + margin, side)
        return slice(first, last), slice(start, start + length)

    found = []
    for where in (0.0, 0.5, 1.0):
        outer, inner = zip(*(place(side, where) for side in sides), strict=True)
        found.append(Window((outer[0], outer[1]), (inner[0], inner[1])))
    return tuple(found)


def judge(
    reference: Network,
    candidate: Network,
    tiles: Sequence[Case],
    ran_on: str,
    on_gpu: bool,
    windows: Sequence[Window] | None = None,
) -> Gate:
    """Compare two networks tile by tile, in `windows` or everywhere.

    Raises WeightsError naming the tile and the figure that failed.
    """
    worst_rms = worst = loss = 0.0
    windows = windows or [Window(WHOLE, WHOLE)]
    for case in tiles:
        actual = candidate(case.units, case.level)
        expected = np.concatenate([_expected(reference, case, one).ravel() for one in windows])
        if not np.isfinite(actual).all():
            bad = int(actual.size - np.isfinite(actual).sum())
            raise WeightsError(_refused(case, f"{bad} of its {actual.size} results are NaN or infinite"))
        compared, truth = (
            None if image is None else np.concatenate([image[0, 0][one.inner].ravel() for one in windows])
            for image in (actual, case.truth)
        )
        assert compared is not None
        difference = (compared.astype(np.float64) - expected) / case.sigma
        rms, largest = float(np.sqrt(np.mean(difference**2))), float(np.abs(difference).max())
        if not rms <= RMS:
            raise WeightsError(
                _refused(case, f"it differs by {rms:.3g} σ (RMS) from float32; at most {RMS:g} is accepted")
            )
        if not largest <= LARGEST:
            raise WeightsError(
                _refused(case, f"a pixel differs by {largest:.3g} σ from float32; at most {LARGEST:g} is accepted")
            )
        worst_rms, worst = max(worst_rms, rms), max(worst, largest)
        if truth is not None:
            errors = [float(np.mean((image - truth) ** 2, dtype=np.float64)) for image in (expected, compared)]
            lost = 10 * log10(errors[1] / errors[0])
            if not lost <= _PSNR_LOSS:
                raise WeightsError(
                    _refused(case, f"its PSNR is {lost:.3g} dB below float32's; at most {_PSNR_LOSS:g} is accepted")
                )
            loss = max(loss, lost)
    return Gate(ran_on=ran_on, on_gpu=on_gpu, rms=worst_rms, largest=worst, psnr_loss=loss, cases=len(tiles))


def _expected(reference: Network, case: Case, window: Window) -> Array:
    """What the processor makes of the window's inner part."""
    result = reference(np.ascontiguousarray(case.units[(..., *window.outer)]), case.level)[0, 0]
    rows, columns = (
        slice(None) if inner.start is None else slice(inner.start - outer.start, inner.stop - outer.start)
        for outer, inner in zip(window.outer, window.inner, strict=True)
    )
    return np.asarray(result[rows, columns])


def _refused(case: Case, why: str) -> str:
    return (
        f'the float16 engine is refused: on the test tile "{case.name}" {why}; its weights overflow or lose digits in '
        "half precision: use other weights, or backend.kind: cpu"
    )


def on_processor(model: ModelProto) -> Network:
    """A network on the processor, in the precision of its arithmetic there: float32."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {given.name for given in session.get_inputs()}

    def run(units: Array, level: Array) -> Array:
        feeds = {"units": units, "level": level}
        result: Array = session.run(["denoised"], {name: feeds[name] for name in wanted})[0]
        return result

    return run


def rounded(model: ModelProto) -> ModelProto:
    """The float32 model with every result of its body and every weight rounded to float16.

    ONNX Runtime has no float16 convolutions on the processor: it computes a float16 model in float32 without rounding,
    which cannot be judged. In this model, values beyond float16 become infinite.
    """
    model = ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    inner = body_of(graph.node)
    body = {output for node in inner for output in node.output}
    seen = {
        name for node in inner for index, name in enumerate(node.input)
        if name and name not in body and index not in FLOAT_ARGUMENTS.get(node.op_type, ())
    }  # fmt: skip
    for tensor in graph.initializer:
        if tensor.name in seen and tensor.data_type == TensorProto.FLOAT:
            _round(tensor)
    entering = seen - {tensor.name for tensor in graph.initializer}
    nodes = [cast for name in entering & {one.name for one in graph.input} for cast in _through_half(name, _seen(name))]
    for node in graph.node:
        nodes += _rounding(node, body, entering)
    replace_nodes(graph, nodes)
    return model


def _rounding(node: NodeProto, body: set[str], entering: set[str]) -> list[NodeProto]:
    """A node with casts that round its outputs if it belongs to the body, or those that enter the body."""
    casts: list[NodeProto] = []
    if not body.intersection(node.output):
        for name in entering.intersection(node.output):
            casts += _through_half(name, _seen(name))
        return [node, *casts]
    for index, name in enumerate(node.input):
        node.input[index] = _seen(name) if name in entering else name
    for index, name in enumerate(node.output):
        node.output[index] = f"{name}.exact"
        casts += _through_half(f"{name}.exact", name)
    return [node, *casts]


def _seen(name: str) -> str:
    """Name of the rounded copy of a tensor that enters the body."""
    return f"{name}.seen"


def _round(tensor: TensorProto) -> None:
    """Round a weight to float16, stored as float32. Raises ValueError beyond float16's range."""
    values = onnx.numpy_helper.to_array(tensor)
    if not (np.abs(values) <= LARGEST_HALF).all():
        raise ValueError(f"{tensor.name}: a weight is not finite in float16")
    tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16).astype(np.float32), tensor.name))


def _through_half(name: str, into: str) -> list[NodeProto]:
    """Nodes that round a tensor to float16 and return it in float32 under another name."""
    return [
        helper.make_node("Cast", [name], [f"{into}.in_half"], f"{into}.down", to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{into}.in_half"], [into], f"{into}.up", to=TensorProto.FLOAT),
    ]
