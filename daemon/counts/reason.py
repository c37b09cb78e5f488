"""Reasons to check a result, and remarks on its micrograph: a short code and a text."""

from dataclasses import dataclass
from typing import Literal, get_args

OfResult = Literal[
    "worse", "gaussian", "invented", "mean", "block-mean", "noise-left", "part-untouched", "block-removed",
    "over-smoothed", "contrast-lost", "spacing-lost", "no-noise", "contrast", "small", "spikes", "dose",
]  # fmt: skip
OfSession = Literal[
    "profile", "file", "camera-size", "camera-voltage", "saturated", "bar", "bar-suspected", "correlated", "gain",
    "lines", "void",
]  # fmt: skip
"""Reasons in the camera, the settings or the way files are saved. Most files of a session share them, so they are
reported once."""
Code = Literal[OfResult, OfSession]
"""docs/verdict.md lists them."""
SESSION: frozenset[Code] = frozenset(get_args(OfSession))


@dataclass(frozen=True, slots=True)
class Reason:
    """`text`: cause and remedy, for a microscopist."""

    code: Code
    text: str

    def as_json(self) -> dict[str, str]:
        return {"code": self.code, "text": self.text}
