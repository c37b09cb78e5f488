"""A real Triton server, and each way in which it fails: everything waits, and nothing is lost, doubled or counted.

The server is installed by `make triton`. EMDENOISED_SERVER_KILLS sets how often it is killed while a camera writes.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from site_of_daemon import Site, free_port, until

pytest.importorskip("tritonclient.grpc", reason="the extra `server` is not installed")
import tritonclient.grpc
from real_triton import MODEL, TILE, Triton

from daemon.backends import manifest, open_backend
from daemon.backends.canary import NO_SPIKES, canary
from daemon.backends.contract import HALF, Contract
from daemon.backends.gpu.engine import Gate
from daemon.backends.protocol import Backend
from daemon.counts.plane import Plane, Prepared
from daemon.counts.scaling import noise_units
from daemon.errors import ConfigError, ServerError, WeightsError
from daemon.ledger.jobs import Ledger
from daemon.settings.config import BackendConfig
from engine_build.triton_repository import Model, write

pytestmark = pytest.mark.field

KILLS = int(os.environ.get("EMDENOISED_SERVER_KILLS", "5"))
WEIGHTS = manifest.verified(MODEL)


def plane(seed: int = 0, shape: tuple[int, int] = (200, 300)) -> Plane:
    pixels = np.random.default_rng(seed).poisson(20, shape).astype(np.uint16)
    return Plane.known(Prepared(pixels, NO_SPIKES, noise_units(20.0), 20.0))


@contextlib.contextmanager
def client(url: str, tmp_path: Path, batch: int = 1, **server: Any) -> Iterator[Backend]:
    settings = BackendConfig.model_validate(
        {"kind": "server", "tile": TILE, "batch": batch, "server": {"url": url, "timeout_seconds": 300, **server}}
    )
    backend = open_backend(settings, WEIGHTS, tmp_path)
    try:
        yield backend
    finally:
        backend.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """One server for the tests that leave it as it was."""
    with Triton(tmp_path_factory.mktemp("triton"), batch=2) as triton:
        yield triton


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Triton]:
    """A server that the test may ruin."""
    triton = Triton(tmp_path)
    yield triton
    triton.kill()


@pytest.mark.parametrize("batch", [1, 2])
def test_results_are_those_of_onnx_runtime_in_this_process(shared: Triton, tmp_path: Path, batch: int) -> None:
    planes = [plane(1, (700, 500)), plane(2), plane(3, (64, 64))]
    local = open_backend(BackendConfig(kind="cpu", threads=1, tile=TILE, batch=batch), WEIGHTS, tmp_path)
    with client(shared.url, tmp_path, batch) as backend:
        canary(backend)
        results = list(backend.denoise(planes))
    for one, other in zip(results, local.denoise(planes), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.backend == f"server {shared.url}: Triton 2.51.0, {MODEL} on onnxruntime, float32"
    local.close()


def test_a_plans_repository_is_loaded_as_it_is_written(tmp_path: Path) -> None:
    """The network is the ONNX file under a plan's name: a stand-in for Triton's TensorRT backend runs it."""
    triton, weights = Triton(tmp_path / "triton"), WEIGHTS.manifest
    gate = Gate(ran_on='cpu: "test"', on_gpu=False, rms=0.002, largest=0.05, psnr_loss=0.001, cases=11)
    contract = Contract(weights.sha256[weights.onnx], str(TILE), str(weights.halo), HALF, gate.model_dump_json())
    content = (WEIGHTS.folder / weights.onnx).read_bytes()
    remarks = (("tensorrt", "10.5.0"), ("card", "NVIDIA L40S"))
    model = Model(MODEL, "tensorrt", content, contract, TILE, True, batch=2, processor="cpu", remarks=remarks)
    write(triton.repository, model)
    with triton, client(triton.url, tmp_path, 2) as backend:
        canary(backend)
        (result,) = backend.denoise([plane(1, (64, 300))])
        assert result.image.shape == (64, 300) and result.image.std() < 10
        assert result.backend == f"server {triton.url}: Triton 2.51.0, {MODEL} on tensorrt, {HALF}"


def test_a_proxy_of_the_environment_is_not_used(
    shared: Triton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with client(shared.url, tmp_path) as backend:
        canary(backend)


def broken(triton: Triton, tmp_path: Path, fault: Callable[[], object], **server: Any) -> tuple[ServerError, float]:
    """The error that a fault in the middle of a request causes, and after how many seconds."""
    triton.start()
    with client(triton.url, tmp_path, **server) as backend:
        canary(backend)
        triton.delay(5)
        begin = 0.0

        def planes() -> Iterator[Plane | None]:
            nonlocal begin
            yield plane()
            begin = time.monotonic()
            fault()
            yield None

        with pytest.raises(ServerError) as caught:
            list(backend.denoise(planes()))
        return caught.value, time.monotonic() - begin


def test_killed_in_the_middle_of_a_request_it_is_missed_at_once(own: Triton, tmp_path: Path) -> None:
    error, seconds = broken(own, tmp_path, own.kill)
    assert "UNAVAILABLE" in str(error) and own.url in str(error) and seconds < 5


def test_a_model_that_dies_in_the_server_is_a_fault_of_the_server(own: Triton, tmp_path: Path) -> None:
    def kill() -> None:
        for pid in own.stubs():
            os.kill(pid, signal.SIGKILL)

    error, _ = broken(own, tmp_path, kill)
    assert "INTERNAL" in str(error) or "UNAVAILABLE" in str(error)


def test_a_server_that_hangs_is_given_up_after_the_stated_time(own: Triton, tmp_path: Path) -> None:
    error, seconds = broken(own, tmp_path, lambda: own.signal(signal.SIGSTOP), timeout_seconds=3)
    assert "DEADLINE_EXCEEDED" in str(error) and seconds < 10


def test_a_server_that_ends_refuses_what_comes_then(own: Triton, tmp_path: Path) -> None:
    own.start()
    with client(own.url, tmp_path) as backend:
        canary(backend)
        own.signal(signal.SIGTERM)
        with pytest.raises(ServerError, match=r"NOT_FOUND|UNAVAILABLE"):
            while True:
                list(backend.denoise([plane()]))


def test_a_full_queue_is_a_fault_of_the_server(own: Triton, tmp_path: Path) -> None:
    own.configure("max_queue_size: 256", "max_queue_size: 1")
    own.start()
    with client(own.url, tmp_path, in_flight=16) as backend:
        canary(backend)
        own.delay(1)
        with pytest.raises(ServerError, match=r"UNAVAILABLE.*queue"):
            list(backend.denoise([plane(0, (800, 800))]))


def test_a_request_that_its_client_has_given_up_is_not_computed(own: Triton) -> None:
    """Also if the server cannot know that: its cable was pulled."""
    own.start()
    own.delay(4)
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    with tritonclient.grpc.InferenceServerClient(own.url) as raw:
        inputs = [tritonclient.grpc.InferInput(name, (1, 1, *sides), "FP32") for name, sides in
                  (("units", (TILE, TILE)), ("level", (1, 1)))]  # fmt: skip
        for one in inputs:
            one.set_data_from_numpy(np.zeros(one.shape(), np.float32))
        for seconds in (40, 1, 1):
            raw.async_infer(MODEL, inputs, lambda result, error: answers.put(str(error)), timeout=seconds * 10**6)
        said = [answers.get(timeout=120) for _ in range(3)]
    assert "None" in said and any("timeout" in one.lower() for one in said), said


def test_requests_that_the_model_does_not_take_need_a_person(own: Triton, tmp_path: Path) -> None:
    own.configure("dims: [ 1, 1, 1 ]", "dims: [ 1, 1, 2 ]")
    own.configure("model_warmup", "#")  # of the first line only: the rest of it is a comment's
    text = (own.folder / "config.pbtxt").read_text()
    start, end = text.index("# {"), text.index("parameters")
    (own.folder / "config.pbtxt").write_text(text[:start] + text[end:])
    own.start()
    with client(own.url, tmp_path) as backend, pytest.raises(ConfigError, match="does not take these requests"):
        canary(backend)


def certificates(folder: Path) -> None:
    """An authority, and certificates of a server and of a client."""
    run = lambda *words: subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)  # noqa: E731
    run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for who in ("server", "client"):
        run(
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}"
        )
        run("x509", "-req", "-in", f"{who}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{who}.pem", "-days", "2", "-extfile", "names")  # fmt: skip


def test_only_computers_with_a_certificate_are_served(tmp_path: Path) -> None:
    certificates(tmp_path)
    options = ["--grpc-use-ssl=1", "--grpc-use-ssl-mutual=1"]
    options += [f"--grpc-{name}={tmp_path / file}" for name, file in
                (("server-cert", "server.pem"), ("server-key", "server.key"), ("root-cert", "ca.pem"))]  # fmt: skip
    ca, cert, key = (str(tmp_path / name) for name in ("ca.pem", "client.pem", "client.key"))
    with Triton(tmp_path / "triton", *options) as triton:
        with client(triton.url, tmp_path, ca=ca, cert=cert, key=key) as backend:
            canary(backend)
        for fewer in ({}, {"ca": ca}):
            with client(triton.url, tmp_path, **fewer) as backend, pytest.raises(ServerError, match="UNAVAILABLE"):
                canary(backend)


def test_a_live_micrograph_goes_before_another_computers_backlog(shared: Triton, tmp_path: Path) -> None:
    over = threading.Event()

    def greedy() -> None:
        with client(shared.url, tmp_path, in_flight=30) as backend:
            while not over.is_set():
                list(backend.denoise([replace(plane(0, (900, 900)), live=False)]))

    other = threading.Thread(target=greedy)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with client(shared.url, tmp_path) as backend:
        canary(backend)
        other.start()
        for live in (True, True, True, False, True, True):
            begin = time.monotonic()
            list(backend.denoise([replace(plane(1), live=live)]))
            seconds[live].append(time.monotonic() - begin)
    over.set()
    other.join()
    assert np.median(seconds[True]) < np.median(seconds[False]) / 2, seconds


# The daemon


def serve(site: Site, triton: Triton, **server: Any) -> int:
    """Settings for this server; returns the port of /healthz."""
    port = free_port()
    site.configure(
        backend={"kind": "server", "tile": TILE, "server": {"url": triton.url, "timeout_seconds": 5, **server}},
        retry={"first_seconds": 0.5, "factor": 1.5, "longest_seconds": 2.0, "attempts": 1},
        monitor={"listen": f"127.0.0.1:{port}"},
        output={"preview": False},
    )
    return port


def health(port: int) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        return dict(json.load(error))


def done(site: Site) -> int:
    with Ledger(site.state, "read") as ledger:
        return ledger.counts()["done"]


def test_the_daemon_is_ready_without_its_server_and_works_once_that_is_there(site: Site, tmp_path: Path) -> None:
    triton = Triton(tmp_path / "triton")
    port = serve(site, triton)
    for number in range(3):
        site.write(f"{number}.tif", number)
    daemon = site.launch("run")
    site.ready(daemon)
    until(lambda: health(port)["state"] == "degraded")
    assert "UNAVAILABLE" in health(port)["detail"] and "queue is kept" in health(port)["detail"]
    with triton:
        until(lambda: done(site) == 3 and health(port)["state"] == "ok")
        record = json.loads((site.output / "0.tif.json").read_text())
        assert record["backend"] == f"server {triton.url}: Triton 2.51.0, {MODEL} on onnxruntime, float32"
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(60) == 0
    site.check_outputs()


def test_a_server_with_other_weights_ends_the_daemon_for_a_person(site: Site, tmp_path: Path) -> None:
    triton = Triton(tmp_path / "triton")
    triton.configure(WEIGHTS.manifest.sha256[WEIGHTS.manifest.onnx], "0" * 64)
    serve(site, triton)
    site.write("a.tif")
    with triton:
        with client(triton.url, tmp_path) as backend, pytest.raises(WeightsError, match="of the network 000000000000"):
            canary(backend)
        status, said = site.finish("run")
    assert status == 78 and "--triton" in said
    with Ledger(site.state, "read") as ledger:
        assert [(job.state, job.attempts) for job in ledger.recent(9)] in ([("pending", 0)], [])


def test_killed_again_and_again_while_a_camera_writes_nothing_is_lost_or_doubled(site: Site, own: Triton) -> None:
    triton = own
    serve(site, triton)
    over, rng = threading.Event(), np.random.default_rng(0)
    written = 0

    def camera() -> None:
        nonlocal written
        while not over.is_set():
            tifffile.imwrite(site.drop / f"{written:05}.tif", rng.poisson(20, (96, 96)).astype(np.uint16))
            written += 1
            over.wait(0.5)

    writer = threading.Thread(target=camera)
    daemon = site.launch("run")
    site.ready(daemon)
    writer.start()
    try:
        for _ in range(KILLS):
            triton.start()
            before = done(site)
            until(lambda: done(site) >= before + 3)  # noqa: B023 - waited for at once
            triton.kill()
        triton.start()
    finally:
        over.set()
        writer.join()
    while (before := done(site)) < written:
        until(lambda: done(site) > before)
    triton.kill()
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(60) == 0
    site.check_outputs()
    with Ledger(site.state, "read") as ledger:
        assert all(job.attempts == 1 and job.revision == 1 for job in ledger.recent(100_000))
