"""Weights folders: what is wrong with one is said before a network is loaded, with the file, the cause, the remedy."""

import hashlib
import json
from collections.abc import Iterator
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
    with pytest.raises(WeightsError, match=r"manifest\.json: cannot be read.*or one of: .*fast"):
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
    assert "fast-3" in manifest.names()
    assert manifest.locate("fast-3") == manifest.shipped_weights() / "fast-3"
    assert manifest.locate(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert manifest.locate("~/mine") == tmp_path / "mine"


@pytest.mark.parametrize("name", manifest.names())
def test_what_is_shipped_is_whole_and_says_what_it_is(name: str) -> None:
    folder = manifest.locate(name)
    loaded = manifest.load(folder)
    assert loaded.name == name
    assert {loaded.onnx, loaded.safetensors} - {None} == set(loaded.sha256)
    assert loaded.tile % loaded.align == 0
    assert loaded.tile > 2 * loaded.halo
    assert loaded.dose_range[0] < loaded.dose_range[1]
    assert loaded.training


@pytest.fixture
def shelf(tmp_path: Path, about: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Shipped weights of a test's own: one-1 and one-2, and `one` for the first."""
    for name in ("one-1", "one-2"):
        (tmp_path / name).mkdir()
        folder_of(tmp_path / name, {**about, "name": name})
    (tmp_path / manifest.ALIASES).write_text("# as it is shipped\none: one-1\n")
    monkeypatch.setattr(manifest, "shipped_weights", lambda: tmp_path)
    manifest.aliases.cache_clear()
    yield tmp_path
    manifest.aliases.cache_clear()


def test_an_alias_stands_for_shipped_weights_and_a_name_for_itself(shelf: Path) -> None:
    assert [manifest.locate(name) for name in ("one", "one-1", "one-2")] == [
        shelf / name for name in ("one-1", "one-1", "one-2")
    ]
    (shelf / manifest.ALIASES).write_text("one: one-2\n")
    assert manifest.locate("one") == shelf / "one-1", "a running program keeps what it began with"
    manifest.aliases.cache_clear()
    assert manifest.locate("one") == shelf / "one-2"
    assert str(manifest.load(shelf / "one-2")).startswith("one-2 (")
    with pytest.raises(WeightsError, match=r"or one of: one, one-1, one-2"):
        manifest.load(manifest.locate("three"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one: one-3", r"one: one-3: must be a new name for one of one-1, one-2"),
        ("one-1: one-2", r"one-1: one-2: must be a new name"),
        ("one: [one-1]", r"must be a new name"),
        ("one: one-1\none: one-2", r"one: .*twice"),
        ("one: 'one-1", r"not valid YAML.*reinstall"),
        (None, r"there is no such file.*reinstall"),
    ],
)
def test_aliases_that_cannot_be_used_name_file_and_remedy(shelf: Path, text: str | None, said: str) -> None:
    if text is None:
        (shelf / manifest.ALIASES).unlink()
    else:
        (shelf / manifest.ALIASES).write_text(text)
    with pytest.raises(WeightsError, match=rf"(?s)aliases\.yaml.*{said}"):
        manifest.locate("one")
