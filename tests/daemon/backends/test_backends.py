"""What every backend must do alike: the processor, a fake GPU, a fake server, and, where there is one, a real GPU."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import CARD, plug_in
from numpy.typing import NDArray
from stand_in import stand_in, why_tensorrt_does_not_run

from daemon import backends
from daemon.backends import manifest, open_backend
from daemon.backends.canary import NO_SPIKES, canary
from daemon.backends.protocol import Backend
from daemon.counts import spikes as counted
from daemon.counts.plane import Denoised, Plane, Prepared, Spikes, Survey
from daemon.counts.scaling import noise_units
from daemon.errors import BackendError, MicrographError, WeightsError
from daemon.settings.config import BackendConfig

WEIGHTS = manifest.locate("fast")
BACKENDS = ["cpu", "fake GPU", "server", pytest.param("GPU", marks=pytest.mark.gpu)]


class Opener:
    """Opens the backend under test with other settings, and closes it afterwards."""

    def __init__(self, kind: str, engines: Path) -> None:
        self.kind, self.engines, self.opened = kind, engines, []  # type: ignore[var-annotated]
        self.server: Any = None

    def __call__(self, progress: Callable[[], None] = lambda: None, **settings: Any) -> Backend:
        settings = {"kind": self.kind, **settings}
        if self.server is not None:
            self.server.parameters["tile"] = str(manifest.load(WEIGHTS).tile_of(settings.get("tile", 0)))
            settings["server"] = {"url": self.server.url}
        given = BackendConfig.model_validate(settings)
        self.opened.append(open_backend(given, manifest.verified(WEIGHTS), self.engines, progress))
        return self.opened[-1]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a real GPU's engines lie, built once for all tests."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(params=BACKENDS)
def opener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, engines: Path) -> Iterator[Opener]:
    drivers = plug_in(monkeypatch) if request.param == "fake GPU" else []
    if request.param == "GPU" and why_tensorrt_does_not_run(engines):
        stand_in(monkeypatch)
    opener = Opener(request.param if request.param in ("cpu", "server") else "tensorrt", engines)
    if request.param == "server":
        pytest.importorskip("tritonclient.grpc", reason="the extra `server` is not installed")
        from fake_triton import FakeTriton

        opener.server = FakeTriton(manifest.verified(WEIGHTS))
    yield opener
    for backend in opener.opened:
        backend.close()
    if opener.server is not None:
        opener.server.stop()
    assert all(driver.closed for driver in drivers)


@pytest.fixture(params=[1, 8], ids=["1 pass", "8 passes"])
def passes(request: pytest.FixtureRequest) -> Any:
    return request.param


def known(pixels: NDArray[Any], spikes: Spikes = NO_SPIKES, dose: float | None = None, passes: Any = 1) -> Plane:
    """A plane of known scaling."""
    dose = float(pixels.mean()) if dose is None else dose
    return replace(Plane.known(Prepared(pixels, spikes, noise_units(dose), dose)), passes=passes)


@pytest.fixture
def prepared(passes: Any) -> Callable[..., Plane]:
    """`known`, to be averaged over so many orientations."""
    return partial(known, passes=passes)


@pytest.fixture
def images(counts: Callable[..., NDArray[np.uint16]]) -> list[NDArray[np.uint16]]:
    return [
        counts(seed, dose, shape) for seed, dose, shape in ((0, 20, (64, 64)), (1, 200, (40, 96)), (2, 5, (64, 64)))
    ]


def test_a_backend_has_a_name_and_passes_the_canary(opener: Opener) -> None:
    backend = opener()
    assert backend.name.startswith(opener.kind)
    canary(backend)


def test_results_come_in_order_each_in_its_own_units(
    opener: Opener, prepared: Callable[..., Plane], images: list[NDArray[np.uint16]]
) -> None:
    results = [result.image for result in opener().denoise(prepared(image) for image in images)]
    assert [result.shape for result in results] == [image.shape for image in images]
    for image, result in zip(images, results, strict=True):
        assert result.dtype == np.float32
        assert float(result.mean()) == pytest.approx(float(image.mean()), rel=0.05)


def test_none_means_finish_what_was_read_ahead(
    opener: Opener, prepared: Callable[..., Plane], images: list[NDArray[np.uint16]]
) -> None:
    given, received = 0, 0

    def source() -> Iterator[Plane | None]:
        nonlocal given
        for image in images:
            given += 1
            yield prepared(image)
            yield None
            assert received == given, "a None was passed over with results outstanding"

    for _ in opener().denoise(source()):
        received += 1
    assert received == len(images)
    assert list(opener().denoise(iter([None, None]))) == []


def test_planes_are_the_callers_to_keep(
    opener: Opener, prepared: Callable[..., Plane], images: list[NDArray[np.uint16]]
) -> None:
    kept, copies = [], []
    for result in opener().denoise(prepared(image) for image in (*images, *images)):
        kept.append(result.image)
        copies.append(result.image.copy())
    for plane, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(plane, copy)
        plane += 1  # writable, and nobody else's


def test_inputs_are_only_read(opener: Opener, prepared: Callable[..., Plane], images: list[NDArray[np.uint16]]) -> None:
    spikes = Spikes(np.array([3]), np.array([4]), np.array([20], np.float32))
    before = images[0].copy()
    images[0].setflags(write=False)
    assert len(list(opener().denoise([prepared(images[0], spikes)]))) == 1
    np.testing.assert_array_equal(images[0], before)


def test_a_spike_is_replaced_by_its_stand_in(
    opener: Opener, prepared: Callable[..., Plane], images: list[NDArray[np.uint16]]
) -> None:
    image, hit = images[0], images[0].copy()
    hit[3, 4] = 30_000
    spikes = Spikes(np.array([3]), np.array([4]), np.array([image[3, 4]], np.float32))
    clean, filled = opener().denoise([prepared(image, dose=20.0), prepared(hit, spikes, dose=20.0)])
    np.testing.assert_allclose(filled.image, clean.image, atol=1e-3)
    assert filled.prepared.spikes is spikes


def test_tiles_at_once_change_nothing_and_every_batch_is_progress(
    opener: Opener, prepared: Callable[..., Plane], counts: Callable[..., NDArray[np.uint16]]
) -> None:
    image = prepared(counts(3, 20, (60, 130)))
    beats = {1: 0, 3: 0}
    results = {}
    for batch in beats:

        def beat(batch: int = batch) -> None:
            beats[batch] += 1

        (result,) = opener(beat, batch=batch, tile=320).denoise([image])
        results[batch] = result.image
    np.testing.assert_allclose(results[3], results[1], atol=1e-3)
    assert beats[1] >= beats[3] >= 1


def test_a_stream_can_be_left_and_another_begun(
    opener: Opener, prepared: Callable[..., Plane], images: list[NDArray[np.uint16]]
) -> None:
    backend = opener()
    (alone,) = backend.denoise([prepared(images[0])])
    first = next(iter(backend.denoise(prepared(image) for image in images)))
    np.testing.assert_array_equal(first.image, alone.image)
    assert len(list(backend.denoise(prepared(image) for image in images))) == 3


def test_eight_passes_are_the_mean_of_eight_orientations(
    opener: Opener, counts: Callable[..., NDArray[np.uint16]]
) -> None:
    """In a stream with others, of one pass, and of an image that is not square."""
    image, other = counts(5, 20, (40, 96)), counts(6, 20, (64, 64))

    asked = partial(known, dose=20.0)
    backend = opener()
    eight = [np.rot90(one, turns) for one in (image, image.T) for turns in range(4)]
    alone = [done.image for done in backend.denoise(asked(one) for one in eight)]
    back = [np.rot90(one, -turns) for one, turns in zip(alone, (*range(4), *range(4)), strict=True)]
    expected = np.mean([*back[:4], *(one.T for one in back[4:])], axis=0)
    given = [asked(other), asked(image, passes=8), asked(other)]
    first, averaged, last = (done.image for done in backend.denoise(given))
    np.testing.assert_allclose(averaged, expected, atol=2e-3)
    np.testing.assert_array_equal(first, last)
    assert np.abs(averaged - alone[0]).max() > 0.01


def test_a_tile_the_weights_cannot_use_is_refused_when_opened(opener: Opener) -> None:
    with pytest.raises(WeightsError, match=r"backend\.tile: 0"):
        opener(tile=64)


def test_a_micrograph_that_cannot_be_prepared_fails_after_those_before_it_came_out(
    opener: Opener, passes: Any, prepared: Callable[..., Plane], images: list[NDArray[np.uint16]]
) -> None:
    def refuse(survey: Survey) -> Prepared:
        raise MicrographError("no counts in it")

    backend, received = opener(), 0
    with pytest.raises(MicrographError, match="no counts in it"):
        for _ in backend.denoise([*map(prepared, images[:2]), Plane(images[2], 1.0, 0.0, 1e-9, refuse, passes)]):
            received += 1
    assert received == 2
    assert len(list(backend.denoise(map(prepared, images)))) == 3


def test_memory_that_runs_out_costs_that_micrograph(
    opener: Opener, passes: Any, prepared: Callable[..., Plane], images: list[NDArray[np.uint16]]
) -> None:
    def full(survey: Survey) -> Prepared:
        raise MemoryError

    backend = opener()
    with pytest.raises(MicrographError, match="not enough memory for this micrograph"):
        list(backend.denoise([prepared(images[0]), Plane(images[1], 1.0, 0.0, 1e-9, full, passes)]))
    assert len(list(backend.denoise(map(prepared, images)))) == 3


@pytest.mark.parametrize("gain", [0.0, -1.0, np.nan, np.inf])
def test_a_gain_that_makes_no_counts_costs_that_micrograph(
    opener: Opener, images: list[NDArray[np.uint16]], gain: float
) -> None:
    backend = opener()
    with pytest.raises(MicrographError, match="cannot turn pixels into counts"):
        list(backend.denoise([Plane(images[1], gain, 0.0, 1e-9, lambda _: pytest.fail("it was prepared"))]))
    assert len(list(backend.denoise(map(known, images)))) == 3


def test_a_backend_surveys_what_it_is_given(opener: Opener, passes: Any, images: list[NDArray[np.uint16]]) -> None:
    hit = images[0].astype(np.float32)
    hit[3, 4], hit[10, 20] = 30_000, np.nan
    seen: list[Survey] = []

    def look(survey: Survey) -> Prepared:
        seen.append(survey)
        spikes = Spikes(np.array([3, 10]), np.array([4, 20]), np.array([20, 20], np.float32))
        return Prepared(hit, spikes, noise_units(20.0), 20.0)

    (result,) = opener().denoise([Plane(hit, 1.0, 0.0, 1e-9, look, passes)])
    assert np.isfinite(result.image).all()
    (survey,) = seen
    assert survey.missing.tolist() == [10 * 64 + 20]
    assert 3 * 64 + 4 in survey.suspects
    assert survey.total == pytest.approx(float(np.nansum(hit, dtype=np.float64)))


# The canary


class Broken:
    name = "broken"

    def __init__(self, result: Callable[[Prepared], Any]) -> None:
        self.result = result

    def denoise(self, planes: Iterable[Plane]) -> Iterator[Denoised]:
        for plane in planes:
            prepared = plane.prepare(counted.survey(plane.pixels, 1, 0))
            yield Denoised(self.result(prepared), prepared, self.name)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "result",
    [
        lambda one: one.pixels.astype(np.float32),
        lambda one: np.full(one.pixels.shape, np.nan, np.float32),
        lambda one: np.full(one.pixels.shape, 7.0, np.float32),
    ],
    ids=["not denoised", "nan", "wrong mean"],
)
def test_the_canary_notices_a_backend_that_does_not_denoise(result: Callable[[Prepared], Any]) -> None:
    with pytest.raises(BackendError, match="canary tile came out wrong"):
        canary(Broken(result))


# What `auto` means


class FakeDriver:
    """libcuda as far as it is asked."""

    def __init__(self, status: int, gpus: int) -> None:
        self.status, self.gpus = status, gpus

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.gpus
        return 0


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (FakeDriver(0, 1), "tensorrt"),
        (FakeDriver(0, 0), "cpu"),
        (FakeDriver(100, 1), "cpu"),  # CUDA_ERROR_NO_DEVICE
        (None, "cpu"),
    ],
)
def test_auto_asks_the_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: FakeDriver | None, expected: str
) -> None:
    def load(name: str) -> FakeDriver:
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr("daemon.backends.gpu.driver.LOADED", tmp_path / "away")  # else a process of its own is asked
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert backends.resolve("auto") == expected
    assert backends.resolve("cpu") == "cpu" and backends.resolve("tensorrt") == "tensorrt"


@pytest.mark.parametrize("kind", ["auto", "tensorrt"])
def test_a_gpu_that_cannot_be_used_is_an_error_that_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Any
) -> None:
    monkeypatch.setattr(backends, "driver_answers", lambda *_: True)
    monkeypatch.setattr("daemon.backends.gpu.tensorrt.find_gpu", lambda device: None)
    with pytest.raises(BackendError, match=r"no NVIDIA driver answers for GPU 0.*backend\.kind: cpu"):
        open_backend(BackendConfig(kind=kind), manifest.verified(WEIGHTS), tmp_path)


def test_without_pycuda_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("daemon.backends.gpu.tensorrt.find_gpu", lambda device: CARD)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(BackendError, match=r"^pycuda cannot be imported.*`make gpu`.*bundle"):
        open_backend(BackendConfig(kind="tensorrt"), manifest.verified(WEIGHTS), tmp_path)
    assert not list(tmp_path.iterdir()), "an engine was built first"


def test_damaged_weights_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a network")
    changed = manifest.load(WEIGHTS).model_dump(mode="json")
    changed["sha256"] = {"model.onnx": manifest.sha256(tmp_path / "model.onnx")}
    (tmp_path / "manifest.json").write_text(manifest.Manifest.model_validate(changed).model_dump_json())
    with pytest.raises(WeightsError, match=r"model\.onnx: cannot be loaded.*reinstall"):
        open_backend(BackendConfig(kind="cpu"), manifest.verified(tmp_path), tmp_path)


def test_the_network_runtime_sends_no_telemetry(tmp_path: Path) -> None:
    script = (
        "from emdenoised import Denoiser; import numpy as np;"
        "Denoiser(backend='cpu').denoise(np.random.default_rng(0).poisson(9, (64, 64)))"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []
