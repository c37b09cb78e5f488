"""Engines for the shapes of frames that keep coming, and what becomes of the others where memory or TensorRT fail."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda, FakeNetwork
from fake_gpu import plug_in
from numpy.typing import NDArray

from daemon.backends import manifest, open_backend
from daemon.backends.gpu import network as loading
from daemon.backends.gpu import provision, shapes, tensorrt
from daemon.backends.gpu.device import OutOfMemoryError
from daemon.backends.gpu.network import UnreadableError
from daemon.backends.gpu.tensorrt import TensorRtBackend
from daemon.counts.plane import Denoised, Plane
from daemon.counts.prepare import plane
from daemon.counts.profiles import Choice
from daemon.errors import BackendError, MicrographError
from daemon.settings.config import BackendConfig
from daemon.settings.profile import Profile

FOLDER = manifest.locate("fast")
WEIGHTS = manifest.load(FOLDER)
COUNTED = Choice(Profile(name="test"), "", 1.0, 0.0)
SHAPE, FIT = (512, 384), (512, 384)


def frames(number: int, shape: tuple[int, int] = SHAPE) -> list[NDArray[np.uint16]]:
    rng = np.random.default_rng(shape)
    return [rng.poisson(20, shape).astype(np.uint16) for _ in range(number)]


def asked(image: NDArray[Any]) -> Plane:
    return plane(image, COUNTED, WEIGHTS.dose_range)


class Card:
    """A computer with a card and cheap networks; `built`: the tiles whose engines were ordered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, seed: int | None = 0) -> None:
        self.drivers = plug_in(monkeypatch, seed)
        self.built: list[tuple[tuple[int, int], str]] = []
        self.loads: list[tuple[int, int]] = []
        self._folder, self._real = folder, provision.engine
        monkeypatch.setattr(provision, "engine", self._engine)
        monkeypatch.setattr(loading, "open_network", self._open)

    def fails(self, tile: tuple[int, int]) -> Exception | None:
        return None

    def _engine(self, order: provision.EngineOrder, *rest: Any, rebuild_because: str = "") -> Any:
        assert all(driver.closed for driver in self.drivers), "a builder was started while the card was in use"
        self.built.append((order.tile, rebuild_because))
        return self._real(order, *rest, rebuild_because=rebuild_because)

    def _open(self, path: Path, about: Any, driver: FakeCuda) -> Any:
        self.loads.append(about.tile)
        if error := self.fails(about.tile):
            raise error
        one = FakeNetwork(driver, about.tile, about.batch)
        one.keep_compiled = one.close = lambda: None  # type: ignore[attr-defined]
        return one

    def open(self, **settings: Any) -> TensorRtBackend:
        opened = open_backend(BackendConfig(kind="tensorrt", **settings), manifest.verified(FOLDER), self._folder).inner
        assert isinstance(opened, TensorRtBackend)
        return opened


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Card:
    return Card(monkeypatch, tmp_path)


def tiles_of(results: list[Denoised]) -> list[str]:
    return [result.backend.partition("tiles of ")[2].partition(",")[0] for result in results]


