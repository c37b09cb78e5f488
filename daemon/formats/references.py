"""Recognises a camera's gain and dark references, and transforms, by their labels, titles and whole words of names.

A picture of a specimen may have "dark" (dark field, dark reflection) or "gain" (of a detector) in its name.
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from daemon.micrograph import Pixels

_KINDS = {"gain", "dark", "flat", "bias", "super", "count"}
_AMBIGUOUS = {"bias", "norm", "ref", "refs", "flat"}
"""Words of which one makes a reference of a name without words about a specimen, if its pixels fit."""
_WORDS = {
    *("ref", "refs", "reference", "references", "image", "frame", "frames", "camera", "norm", "map"),
    *("defect", "defects", "current", "counts", "master", "average", "mean", "median", "res", "superres"),
}
"""Further words in names of references, besides numbers and cameras."""
_CAMERAS = {
    *("k", "falcon", "ceta", "de", "eagle", "orius", "oneview", "rio", "tvips", "cam", "bin", "x", "kv", "v", "m", "i"),
    *("gatan", "ccd", "cmos", "emccd", "eer", "summit", "apollo", "alpine", "krios", "glacios", "talos", "titan"),
}
_FLAT = ("field", "fields", "frame", "frames")
"""Words that make "flat" or "white" a reference: a specimen may be either. A dark field is a kind of image."""
_STATED = re.compile(
    r"\s*(\w+:\s*)?(gain|dark|flat)[ _-]*(field)?[ _-]*ref(erence)?s?([ _-]*(image|map))?\s*", re.IGNORECASE
)
_TRANSFORM = re.compile(
    r"\W*(log(arithm)?( of)?( the)? )?(fft|dft|(2d )?fourier transform|power spectrum|diffractogram)"
    r"( (of|from|magnitude|amplitude)\b.*| ?[(:,].*)?\W*",
    re.IGNORECASE | re.DOTALL,
)
"""The title of a transform; "FFT filtered" is an image."""
_ENDING = re.compile(r"\.(gain|dark)(\.[a-z]+)?$", re.IGNORECASE)
_BLOCK, _MOST_BLOCKS = 8, 128
"""Side of a block in pixels; blocks that are evaluated along each side of the image."""
_AROUND_1, _SPREAD = 0.2, 0.15
"""Largest distance from 1 of the median of gains, and of most gains from it: other images have more contrast."""
_STRUCTURE = 4.0
"""Variance of the means of blocks, in that of white noise, above which there is more than noise."""
_LETTERS = re.compile(r"[^\W\d_]+")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
"""A word of a name in which only capitals separate words."""


def is_reference(name: str, metadata: Mapping[str, Any], pixels: Pixels | None = None) -> bool:
    """Whether a file with this name and metadata, and these pixels (H, W), is a camera's reference."""
    if any(map(stated, (*metadata.get("labels", ()), metadata.get("title", "")))):
        return True
    if _ENDING.search(name):
        return True
    parts = _LETTERS.findall(name.rpartition(".")[0] or name)
    whole = [word.lower() for part in parts for word in (_WORD.findall(part) if part.isascii() else [part])]
    words = [piece for word in whole for piece in _taken_apart(word)]
    pairs = list(pairwise(words))
    if any(kind in _KINDS and ref in ("ref", "refs", "reference", "references") for kind, ref in pairs):
        return True
    flat = any(kind in ("flat", "white") and rest in _FLAT for kind, rest in pairs)
    certain = flat or bool({"gain", "dark"} & set(words)) or {"flat", "master"} <= set(words)
    known = (*_KINDS, *_WORDS, *_CAMERAS, *(("white", *_FLAT) if flat else ()))
    if not (certain or _AMBIGUOUS & set(words)) or any(word not in known for word in words):
        return False
    return certain or (pixels is not None and _from_a_camera_alone(pixels))


def stated(text: str) -> bool:
    """Whether a label, title or description calls its file a camera's reference."""
    return bool(_STATED.fullmatch(text))


def is_transform(title: str) -> bool:
    """Whether a title or short description calls its image a Fourier transform or power spectrum."""
    return bool(_TRANSFORM.fullmatch(title))


def _from_a_camera_alone(pixels: Pixels) -> bool:
    """Whether pixels (H, W) are a map of gains around 1, or nothing but noise. One value throughout is neither."""
    down, across = (side // _BLOCK for side in pixels.shape)
    blocks = pixels[: down * _BLOCK, : across * _BLOCK].reshape(down, _BLOCK, across, _BLOCK)
    sample = blocks[:: -(-down // _MOST_BLOCKS) or 1, :, :: -(-across // _MOST_BLOCKS) or 1].astype(np.float64)
    if not sample.size or not np.isfinite(sample).all() or sample.min() == sample.max():
        return False
    if pixels.dtype.kind == "f":
        low, middle, high = np.percentile(sample, (16, 50, 84))
        if abs(middle - 1) < _AROUND_1 and high - low < 2 * _SPREAD:
            return True
    noise = np.square(np.diff(sample, axis=3)).mean() / 2
    # The quarters of a camera have amplifiers of their own.
    quarters = [part for half in np.array_split(sample, 2) for part in np.array_split(half, 2, axis=2) if part.size]
    return all(part.mean(axis=(1, 3)).var() * _BLOCK**2 <= _STRUCTURE * noise for part in quarters)


def _taken_apart(word: str) -> tuple[str, ...]:
    """A word that is two, as one of each: darkref, flatfield, masterdark."""
    for kind in (*_KINDS, "white"):
        if word.startswith(kind) and word[len(kind) :] in (*_WORDS, *_KINDS, *_FLAT):
            return kind, word[len(kind) :]
        if word.endswith(kind) and word[: -len(kind)] in _WORDS:
            return word[: -len(kind)], kind
    return (word,)
