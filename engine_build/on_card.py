"""Runs an engine on this computer's card, tile by tile, for the gate."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from daemon.backends.gpu.buffers import BufferPair
from daemon.backends.gpu.cuda import Cuda
from daemon.backends.gpu.device import Driver
from daemon.backends.gpu.device import Network as Loaded
from daemon.backends.gpu.engine import EngineManifest
from daemon.backends.gpu.network import open_network
from engine_build.gate import Array, Network


@contextmanager
def loaded(engine: Path, about: EngineManifest, device: int) -> Iterator[Network]:
    """The engine as the gate's `Network`. Raises BackendError if the card or the engine cannot be used."""
    driver = Cuda(device)
    try:
        network = open_network(engine, about, driver)
        try:
            with runner(network, driver) as run:
                yield run
            network.keep_compiled()
        finally:
            network.close()
    finally:
        driver.close()


@contextmanager
def runner(network: Loaded, driver: Driver) -> Iterator[Network]:
    """A function that runs one tile of (1, 1, *tile) units and its level in every place of the batch."""
    (rows, columns), batch = network.tile, network.batch
    stream, done = driver.stream(), driver.event()
    units, level, result = (BufferPair(driver, 4 * batch * size) for size in (rows * columns, 1, rows * columns))

    def run(tile: Array, of: Array) -> Array:
        for pair, values in ((units, tile), (level, of)):
            pair.host.array[: pair.nbytes].view(np.float32).reshape(batch, -1)[:] = values.reshape(1, -1)
            pair.upload(pair.nbytes, stream)
        network.enqueue(units.device.at(0), level.device.at(0), result.device.at(0), stream)
        result.download(result.nbytes, stream)
        driver.record(done, stream)
        driver.synchronise(done)
        every = result.host.array[: result.nbytes].view(np.float32).reshape(batch, 1, 1, rows, columns)
        # All places must agree; if not, the gate gets the result that differs most.
        return np.asarray(every[int(np.abs(every - every[0]).reshape(batch, -1).max(1).argmax())].copy())

    try:
        yield run
    finally:
        for pair in (units, level, result):
            pair.free()
