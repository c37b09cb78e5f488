"""The backend on a server: what it asks, what it refuses, and what each answer means.

The faults of a real server are in tests/field/test_server.py.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `server` is not installed")
import grpc
from fake_triton import FakeTriton, Refusal

from daemon.backends import manifest, open_backend, resolve
from daemon.backends.canary import NO_SPIKES, canary
from daemon.backends.contract import HALF
from daemon.backends.protocol import Backend
from daemon.commands.main import main
from daemon.counts.plane import Plane, Prepared
from daemon.counts.scaling import noise_units
from daemon.errors import BackendError, ConfigError, MicrographError, ServerError, WeightsError
from daemon.settings.config import EX_CONFIG, BackendConfig

WEIGHTS = manifest.verified("fast")
TILE = 256


@pytest.fixture
def server() -> Iterator[FakeTriton]:
    server = FakeTriton(WEIGHTS, TILE)
    yield server
    server.stop()


@pytest.fixture
def connect(server: FakeTriton, tmp_path: Path) -> Iterator[Callable[..., Backend]]:
    opened = []

    def connect(batch: int = 1, tile: int = TILE, **given: Any) -> Backend:
        settings = {"kind": "server", "tile": tile, "batch": batch, "server": {"url": server.url, **given}}
        opened.append(open_backend(BackendConfig.model_validate(settings), WEIGHTS, tmp_path))
        return opened[-1]

    yield connect
    for backend in opened:
        backend.close()


def plane(seed: int = 0, shape: tuple[int, int] = (64, 64), live: bool = True) -> Plane:
    pixels = np.random.default_rng(seed).poisson(20, shape).astype(np.uint16)
    return replace(Plane.known(Prepared(pixels, NO_SPIKES, noise_units(20.0), 20.0)), live=live)


@pytest.mark.parametrize("card", [True, False])
def test_only_the_setting_chooses_a_server(monkeypatch: pytest.MonkeyPatch, card: bool) -> None:
    monkeypatch.setattr("daemon.backends.driver_answers", lambda *_: card)
    assert resolve("server") == "server" and resolve("auto") == ("tensorrt" if card else "cpu")


def test_results_are_the_processors_to_the_bit_and_name_the_server(
    server: FakeTriton, connect: Callable[..., Backend], tmp_path: Path
) -> None:
    local = open_backend(BackendConfig(kind="cpu", threads=1, tile=TILE), WEIGHTS, tmp_path)
    planes = [plane(1, (270, 100)), plane(2)]
    for one, other in zip(connect().denoise(planes), local.denoise(planes), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.backend == f"server {server.url}: Triton 9.9.9, {WEIGHTS.manifest.name} on fake, float32"
    local.close()


def test_requests_travel_while_others_are_computed_across_micrographs(
    server: FakeTriton, connect: Callable[..., Backend]
) -> None:
    met = threading.Barrier(3, timeout=30)
    server.hook = lambda number, priority: met.wait() and None
    results = list(connect(in_flight=3).denoise([plane(seed) for seed in range(6)]))
    assert len(results) == 6 and server.most_at_once == 3


def test_the_backlog_has_the_lower_priority(server: FakeTriton, connect: Callable[..., Backend]) -> None:
    list(connect(in_flight=1).denoise([plane(0), plane(1, live=False), replace(plane(2, live=False), passes=8)]))
    assert server.priorities == [1, 2] + [2] * 8


def test_a_micrograph_that_is_refused_loses_none_before_it(connect: Callable[..., Backend]) -> None:
    results = []
    with pytest.raises(MicrographError, match="at least 32"):
        for result in connect(in_flight=8).denoise([plane(0), plane(1), plane(2, (8, 8)), plane(3)]):
            results.append(result)  # noqa: PERF402 - those before the error count
    assert len(results) == 2


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("UNAVAILABLE", ServerError, "does not answer, or refuses more requests .UNAVAILABLE: because"),
        ("INTERNAL", ServerError, "the model failed"),
        ("NOT_FOUND", ServerError, "the model is not loaded"),
        ("UNKNOWN", ServerError, "it failed .UNKNOWN"),
        ("INVALID_ARGUMENT", ConfigError, "does not take these requests .because"),
    ],
)
def test_each_answer_has_its_class(
    server: FakeTriton, connect: Callable[..., Backend], code: str, kind: type[Exception], words: str
) -> None:
    def refuse(number: int, priority: int) -> None:
        if number == 2:
            raise Refusal(grpc.StatusCode[code], "because")

    server.hook = refuse
    backend, results = connect(in_flight=1), []
    with pytest.raises(kind, match=words):
        for result in backend.denoise([plane(0), plane(1), plane(2)]):
            results.append(result)  # noqa: PERF402 - those before the error count
    assert len(results) == 1
    canary(backend)  # which connects anew


def test_no_answer_in_time_is_a_fault_of_the_server(server: FakeTriton, connect: Callable[..., Backend]) -> None:
    over = threading.Event()
    server.hook = lambda number, priority: over.wait(30) and None
    with pytest.raises(ServerError, match="no answer in time"):
        canary(connect(timeout_seconds=1))
    over.set()


def test_the_server_knows_how_long_its_client_waits(server: FakeTriton, connect: Callable[..., Backend]) -> None:
    canary(connect(timeout_seconds=61.5))
    assert server.timeouts == {61_500_000}


def test_a_server_that_is_not_there_is_found_when_it_is_needed_and_again(
    server: FakeTriton, connect: Callable[..., Backend]
) -> None:
    server.stop()
    backend = connect()
    assert "not connected" in backend.name
    with pytest.raises(ServerError, match="UNAVAILABLE"):
        canary(backend)
    server.start()
    canary(backend)
    assert "Triton 9.9.9" in backend.name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"onnx_sha256": "1234567890ab" + "0" * 52}, "of the network 1234567890ab, and these weights are fast-"),
        ({"onnx_sha256": ""}, "does not state its network"),
        ({"halo": "8"}, "has halo 8, and these weights need"),
        ({"precision": "int8"}, "computes in int8, and not in float32 or float16 body"),
        ({"precision": HALF}, "has passed no gate"),
    ],
)
def test_another_network_is_never_used(
    server: FakeTriton, connect: Callable[..., Backend], change: dict[str, str], words: str
) -> None:
    server.parameters |= change
    with pytest.raises(WeightsError, match=words):
        canary(connect())
    assert not server.priorities


def test_a_network_that_is_exchanged_while_the_client_is_connected_is_found(
    server: FakeTriton, connect: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.backends.server.TRUSTED_SECONDS", -1.0)
    backend = connect()
    canary(backend)
    server.parameters["onnx_sha256"] = "0" * 64
    with pytest.raises(WeightsError, match="of the network 000000000000"):
        canary(backend)


def test_less_precision_that_passed_the_gate_is_used_and_recorded(
    server: FakeTriton, connect: Callable[..., Backend]
) -> None:
    server.parameters |= {"precision": HALF, "gate": "passed"}
    backend = connect()
    canary(backend)
    assert backend.name.endswith(HALF)


def test_tiles_and_batches_that_the_model_does_not_have_need_a_person(
    server: FakeTriton, connect: Callable[..., Backend]
) -> None:
    with pytest.raises(
        ConfigError, match=f"has tiles of {TILE} pixels, and here they are 512; set backend.tile: {TILE}"
    ):
        canary(connect(tile=512))
    server.batch = 2
    with pytest.raises(ConfigError, match=r"takes 2 tiles at once; set backend\.batch"):
        canary(connect(batch=4))
    with pytest.raises(ConfigError, match="exceed the 2 GiB of one request"):
        connect(tile=8192, batch=8)


def test_a_plan_of_one_shape_gets_tiles_of_that_shape(server: FakeTriton, connect: Callable[..., Backend]) -> None:
    server.sides = [TILE, TILE]
    backend = connect()
    (result,) = backend.denoise([plane(0, (64, 300))])
    assert result.image.shape == (64, 300) and backend.inner.frame.fixed  # type: ignore[attr-defined]


def test_commands_check_the_server_before_they_read_anything(
    server: FakeTriton, tmp_path: Path, write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = "{drop: drop, output: output, state: state}"
    config = tmp_path / "config.yaml"
    config.write_text(f"folders: {folders}\nbackend: {{kind: server, tile: {TILE}, server: {{url: '{server.url}'}}}}\n")
    arguments = ["denoise", str(write(tmp_path / "a.tif")), "-o", str(tmp_path / "out"), "--config", str(config)]
    assert main(arguments) == 0
    record = json.loads((tmp_path / "out" / "a.tif.json").read_text())
    assert record["backend"].startswith(f"server {server.url}: Triton 9.9.9")
    server.parameters["onnx_sha256"] = "0" * 64
    assert main(arguments) == EX_CONFIG
    server.stop()
    assert main(arguments) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err.replace("\n", " ")


def test_a_certificate_that_cannot_be_read_is_named(connect: Callable[..., Backend], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.pem: cannot be read"):
        connect(ca=str(tmp_path / "ca.pem"))


def test_a_client_that_is_not_installed_is_named_with_the_command(
    connect: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(ConfigError, match=r"-m pip install 'tritonclient\[grpc\]'"):
        connect()


def test_answers_of_another_shape_are_a_fault_of_the_server(
    server: FakeTriton, connect: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_session", type("Odd", (), {"run": lambda *_: [np.zeros((1, 1, 9, 9), np.float32)]})())
    with pytest.raises(BackendError, match="answered float32"):
        canary(connect())
