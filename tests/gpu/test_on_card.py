"""What only a real card can show. Skipped, and said so, where there is none.

TensorRT itself is tested where it accepts the card; the slots, streams and kernels on every card.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from stand_in import stand_in, why_tensorrt_does_not_run

from daemon.backends import manifest, open_backend
from daemon.backends.canary import canary
from daemon.backends.gpu.cuda import Cuda
from daemon.backends.gpu.device import Single
from daemon.backends.gpu.engine import load_manifest
from daemon.backends.gpu.nvidia import find_gpu
from daemon.backends.gpu.pipeline import Pipeline
from daemon.counts import spikes
from daemon.counts.plane import Plane
from daemon.counts.prepare import plane
from daemon.counts.profiles import Choice
from daemon.errors import EmdenoisedError
from daemon.service.service import Service
from daemon.settings.config import BackendConfig, Config
from daemon.settings.profile import Profile

pytestmark = pytest.mark.gpu

FOLDER = manifest.locate("fast")
WEIGHTS = manifest.load(FOLDER)
COUNTED = Choice(Profile(name="test"), "", 1.0, 0.0)


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    driver = Cuda(0)
    yield driver
    driver.close()


class Copy:
    """A network that changes nothing: what comes out shows what every other part did."""

    def __init__(self, tile: int, batch: int) -> None:
        self.tile, self.batch = (tile, tile), batch

    def enqueue(self, units: int, level: int, result: int, stream: Any) -> None:
        import pycuda.driver

        pycuda.driver.memcpy_dtod_async(result, units, 4 * self.batch * self.tile[0] * self.tile[1], stream)


def asked(pixels: NDArray[Any]) -> Plane:
    return plane(pixels, COUNTED, WEIGHTS.dose_range)


@pytest.mark.parametrize("blend", [0, 24])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8", "i8", "?"])
def test_pixels_come_back_through_every_kernel_stream_and_buffer(cuda: Cuda, dtype: str, blend: int) -> None:
    rng = np.random.default_rng(0)
    shapes = [(300, 500), (1200, 700), (64, 33), (1200, 700), (2048, 2048), (900, 1100)] * 2
    given = [rng.poisson(12 + index, shape).clip(0, 100).astype(dtype) for index, shape in enumerate(shapes)]
    for image in given[::2]:
        if image.dtype.kind in "iuf":
            image[20, 30], image[40, 2] = 120, 121
    one = Pipeline(cuda, Single(Copy(512, 3)), WEIGHTS, halo=32, blend=blend)
    for image, result in zip(given, one.denoise(map(asked, given)), strict=True):
        wanted = asked(image).prepare(spikes.survey(image, 1.0, 0.0))
        np.testing.assert_array_equal(result.prepared.spikes.rows, wanted.spikes.rows)
        np.testing.assert_array_equal(result.prepared.spikes.columns, wanted.spikes.columns)
        assert result.prepared.dose == pytest.approx(wanted.dose, rel=1e-9)
        np.testing.assert_allclose(result.image, spikes.infill(image, wanted.spikes), rtol=1e-5, atol=1e-4)
    one.close()


def test_memory_on_the_card_is_the_same_after_a_thousand_micrographs(cuda: Cuda) -> None:
    import pycuda.driver

    image = np.random.default_rng(0).poisson(20, (1024, 1024)).astype(np.uint16)
    one = Pipeline(cuda, Single(Copy(512, 1)), WEIGHTS, halo=32)
    free = []
    for number, _ in enumerate(one.denoise(asked(image) for _ in range(1000))):
        if number in (10, 990):
            free.append(pycuda.driver.mem_get_info()[0])
    assert free[0] == free[1]
    one.close()


def test_a_card_that_cannot_hold_a_micrograph_reports_it_and_continues(cuda: Cuda) -> None:
    one = Pipeline(cuda, Single(Copy(512, 1)), WEIGHTS, halo=32)
    small = np.random.default_rng(0).poisson(20, (256, 256)).astype(np.uint16)
    hungry = [cuda.device(1 << 30)]
    try:
        while True:
            hungry.append(cuda.device(1 << 30))
    except EmdenoisedError:
        pass
    with pytest.raises(EmdenoisedError, match=r"out of memory|page-locked"):
        list(one.denoise([asked(np.ones((16384, 16384), np.uint16) * 9)]))
    for memory in hungry:
        cuda.free(memory)
    assert len(list(one.denoise([asked(small)]))) == 1
    one.close()


# The daemon's backend, by TensorRT where it runs on this card, else by PyTorch


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture
def networks(engines: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if why_tensorrt_does_not_run(engines):
        stand_in(monkeypatch)
    return engines


def test_the_backend_passes_the_canary_and_agrees_with_the_processor_in_noise_units(networks: Path) -> None:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:1024, :1024]
    given = [
        rng.poisson(dose * (1 + 0.5 * np.sin(x / 9) * np.cos(y / 13))).astype(np.uint16)
        for dose in (0.5, 20, 300, 3000)
    ]
    settings = {"tile": 512, "batch": 2}
    on_card = open_backend(BackendConfig(kind="tensorrt", **settings), manifest.verified(FOLDER), networks)
    canary(on_card)
    results = [(result.image.copy(), result.prepared) for result in on_card.denoise(map(asked, given))]
    on_card.close()
    on_processor = open_backend(BackendConfig(kind="cpu", tile=512), manifest.verified(FOLDER), networks)
    for (image, prepared), wanted in zip(results, on_processor.denoise(map(asked, given)), strict=True):
        difference = (image - wanted.image) / prepared.scaling.unit
        assert float(np.sqrt(np.mean(difference**2))) <= 0.01
        assert float(np.abs(difference).max()) <= 0.1
        assert float(image.mean()) == pytest.approx(float(prepared.pixels.mean()), rel=1e-3)
    on_processor.close()


def test_the_whole_daemon_writes_what_it_writes_on_the_processor(
    networks: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    images: dict[str, list[NDArray[np.float32]]] = {}
    names = [f"{number}.tif" for number in range(12)]
    for seed, name in enumerate(names):
        write(tmp_path / "drop" / name, seed, 20, (1024, 1024))
    for kind in ("cpu", "tensorrt"):
        folders = {"drop": tmp_path / "drop", "output": tmp_path / kind, "state": tmp_path / f"state-{kind}"}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        config = Config.model_validate(
            {"folders": {name: str(path) for name, path in folders.items()},
             "arrival": {"settle_seconds": 0.05, "rescan_seconds": 0.3, "suspicious_tail_seconds": 0},
             "profiles": {"counts": {"gain": 1.0}}, "default_profile": "counts",
             "backend": {"kind": kind, "tile": 512, "queue": 8}}
        )  # fmt: skip
        service = Service(config)
        service.start()
        while not service.idle and service.failure is None:
            time.sleep(0.02)
        service.stop()
        assert service.failure is None
        images[kind] = [tifffile.imread(tmp_path / kind / name) for name in names]
    for ours, theirs in zip(images["tensorrt"], images["cpu"], strict=True):
        assert float(np.sqrt(np.mean((ours - theirs) ** 2))) <= 0.01 * np.sqrt(20)


def test_tensorrt_itself_ran_and_was_proven_on_this_card(engines: Path) -> None:
    if why := why_tensorrt_does_not_run(engines):
        pytest.skip(f"PyTorch stood in for TensorRT: {why}")
    card = find_gpu()
    assert card is not None
    built = [load_manifest(engine) for engine in engines.glob("*.engine")]
    assert built
    assert {about.gate.ran_on for about in built} == {str(card)}
    assert all(about.gate.on_gpu and about.gate.cases >= 8 for about in built)