def test_frames_that_keep_coming_get_an_engine_that_fits_and_none_is_lost_or_mixed_up(
    card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    backend, given = card.open(), frames(7)
    results = list(backend.denoise(map(asked, given)))
    assert [result.prepared.pixels is image for result, image in zip(results, given, strict=True)] == [True] * 7
    assert tiles_of(results) == ["256 x 256"] * shapes.FRAMES_FIRST + ["384 x 512"] * 4
    assert card.built == [((256, 256), ""), (FIT, "")]
    assert [driver.closed for driver in card.drivers] == [True, False], "the builder had the card for itself"
    again = list(backend.denoise(map(asked, given[:2])))
    for one, other in zip(again, results[:2], strict=True):  # other tiles, the same pixels where all of them see enough
        np.testing.assert_allclose(one.image[:-1, 1:], other.image[:-1, 1:], atol=1e-3)
    assert "frames of 384 x 512 pixels: 1 tile of 384 x 512, 1.00 times the frame computed" in caplog.text
    backend.close()
    assert all(driver.closed for driver in card.drivers)


@pytest.mark.parametrize("seed", range(8))
def test_mixed_shapes_in_one_stream_with_pauses_come_out_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    card = Card(monkeypatch, tmp_path, seed)
    backend = card.open()
    given = [image for six in zip(frames(6), frames(6, (300, 700)), frames(6, (64, 100)), strict=True) for image in six]

    def source() -> Iterator[Plane | None]:
        for index, image in enumerate(given):
            yield asked(image)
            if index % 5 == seed % 5:
                yield None

    results = list(backend.denoise(source()))
    assert [result.prepared.pixels is image for result, image in zip(results, given, strict=True)] == [True] * 18
    calm = Card(monkeypatch, tmp_path, None).open()
    for result, wanted in zip(results, calm.denoise(map(asked, given)), strict=True):
        np.testing.assert_array_equal(result.image, wanted.image)
    assert {tile for tile, _ in card.built} == {(256, 256), FIT, (384, 768)}
    backend.close()
    calm.close()


def test_one_that_was_built_in_an_earlier_run_serves_the_first_frame(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = card.open()
    monkeypatch.setattr(provision, "existing", lambda order: card._real(order) if order.tile == FIT else None)
    results = list(backend.denoise(map(asked, frames(2))))
    assert tiles_of(results) == ["384 x 512"] * 2
    assert [tile for tile, _ in card.built] == [(256, 256)]
    backend.close()


def test_where_no_such_engine_can_be_built_smaller_tiles_go_on(
    card: Card, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend, real = card.open(), provision.engine

    def refuse(order: provision.EngineOrder, *rest: Any, **more: Any) -> Any:
        if order.tile == FIT:
            raise BackendError("the builder was killed by signal 9")
        return real(order, *rest, **more)

    monkeypatch.setattr(provision, "engine", refuse)
    results = list(backend.denoise(map(asked, frames(9))))
    assert tiles_of(results) == ["256 x 256"] * 9
    assert caplog.text.count("no engine for tiles of 384 x 512, smaller ones serve: the builder was killed") == 1
    backend.close()


def test_a_card_too_full_for_large_tiles_goes_back_to_small_ones_and_the_frame_is_not_lost(
    card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    card.fails = lambda tile: OutOfMemoryError("full") if tile == FIT else None  # type: ignore[method-assign]
    backend, given = card.open(), frames(8)
    results = list(backend.denoise(map(asked, given)))
    assert [result.prepared.pixels is image for result, image in zip(results, given, strict=True)] == [True] * 8
    assert tiles_of(results) == ["256 x 256"] * 8
    assert "memory is full; continuing with tiles of 256 x 256" in caplog.text
    backend.close()
    assert all(driver.closed for driver in card.drivers)


def test_when_memory_runs_out_in_the_middle_the_batch_is_lowered_then_that_micrograph_fails(card: Card) -> None:
    backend, small = card.open(batch=4, tile=256), frames(2)
    assert len(list(backend.denoise(map(asked, small)))) == 2
    card.drivers[-1].room = 1e5
    large = frames(1, (700, 900))
    (result,) = backend.denoise(map(asked, large))
    assert "1 at once" in result.backend
    card.drivers[-1].room = 1e5
    with pytest.raises(MicrographError, match=r"1000 x 900 pixels does not fit .* GPU's memory \(the fake device"):
        list(backend.denoise(map(asked, frames(1, (900, 1000)))))
    card.drivers[-1].room = float("inf")
    assert len(list(backend.denoise(map(asked, small)))) == 2
    backend.close()


def test_no_more_of_the_card_is_taken_than_gpu_memory_allows_and_what_does_not_fit_names_the_setting(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    real = FakeCuda.device

    def device(driver: FakeCuda, nbytes: int) -> Any:
        memory = real(driver, nbytes)
        taken.append(sum(driver._on_device.values()))
        return memory

    monkeypatch.setattr(FakeCuda, "device", device)
    monkeypatch.setattr(shapes, "FRAMES_FIRST", 0)
    backend = card.open(gpu_memory=0.25)
    most = backend._settings.gpu_bytes or 0
    (result,) = backend.denoise(map(asked, frames(1, (700, 1000))))
    (side, other) = (int(word) for word in tiles_of([result])[0].split(" x "))
    assert side * other * 168 <= most * shapes.SHARE_OF_CARD < 768 * 1024 * 168  # which would compute least
    large = np.tile(frames(1, (330, 330))[0].astype(np.float32), (10, 10))
    with pytest.raises(
        MicrographError, match=r"3300 x 3300 pixels does not fit .* backend\.gpu_memory allows 0\.25 GiB"
    ):
        list(backend.denoise([asked(large)]))
    assert most / 2 < max(taken) <= most
    assert len(list(backend.denoise(map(asked, frames(2))))) == 2
    backend.close()
    assert BackendConfig().gpu_bytes is None


def test_an_engine_that_does_not_load_is_built_anew_once_and_then_an_error(card: Card) -> None:
    card.fails = lambda tile: (  # type: ignore[method-assign]
        UnreadableError("x.engine: TensorRT cannot load it", tile) if card.loads.count(tile) == 1 else None
    )
    backend = card.open()
    assert card.built == [((256, 256), ""), ((256, 256), "x.engine: TensorRT cannot load it")]
    assert len(list(backend.denoise(map(asked, frames(5))))) == 5
    assert [tile for tile, _ in card.built[2:]] == [FIT, FIT]
    backend.close()
    card.fails = lambda tile: UnreadableError("x.engine: TensorRT cannot load it", tile)  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="though it was just rebuilt"):
        card.open()
    assert all(driver.closed for driver in card.drivers)


def test_only_so_many_engines_are_loaded_at_once(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "MOST_OPEN", 2)
    monkeypatch.setattr(shapes, "FRAMES_FIRST", 0)
    backend = card.open()
    sides = [(512, 384), (640, 384), (768, 384), (512, 384)]
    results = [next(iter(backend.denoise([asked(frames(1, shape)[0])]))) for shape in sides]
    assert len(set(tiles_of(results))) == 3
    assert len(backend._networks) == 2
    backend.close()
