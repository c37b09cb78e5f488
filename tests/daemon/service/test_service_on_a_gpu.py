"""The whole service on a fake graphics card."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from fake_gpu import plug_in
from site_of_daemon import until

from daemon.backends import manifest
from daemon.backends.gpu import provision
from daemon.service.service import Service
from daemon.settings.config import Config


def fresh(folders: Any, name: str) -> Any:
    """The same folders with a memory of its own."""
    state = folders.state / name
    state.mkdir()
    return folders.model_copy(update={"state": state})


def test_the_whole_service_on_a_gpu_writes_what_it_writes_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., Config], write: Callable[..., Path]
) -> None:
    names = [f"{folder}/{number}.tif" for folder in ("low", "x") for number in range(4)] + ["x/0.r2.tif"]
    images: dict[str, dict[str, Any]] = {}
    for kind in ("cpu", "tensorrt"):
        settings = config(backend={"kind": kind, "queue": 3}, folders={"output": str(config().folders.output) + kind})
        Path(settings.folders.output).mkdir()
        for seed, name in enumerate(names):
            write(settings.folders.drop / name, seed, 20, (256, 256))  # a tile: smaller ones are reflected to fill one
        with monkeypatch.context() as patch:
            drivers = plug_in(patch, seed=5) if kind == "tensorrt" else []
            service = Service(settings.model_copy(update={"folders": fresh(settings.folders, kind)}))
            service.start()
            until(lambda service=service: service.idle or service.failure is not None)  # type: ignore[misc]
            service.stop()
        assert service.failure is None
        assert all(driver.closed for driver in drivers)
        assert service.inference.backend_name.startswith(kind)
        files = {name: name.replace(".r2.", ".r2.s0000.") for name in names}
        images[kind] = {name: tifffile.imread(settings.folders.output / file) for name, file in files.items()}
    for name in names:
        np.testing.assert_allclose(images["tensorrt"][name], images["cpu"][name], atol=2e-3)


def test_the_engines_of_all_networks_are_built_before_the_card_is_opened_for_the_first(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., Config], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(manifest.locate("fast"), other)
    drivers = plug_in(monkeypatch)
    real, built = provision.engine, list[tuple[str, int]]()

    def engine(order: provision.EngineOrder, *rest: Any, **more: Any) -> Any:
        built.append((order.folder.name, len(drivers)))
        return real(order, *rest, **more)

    monkeypatch.setattr(provision, "engine", engine)
    profiles = {"one": {"weights": "fast"}, "two": {"weights": str(other), "match": {"name": "two*"}}}
    service = Service(config(backend={"kind": "tensorrt"}, profiles=profiles, default_profile="one"))
    service.start()
    service.stop()
    assert len(drivers) == 2
    assert {name for name, opened in built if not opened} == {manifest.locate("fast").name, "other"}
    assert service.failure is None
