"""Weights folders: what is wrong with one is said before a network is loaded, with the file, the cause, the remedy."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from daemon.backends import manifest
from daemon.backends.manifest import MANIFEST, Manifest
from daemon.errors import WeightsError

CONTENT = b"a network"


@pytest.fixture
def about() -> dict[str, Any]:
    return {
        "name": "some",
        "network": "fast",
        "arguments": {"widths": [8]},
        "scaling": "noise_units",
        "tile": 256,
        "halo": 32,
        "align": 32,
        "dose_range": [0.5, 5000],
        "contrast_range": [0.02, 1],
        "sha256": {"model.onnx": hashlib.sha256(CONTENT).hexdigest()},
        "training": {"steps": 3},
    }


def folder_of(path: Path, about: dict[str, Any]) -> Path:
    (path / MANIFEST).write_text(json.dumps(about))
    (path / "model.onnx").write_bytes(CONTENT)
    return path


def test_a_folder_that_is_whole_is_loaded(tmp_path: Path, about: dict[str, Any]) -> None:
    loaded = manifest.load(folder_of(tmp_path, about))
    assert (loaded.tile, loaded.halo, loaded.align, loaded.onnx) == (256, 32, 32, "model.onnx")
    assert loaded.dose_range == (0.5, 5000)
    assert Manifest.model_validate_json(loaded.model_dump_json()) == loaded
    with pytest.raises(ValueError, match="frozen"):
        loaded.tile = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("schema_version", 2, "schema_version"),
        ("network", "unet", "network"),
        ("scaling", "percentile", "scaling"),
        ("tile", 0, "tile"),
        ("halo", -1, "halo"),
        ("align", 0, "align"),
        ("dose_range", [1], "dose_range"),
        ("sha256", None, "sha256"),
        ("licence", "none", "licence"),
    ],
)
def test_a_manifest_that_is_not_understood_is_refused_by_its_key(
    tmp_path: Path, about: dict[str, Any], key: str, value: object, said: str
) -> None:
    with pytest.raises(WeightsError, match=rf"(?s){MANIFEST}: not a manifest.*{said}"):
        manifest.load(folder_of(tmp_path, {**about, key: value}))


@pytest.mark.parametrize("key", ["name", "network", "scaling", "tile", "halo", "align", "sha256", "training"])
def test_nothing_of_a_manifest_is_guessed(tmp_path: Path, about: dict[str, Any], key: str) -> None:
    del about[key]
    with pytest.raises(WeightsError, match=rf"(?s){MANIFEST}.*{key}"):
        manifest.load(folder_of(tmp_path, about))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff"])
def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match=MANIFEST):
        manifest.load(tmp_path)


def test_a_folder_without_manifest_is_refused_with_the_names_that_exist(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"manifest\.json: cannot be read.*use one of: .*fast"):
        manifest.load(tmp_path / "nowhere")


def test_a_changed_or_missing_file_is_refused(tmp_path: Path, about: dict[str, Any]) -> None:
    folder_of(tmp_path, about)
    (tmp_path / "model.onnx").write_bytes(CONTENT + b"!")
    with pytest.raises(WeightsError, match=r"model\.onnx: SHA-256.*reinstall"):
        manifest.load(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(WeightsError, match=r"model\.onnx: cannot be read.*reinstall"):
        manifest.load(tmp_path)


def test_the_hash_is_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "large").write_bytes(content)
    assert manifest.sha256(tmp_path / "large") == hashlib.sha256(content).hexdigest()
    assert manifest.sha256(tmp_path / "large") != hashlib.sha256(content[:-1]).hexdigest()


def test_weights_are_found_by_name_or_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fast" in manifest.names()
    assert manifest.locate("fast") == manifest.shipped_weights() / "fast"
    assert manifest.locate(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert manifest.locate("~/mine") == tmp_path / "mine"


@pytest.mark.parametrize("name", manifest.names())
def test_what_is_shipped_is_whole_and_says_what_it_is(name: str) -> None:
    folder = manifest.locate(name)
    loaded = manifest.load(folder)
    assert loaded.name == name
    assert {loaded.onnx, loaded.safetensors} <= set(loaded.sha256)
    assert loaded.tile % loaded.align == 0
    assert loaded.tile > 2 * loaded.halo
    assert loaded.dose_range[0] < loaded.dose_range[1]
    assert loaded.training
