"""The demo: what it measures, draws and prints, and that it reports what goes wrong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from daemon.demo import browser, camera, run, specimen
from daemon.errors import UsageError
from daemon.settings.config import load

STAND_IN = """
import json, signal, sys, threading
from pathlib import Path
import numpy as np
from daemon.demo import camera; from daemon.demo import run as demo

mode, folder = sys.argv[1], Path(sys.argv[2]).parent
print("the stand-in is here; the live page is http://127.0.0.1:8/", file=sys.stderr, flush=True)
if mode == "dies":
    sys.exit(3)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
todo = [e.file for e in camera.SESSION]
sizes = {}
while not stop.wait(0.3):
    for file in list(todo):
        raw, result = folder / "drop" / file, folder / "denoised" / file
        if not raw.exists() or sizes.get(file) != raw.stat().st_size:
            sizes[file] = raw.exists() and raw.stat().st_size
            continue
        pixels = demo.read(raw).astype(np.float32)
        pixels = pixels[::-1] * 3 if mode == "spoils" else demo.gaussian(pixels, 2.0)
        result.parent.mkdir(parents=True, exist_ok=True)
        result.with_name(result.name + ".json").write_text(json.dumps(
            {"writer": "emdenoised", "dose": 20.0, "backend": "stand-in", "output": {"name": result.name}}
        ))
        Path(str(result) + ".tmp").write_bytes(camera.encode(pixels, raw.suffix))
        Path(str(result) + ".tmp").replace(result)
        todo.remove(file)
sys.exit(4 if mode == "ends badly" else 0)
"""


def test_psnr_is_ten_log_peak_squared_over_squared_error() -> None:
    truth = np.array([[0, 10], [10, 20]], np.float32)
    assert run.psnr(truth + 2, truth) == pytest.approx(20.0)
    assert run.psnr(truth, truth) == np.inf


def test_gaussian_keeps_the_mean_spreads_a_point_and_takes_any_shape() -> None:
    point = np.zeros((41, 61), np.float32)
    point[20, 30] = 1
    smooth = run.gaussian(point, 3.0)
    assert smooth.shape == point.shape
    assert smooth.dtype == np.float32
    assert smooth.sum() == pytest.approx(1, rel=1e-5)
    y, x = np.indices(point.shape)
    for axis, centre in ((y, 20), (x, 30)):
        assert float((smooth * (axis - centre) ** 2).sum()) == pytest.approx(9.0, rel=0.02)
    assert np.allclose(run.gaussian(np.full((8, 5), 7, np.float32), 16.0), 7, rtol=1e-5)
    assert point.sum() == point[20, 30] == 1, "the input is left alone"


def test_best_gaussian_finds_the_best_of_its_widths() -> None:
    rng = np.random.default_rng(0)
    counts, truth = specimen.expose(specimen.scene(rng, 192), 20, 0.2, rng)
    raw = counts.astype(np.float32)
    best, sigma = run.best_gaussian(raw, truth)
    widths = (0.5, 0.7, 1, 1.4, 2, 2.8, 4, 5.6, 8, 11, 16)
    assert best == max(run.psnr(run.gaussian(raw, width), truth) for width in widths)
    assert best == run.psnr(run.gaussian(raw, sigma), truth) > run.psnr(raw, truth) + 10
    assert run.best_gaussian(truth, truth) == (np.inf, 0.0), "not filtering at all is allowed"


OUTCOMES = [run.Score(exposure, 1.5, 14.0, 28.2, 30.25, 33.5) for exposure in camera.SESSION]


@pytest.mark.parametrize("width", [20, 72, 80, 100, 250])
def test_table_keeps_to_the_width_and_its_columns(width: int) -> None:
    lines = run.table(OUTCOMES, width).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= max(width, 80)
    assert len(lines) == 2 + len(OUTCOMES)
    assert lines[2].split()[-4:] == ["14.0", "28.2", "30.2", "33.5"]


def test_table_of_nothing_has_a_heading() -> None:
    assert run.table([]).startswith("micrograph ")


def test_picture_shows_the_same_place_at_the_same_contrast(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truth = specimen.scene(rng, 300)
    small = truth[:90, :70]
    rows = [("20 counts per pixel", truth + 1, truth, truth), ("a small one", small, small - 9, small)]
    run.picture(rows, tmp_path / "picture.png", side=200)
    drawn = np.asarray(Pillow.open(tmp_path / "picture.png"))
    assert drawn.shape[1] <= 1600
    raw, denoised, shown = (drawn[64:200, 24 + column * 224 : 224 + column * 224] for column in range(3))
    assert np.array_equal(denoised, shown)
    assert shown.std() > 20
    assert raw.mean() > shown.mean() + 50, "brighter in one is brighter in the picture"


def test_default_picture_fits_a_page(tmp_path: Path) -> None:
    image = np.zeros((512, 512), np.float32)
    run.picture([("flat", image, image, image)], tmp_path / "picture.png")
    assert Pillow.open(tmp_path / "picture.png").size[0] <= 1600


def test_folder_is_made_with_a_valid_configuration_and_made_anew(tmp_path: Path) -> None:
    out = tmp_path / 'a "strange" folder: été #1'
    config = load(run.prepare(out))
    assert config.folders.drop == (out / "drop").resolve()
    assert config.folders.output == (out / "denoised").resolve()
    (out / "state" / "old").write_text("from an earlier demo")
    run.prepare(out)
    assert not list((out / "state").iterdir())


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "drop" / "thesis.tif"
    precious.parent.mkdir()
    precious.write_text("three years")
    with pytest.raises(UsageError, match="not made by the demo"):
        run.run(tmp_path)
    assert precious.read_text() == "three years"


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> Path:
    """A daemon that smooths, or misbehaves as `mode` says; returns a folder for the demo."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(run, "DAEMON", (str(script), mode))
    monkeypatch.setenv("PYTHONPATH", str(Path(run.__file__).parents[2]))
    return tmp_path / "out"


