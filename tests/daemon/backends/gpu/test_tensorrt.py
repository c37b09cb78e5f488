"""TensorRT as it is called: against the real bindings of both flavours, whose objects are stand-ins without a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorrt_rtx
from fake_cuda import FakeCuda
from fake_gpu import manifest_of_engine, plug_in
from specced_tensorrt import WEIGHTS, Specced, run

from daemon.backends import manifest, open_backend
from daemon.backends.gpu import network as loading
from daemon.backends.gpu import provision
from daemon.backends.gpu.device import OutOfMemoryError
from daemon.backends.gpu.network import EngineNetwork, UnreadableError, warm_up
from daemon.errors import BackendError, WeightsError
from daemon.settings.config import BackendConfig

FAKES = Path(__file__).parents[3] / "fakes"
STUBS = {
    "libnvinfer.so.11": ["createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
                         "getPluginRegistry", "getBuilderPluginRegistry"],
    "libnvinfer_plugin.so.11": ["initLibNvInferPlugins"],
    "libnvonnxparser.so.11": ["createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL",
                              "getNvOnnxParserVersion"],
}  # fmt: skip
"""What TensorRT's bindings ask of its libraries when they are imported; none of it is called here."""


def test_every_call_is_in_the_bindings_of_tensorrt_rtx(tmp_path: Path) -> None:
    trt = tensorrt_rtx
    fake = run(trt, "rtx", tmp_path)
    assert (tmp_path / "x.cache").read_bytes() == b"compiled"
    # Its own scratch memory, and an address only where it is a new one.
    managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    fake.config.set_execution_context_allocation_strategy.assert_called_once_with(managed)
    assert fake.context.set_device_memory.call_args.args[1] == 4096
    bound = [call.args for call in fake.context.set_tensor_address.call_args_list]
    assert sorted(bound) == [("denoised", 2), ("level", 3), ("level", 4), ("units", 1)]
    fake.context.execute_async_v3.assert_called_with(7)


