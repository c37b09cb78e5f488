"""The simulated camera: its images are what they claim, and its files come into being the way they claim."""

import json
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile

from daemon.demo import camera, specimen


@pytest.mark.parametrize("seed", range(4))
def test_scene_is_normalised_band_limited_and_not_flat(seed: int) -> None:
    scene = specimen.scene(np.random.default_rng(seed), 256)
    assert scene.shape == (256, 256)
    assert scene.dtype == np.float32
    assert (scene.min(), scene.max()) == (0.0, 1.0)
    assert scene.std() > 0.05

    window = np.hanning(256)
    power = np.abs(np.fft.rfft2((scene - scene.mean()) * np.outer(window, window))) ** 2
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None, :])
    assert power[frequency > 0.42].sum() < 1e-4 * power.sum()


def test_scene_shows_lattice_rows_of_gold() -> None:
    scene = specimen.scene(np.random.default_rng(5), 512)
    window = np.hanning(512)
    power = np.abs(np.fft.rfft2((scene - scene.mean()) * np.outer(window, window))) ** 2
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None, :])
    row = specimen.PIXEL_NM / 0.2355
    ring = power[np.abs(frequency - row) < 0.004]
    assert ring.max() > 20 * np.median(ring), "no crystal stands out"


def test_scenes_depend_on_the_seed_alone() -> None:
    first, again, other = (specimen.scene(np.random.default_rng(seed), 128) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("dose", [0.5, 20, 200])
@pytest.mark.parametrize("contrast", [0.02, 0.2, 1.0])
def test_exposure_has_the_stated_dose_contrast_and_poisson_noise(dose: float, contrast: float) -> None:
    rng = np.random.default_rng(3)
    scene = specimen.scene(rng, 256)
    counts, expected = specimen.expose(scene, dose, contrast, rng)
    assert counts.dtype == np.uint16
    assert expected.dtype == np.float32
    assert expected.mean(dtype=np.float64) == pytest.approx(dose, rel=1e-5)
    assert expected.min() == pytest.approx(dose * (1 - contrast), abs=1e-4 * dose)
    assert counts.mean() == pytest.approx(dose, abs=5 * np.sqrt(dose) / 256)
    chi2 = (counts - expected.astype(np.float64)) ** 2 / np.maximum(expected, 1e-3)
    assert chi2[expected > 0.01 * dose].mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("dose", "contrast"), [(0, 0.5), (-1, 0.5), (20, 0), (20, 1.1)])
def test_exposure_refuses_what_cannot_be(dose: float, contrast: float) -> None:
    with pytest.raises(ValueError, match="dose must be positive"):
        specimen.expose(np.ones((4, 4), np.float32), dose, contrast, np.random.default_rng(0))


def test_files_carry_counts_and_pixel_size(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(20, (40, 56)).astype(np.uint16)
    for kind in (".tif", ".mrc"):
        (tmp_path / f"image{kind}").write_bytes(camera.encode(counts, kind))
    with tifffile.TiffFile(tmp_path / "image.tif") as tif:
        assert np.array_equal(tif.asarray(), counts)
        assert tif.imagej_metadata is not None
        assert tif.imagej_metadata["unit"] == "nm"
        numerator, denominator = tif.pages.first.tags["XResolution"].value
        assert denominator / numerator == pytest.approx(specimen.PIXEL_NM)
    assert mrcfile.validate(tmp_path / "image.mrc")
    with mrcfile.open(tmp_path / "image.mrc") as mrc:
        assert np.array_equal(mrc.data, counts)
        assert float(mrc.voxel_size.x) == pytest.approx(10 * specimen.PIXEL_NM)


def watch(manner: str, path: Path, data: bytes) -> list[bytes | None]:
    """What lies under the final name at every pause; None where there is no file."""
    seen: list[bytes | None] = []
    camera.MANNERS[manner](path, data, lambda seconds: seen.append(path.read_bytes() if path.exists() else None))
    return seen


@pytest.mark.parametrize("manner", camera.MANNERS)
@pytest.mark.parametrize("length", [1, 7, 100_003])
def test_every_manner_ends_with_the_whole_file_and_nothing_else(manner: str, length: int, tmp_path: Path) -> None:
    data = np.random.default_rng(length).bytes(length)
    watch(manner, tmp_path / "image.mrc", data)
    assert (tmp_path / "image.mrc").read_bytes() == data
    assert list(tmp_path.iterdir()) == [tmp_path / "image.mrc"]


def test_every_manner_shows_its_own_kind_of_unfinished_file(tmp_path: Path) -> None:
    data = b"x" * 10_000
    for manner in ("in pieces", "reopened"):
        lengths = [len(seen or b"") for seen in watch(manner, tmp_path / manner, data)]
        assert lengths == sorted(set(lengths)), "grows"
        assert 0 < lengths[0] < len(data)
    preallocated = watch("preallocated", tmp_path / "preallocated", data)
    assert {len(seen or b"") for seen in preallocated} == {len(data)}
    assert preallocated[1] == b"x" * 5_000 + b"\0" * 5_000
    assert set(watch("renamed", tmp_path / "renamed", data)) == {None}


def test_session_covers_what_the_demo_promises() -> None:
    session = camera.SESSION
    assert len({exposure.file for exposure in session}) == len(session)
    assert {exposure.manner for exposure in session} == set(camera.MANNERS)
    assert {Path(exposure.file).suffix for exposure in session} == {".tif", ".mrc"}
    assert {exposure.side for exposure in session} >= {512, 2048}
    assert {exposure.dose for exposure in session} == {20, 200}
    assert {exposure.contrast for exposure in session} == {0.05, 0.2, 1.0}


def test_shooting_writes_micrographs_and_their_truth(tmp_path: Path) -> None:
    session = (
        camera.Exposure("a/image.tif", 96, 20, 0.2, "preallocated"),
        camera.Exposure("b/image.mrc", 128, 200, 1.0, "reopened", hits=3),
    )
    drop, truth = tmp_path / "drop", tmp_path / "truth"
    rests: list[float] = []
    events = list(camera.shoot(drop, truth, 7, session, rests.append))
    assert [(event["event"], event["file"]) for event in events] == [
        (what, file) for file in ("a/image.tif", "b/image.mrc") for what in ("started", "complete")
    ]
    assert json.loads(json.dumps(events)) == events
    assert sum(rests) > 5, "a real session rests longer than a daemon's settling time"
    counts = mrcfile.read(drop / "b/image.mrc")
    expected = np.load(events[-1]["truth"])
    assert counts.shape == expected.shape == (128, 128)
    hits = tuple(np.array(events[-1]["hits"]).T)
    assert (counts[hits] == 30_000).all()
    assert expected.max() < 10_000


def test_command_line_writes_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "drop"), "--truth", str(tmp_path / "truth"), "--pace", "0", "--count", "2"]
    assert camera.main(arguments) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["started", "complete"] * 2
    for event in events[1::2]:
        assert (tmp_path / "drop" / event["file"]).stat().st_size == event["bytes"]
        assert np.load(event["truth"]).shape == (512, 512)


def test_truth_inside_the_drop_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        camera.main([str(tmp_path), "--truth", str(tmp_path / "truth")])
    assert "inside the drop folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
