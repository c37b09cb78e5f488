"""A Triton server in this process, on a loopback port: the real client and gRPC, and answers that a test decides."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from daemon.backends.contract import FLOAT32, Contract
from daemon.backends.manifest import Weights


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves `weights` by ONNX Runtime; `hook` sees each request's number and priority first, and may raise `Refusal`.

    `parameters` and `sides` may be changed while it runs.
    """

    def __init__(self, weights: Weights, tile: int | None = None, batch: int = 256) -> None:
        manifest = weights.manifest
        own = manifest.sha256[manifest.onnx]
        self.parameters = Contract(own, str(tile or manifest.tile), str(manifest.halo), FLOAT32, "").as_parameters()
        self.sides, self.batch, self.model = [-1, -1], batch, manifest.name
        self.hook: Callable[[int, int], None] = lambda number, priority: None
        self.priorities: list[int] = []
        self.timeouts: set[int] = set()
        """Microseconds that requests allow themselves in the queue."""
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(Path(weights.folder) / manifest.onnx), options, providers=["CPUExecutionProvider"]
        )
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """On the same port as before, if it was stopped."""
        sizes = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
        self._server = grpc.server(ThreadPoolExecutor(16), options=[*sizes, ("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="triton", version="9.9.9")

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name != self.model:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        config = model_config_pb2.ModelConfig(name=self.model, backend="fake", max_batch_size=self.batch)
        config.input.add(name="units", dims=[1, *self.sides])
        for name, value in self.parameters.items():
            config.parameters[name].string_value = value
        return service_pb2.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._lock:
            self.priorities.append(request.parameters["priority"].uint64_param)
            self.timeouts.add(request.parameters["timeout"].int64_param)
            number = len(self.priorities)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self.hook(number, self.priorities[number - 1])
        except Refusal as refusal:
            context.abort(refusal.code, str(refusal))
        finally:
            with self._lock:
                self._at_once -= 1
        feeds = {
            one.name: np.frombuffer(content, np.float32).reshape(one.shape)
            for one, content in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        (result,) = self._session.run(["denoised"], feeds)
        answer = service_pb2.ModelInferResponse(model_name=self.model, raw_output_contents=[result.tobytes()])
        answer.outputs.add(name="denoised", datatype="FP32", shape=result.shape)
        return answer


class Refusal(Exception):  # noqa: N818 - an answer, and no error of the test
    """What a server answers instead of a result."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