def test_every_call_is_in_the_bindings_of_tensorrt_11(tmp_path: Path) -> None:
    for library, symbols in STUBS.items():
        source = tmp_path / "stub.c"
        source.write_text("\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in symbols))
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", tmp_path / library, source]
        subprocess.run(command, check=True, timeout=60)
    paths = os.pathsep.join([str(FAKES), str(FAKES.parents[1])])
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, str(FAKES / "specced_tensorrt.py"), "tensorrt_bindings"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "every call is in 11." in done.stdout


@pytest.fixture
def fake() -> Specced:
    return Specced(tensorrt_rtx)


def load(fake: Specced, folder: Path, monkeypatch: pytest.MonkeyPatch, driver: FakeCuda | None = None) -> EngineNetwork:
    monkeypatch.setattr(loading, "load_tensorrt", lambda flavour: fake)
    (folder / "x.engine").write_bytes(b"engine")
    about = manifest_of_engine(WEIGHTS, 64, 2)
    return EngineNetwork(folder / "x.engine", about, driver or FakeCuda(), folder / "x.cache")


def test_an_engine_that_does_not_load_is_an_error_with_tensorrts_message(
    fake: Specced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.runtime.deserialize_cuda_engine.return_value = None
    with pytest.raises(UnreadableError, match=r"x\.engine: TensorRT cannot load it: it gave no reason") as caught:
        load(fake, tmp_path, monkeypatch)
    assert caught.value.tile == (64, 64)


def test_shapes_are_set_and_a_refusal_is_an_error(
    fake: Specced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(fake, tmp_path, monkeypatch)
    shapes = [call.args for call in fake.context.set_input_shape.call_args_list]
    assert shapes == [("units", (2, 1, 64, 64)), ("level", (2, 1, 1, 1))]
    assert fake.config.cuda_graph_strategy == tensorrt_rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    fake.context.set_input_shape.return_value = False
    fake.engine.get_tensor_name.side_effect = ["units", "level", "denoised"]
    with pytest.raises(BackendError, match="refuses units of"):
        load(fake, tmp_path, monkeypatch)


def test_an_engine_of_something_else_is_refused(fake: Specced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.engine.get_tensor_name.side_effect = ["image", "mask", "text"]
    with pytest.raises(BackendError, match="takes and gives image, mask, text"):
        load(fake, tmp_path, monkeypatch)


def test_a_run_that_fails_is_an_error_and_a_full_card_one_of_its_own(
    fake: Specced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load(fake, tmp_path, monkeypatch)
    fake.context.execute_async_v3.return_value = False
    with pytest.raises(BackendError, match="could not run the network"):
        network.enqueue(1, 2, 3, SimpleNamespace(handle=0))
    network._logger.log(fake.ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was 99)")
    with pytest.raises(OutOfMemoryError, match="Requested size was 99"):
        network.enqueue(1, 2, 3, SimpleNamespace(handle=0))


def test_compiled_code_of_another_version_is_made_anew(
    fake: Specced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "x.cache").write_bytes(b"of yesterday")
    fake.config.create_runtime_cache().deserialize.return_value = False
    network = load(fake, tmp_path, monkeypatch)
    network.keep_compiled()
    assert (tmp_path / "x.cache").read_bytes() == b"compiled"
    assert "x.cache: of another version or card" in caplog.text


def test_the_first_run_is_waited_for_and_leaves_nothing_behind() -> None:
    class Network:
        tile, batch, ran = (64, 64), 2, 0

        def enqueue(self, units: Any, level: Any, result: Any, stream: Any) -> None:
            driver.put(stream, lambda: setattr(self, "ran", self.ran + int(not units.floats(4).any())))

    driver, network = FakeCuda(11), Network()
    warm_up(network, driver)  # type: ignore[arg-type]
    assert network.ran == 1
    assert not driver.live


# The backend


def test_the_name_of_the_backend_states_what_ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plug_in(monkeypatch)
    one = open_backend(BackendConfig(kind="auto"), manifest.verified("fast"), tmp_path)
    assert one.name == (
        "tensorrt: TensorRT-RTX 1.7.1.116, float16 body, float32 around it, NVIDIA RTX A4000, tiles of 256 x 256, "
        "1 at once, engine 000000000000"
    )
    one.close()


def test_a_full_card_lowers_the_batch_once_and_logs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drivers = plug_in(monkeypatch)
    real = loading.open_network
    asked: list[int] = []

    def full(path: Path, about: Any, driver: Any) -> Any:
        asked.append(about.batch)
        if about.batch > 1:
            raise OutOfMemoryError("TensorRT: out of memory")
        return real(path, about, driver)

    monkeypatch.setattr(loading, "open_network", full)
    one = open_backend(BackendConfig(kind="auto", batch=8), manifest.verified("fast"), tmp_path)
    assert asked == [8, 1]
    assert "memory is full with 8 tiles at once; now 1: set backend.batch: 1" in caplog.text
    assert "1 at once" in one.name
    one.close()
    assert [driver.closed for driver in drivers] == [True, True]


def test_a_card_too_full_even_for_one_tile_is_an_error_that_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drivers = plug_in(monkeypatch)

    def full(path: Path, about: Any, driver: Any) -> Any:
        raise OutOfMemoryError("TensorRT: out of memory")

    monkeypatch.setattr(loading, "open_network", full)
    with pytest.raises(BackendError, match="out of memory"):
        open_backend(BackendConfig(kind="auto", batch=8), manifest.verified("fast"), tmp_path)
    assert [driver.closed for driver in drivers] == [True, True]


def test_a_bad_tile_is_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plug_in(monkeypatch)
    monkeypatch.setattr(provision, "engine", lambda *given: pytest.fail("an engine was asked for"))
    with pytest.raises(WeightsError, match="leaves nothing inside halo"):
        open_backend(BackendConfig(kind="auto", tile=128), manifest.verified("fast"), tmp_path)
