"""The stand-in for TensorRT computes the shipped network; its half of it that needs no GPU."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch_network import HalfNetwork

from daemon.backends import manifest

FOLDER = manifest.locate("fast")
WEIGHTS = manifest.load(FOLDER)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.3)])
def test_it_computes_what_the_shipped_onnx_file_does(dtype: torch.dtype, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    units = rng.normal(0, 1, (1, 1, 128, 128)).astype(np.float32)
    level = np.full((1, 1, 1, 1), 0.1, np.float32)
    session = onnxruntime.InferenceSession(FOLDER / WEIGHTS.onnx, providers=["CPUExecutionProvider"])
    wanted = session.run(["denoised"], {"units": units, "level": level})[0]
    model = HalfNetwork(FOLDER, WEIGHTS, "cpu", dtype)
    seen = model(torch.from_numpy(units), torch.from_numpy(level))
    assert seen.dtype == torch.float32
    np.testing.assert_allclose(seen.numpy(), wanted, atol=tolerance)
