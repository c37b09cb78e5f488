"""ONNX → engine, by TensorRT or TensorRT-RTX, in one code path, since the APIs agree in the parts used.

The graph determines the precision (`engine_build.half`); networks are strongly typed; shapes are fixed. TensorRT tunes
on the card it will run on. TensorRT-RTX needs no card to build: it compiles for the card at the first inference.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.backends.gpu.engine import WORKSPACE
from daemon.backends.gpu.nvidia import Flavour, last_errors, listen, load_tensorrt
from daemon.errors import BackendError, ConfigError, WeightsError
from daemon.files import save

SCRATCH = re.compile(r"Total (?:Activation|Scratch) Memory: (\d+)")


@dataclass(frozen=True, slots=True)
class Built:
    """An engine as bytes, and facts of its build."""

    engine: bytes
    layers: int
    seconds: float
    said: tuple[str, ...]
    """TensorRT's warnings."""
    remarks: tuple[str, ...] = ()
    """The last of what else it said."""

    @property
    def scratch(self) -> int | None:
        """Bytes of memory the engine needs besides its weights, by what the builder said last of it."""
        found = [match for text in self.remarks if (match := SCRATCH.search(text))]
        return int(found[-1][1]) if found else None


def _capability_of(trt: Any, target: str) -> Any:
    """ "sm86" or "current" → TensorRT-RTX's constant. Raises ConfigError naming the known ones."""
    known = {name.lower(): value for name, value in trt.ComputeCapability.__members__.items() if name != "NONE"}
    if target.lower() not in known:
        raise ConfigError(
            f"TensorRT-RTX {trt.__version__} builds for {', '.join(sorted(known))}, not for {target}; cards it does "
            "not name need --flavour tensorrt"
        )
    return known[target.lower()]


def build(
    onnx: bytes,
    shapes: Mapping[str, tuple[int, ...]],
    flavour: Flavour,
    targets: Sequence[str] = (),
    timing_cache: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    *,
    up_to: bool = False,
) -> Built:
    """Parse and build. `shapes`: fixed shape of each input. `targets`: for rtx, compute capabilities as "sm86".

    `up_to`: the engine takes from one tile at once up to as many as `shapes` state, and is tuned for these. `progress`
    gets the name of each phase. Raises WeightsError with the operator that TensorRT does not know, BackendError with
    TensorRT's reason.
    """
    trt = load_tensorrt(flavour)
    begin = time.monotonic()
    logger = listen(trt)
    logger.forget()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        raise WeightsError(_refusal([parser.get_error(index) for index in range(parser.num_errors)]))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.clear_flag(trt.BuilderFlag.TF32)
    if flavour == "rtx" and targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(_capability_of(trt, target), index)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        # In the network itself, so that nothing in the engine depends on a shape; a profile alone leaves them open.
        tensor = network.get_input(index)
        most = shapes[tensor.name]
        tensor.shape = (-1, *most[1:]) if up_to else most
        profile.set_shape(tensor.name, (1, *most[1:]) if up_to else most, most, most)
    config.add_optimization_profile(profile)
    cache = _timing_cache(config, timing_cache) if flavour == "tensorrt" else None
    config.progress_monitor = _monitor(trt, progress)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise BackendError(_failure(logger.errors))
    if cache is not None and timing_cache is not None:
        timing_cache.parent.mkdir(parents=True, exist_ok=True)
        save(timing_cache, bytes(config.get_timing_cache().serialize()))
    seconds = time.monotonic() - begin
    return Built(bytes(serialized), network.num_layers, seconds, tuple(logger.warnings), tuple(logger.remarks))


def _monitor(trt: Any, progress: Callable[[str], None]) -> Any:
    """A TensorRT monitor that passes the names of phases to `progress`."""

    class _BuildProgress(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            return None

    return _BuildProgress()


def _refusal(errors: Sequence[Any]) -> str:
    """Parser errors in words: which operator, which node."""
    reasons = "; ".join(
        f"{error.node_operator() or 'the graph'} (node {error.node_name() or 'unnamed'}): {error.desc()}"
        for error in errors
    )
    why = reasons or "it gave no reason"
    return f"TensorRT cannot read this network: {why}; export the weights again, or report this"


def _failure(errors: deque[str]) -> str:
    said, memory = last_errors(errors)
    remedy = "free memory on the card, or build with a smaller --batch or --tile" if memory else "see the lines above"
    return f"TensorRT could not build the engine: {said}; {remedy}"


def _timing_cache(config: Any, path: Path | None) -> Any:
    """TensorRT's earlier measurements on this card: with them a build takes seconds instead of minutes."""
    content = path.read_bytes() if path is not None and path.is_file() else b""
    cache = config.create_timing_cache(content)
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache
