"""A backend of Triton in Python that runs a model's network by ONNX Runtime, where the server's own cannot be had.

A file `delay` beside the network holds seconds to wait before each answer.
"""

import time
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, arguments):
        self.folder = Path(arguments["model_repository"]) / arguments["model_version"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        (network,) = self.folder.glob("model.*")
        self.session = onnxruntime.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        delay = self.folder / "delay"
        answers = []
        for request in requests:
            if delay.exists():
                time.sleep(float(delay.read_text()))
            feeds = {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in ("units", "level")}
            answers.append(
                triton.InferenceResponse([triton.Tensor("denoised", self.session.run(["denoised"], feeds)[0])])
            )
        return answers
