"""The parameters by which a client checks that a model on a server is the network of its own weights.

`engine_build.triton_repository` writes these parameters into the model's configuration; `connection` reads them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from daemon.backends.manifest import Manifest

INPUTS = ("units", "level")
OUTPUT = "denoised"
FLOAT32 = "float32"
HALF = "float16 body, float32 around it"
_PRECISIONS = (FLOAT32, HALF)
"""Those that this version accepts; the second only from a model that has passed the gate."""
PRIORITY_LIVE, PRIORITY_BACKLOG = 1, 2
"""Triton's levels: 1 goes before 2."""


@dataclass(frozen=True, slots=True)
class Contract:
    """The parameters, as text."""

    onnx_sha256: str
    """Of the weights' own ONNX file."""
    tile: str
    """Side of the largest tiles, pixels."""
    halo: str
    precision: str
    gate: str
    """The comparison with float32 that a network with less precision has passed, in words; empty: none."""

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> "Contract":
        """From a model's parameters; what is missing is empty."""
        return cls(*(parameters.get(field.name, "") for field in fields(cls)))

    def as_parameters(self) -> dict[str, str]:
        """For a model's configuration."""
        return asdict(self)

    def other_network(self, weights: Manifest) -> str | None:
        """Why these are not the weights' parameters; None if they are."""
        own = weights.sha256[weights.onnx]
        if self.onnx_sha256 != own:
            stated = f"of the network {self.onnx_sha256[:12]}" if self.onnx_sha256 else "does not state its network"
            return f"{stated}, and these weights are {weights}"
        if self.halo != str(weights.halo):
            return f"has halo {self.halo or 'unknown'}, and these weights need {weights.halo}"
        if self.precision not in _PRECISIONS:
            return f"computes in {self.precision or 'an unknown precision'}, and not in {' or '.join(_PRECISIONS)}"
        if self.precision != FLOAT32 and not self.gate:
            return f"computes in {self.precision} and has passed no gate"
        return None