def test_demo_shows_arrivals_results_table_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = stand_in(tmp_path, monkeypatch, "works")
    assert run.run(out, timeout=80, pace=0, count=2) == 0
    told = capsys.readouterr().out
    for exposure in camera.SESSION[:2]:
        assert told.count(exposure.file) == 4, "arriving, complete, denoised, table"
    assert "backend: stand-in" in told
    assert str(out.resolve()) in told
    assert Pillow.open(out / "before-after.png").size[0] <= 1600


def test_at_a_terminal_the_daemon_stays_with_its_page_until_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = stand_in(tmp_path, monkeypatch, "works")
    waited: list[float] = []

    def wait(seconds: float) -> None:
        said = capsys.readouterr().out
        assert "before-after.png" in said and "http://127.0.0.1:8/" in said.splitlines()[-2]
        assert 0 < said.index("http://127.0.0.1:8/") < said.index("denoised  "), "the page before the first result"
        log = (out / "daemon.log").read_text()
        assert "the stand-in is here" in log and "stopped" not in log
        waited.append(seconds)

    monkeypatch.setattr(browser, "_watched", lambda: True)
    monkeypatch.setattr(browser, "_has_display", lambda: False)
    monkeypatch.setattr(browser, "_wait_for_key", wait)
    assert run.run(out, timeout=80, pace=0, count=1) == 0
    assert waited == [60.0]


@pytest.mark.parametrize(
    ("mode", "complaint"),
    [
        ("dies", "ended unexpectedly with exit code 3"),
        ("spoils", "is worse than the raw image"),
        ("ends badly", "stopped with exit code 4 instead of 0"),
    ],
)
def test_a_demo_that_fails_gives_the_reason(
    mode: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.run(stand_in(tmp_path, monkeypatch, mode), timeout=80, pace=0, count=1) == 1
    told = capsys.readouterr().out
    assert complaint in told
    assert "the stand-in is here" in told, "the end of the daemon's log"


def test_a_demo_that_runs_out_of_time_names_the_missing_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.run(stand_in(tmp_path, monkeypatch, "works"), timeout=0, pace=0, count=1) == 1
    told = capsys.readouterr().out
    assert "time is up" in told
    assert f"never came out: {camera.SESSION[0].file}" in told
