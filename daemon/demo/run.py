"""`emdenoised demo`: a simulated camera writes, the real daemon denoises, and every result is compared with its truth.

PSNR here is 10 log10(peak² / mean squared error) against the camera's noiseless truth, with peak = the truth's
brightest pixel. Two filters are compared: a Gaussian of a usual width, and the one whose width is chosen for every
micrograph *with* knowledge of the truth. Both get images without the X-ray hits, an advantage no real filter has.
"""

import json
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, TextIO

import mrcfile
import numpy as np
import tifffile
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from daemon.demo import browser
from daemon.demo.camera import SESSION, Exposure
from daemon.demo.specimen import PIXEL_NM
from daemon.errors import UsageError
from daemon.micrograph import Image
from daemon.output.record import Record, own_record
from daemon.verdict.psnr import psnr_of_error

DAEMON = ("-m", "emdenoised", "run", "--config")
"""Python's arguments that start the daemon, before the path of its settings."""

_SIGNATURE = "# Written by `emdenoised demo`; the demo deletes and rewrites this folder.\n"
_FOLDERS = ("drop", "denoised", "state", "truth")
_WIDTHS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0, 16.0)
_STOP_SECONDS = 15.0
USUAL_SIGMA = 2.0
"""Pixels."""


@dataclass(frozen=True, slots=True)
class Score:
    """One micrograph's result. PSNR in dB; `seconds` from the file's last byte to the finished image."""

    exposure: Exposure
    seconds: float
    raw: float
    usual: float
    """After a Gaussian filter of 2 px, a usual choice."""
    best: float
    """After the best Gaussian filter, chosen with knowledge of the truth."""
    denoised: float


def psnr(image: Image, truth: Image) -> float:
    """Peak signal-to-noise ratio of `image` (H, W) in dB; the peak is the truth's brightest pixel."""
    return psnr_of_error(float(truth.max()), float(np.mean((image.astype(np.float64) - truth) ** 2)))


def gaussian(image: Image, sigma: float) -> Image:
    """`image` (H, W) float32 smoothed by a Gaussian of standard deviation `sigma` px, edges mirrored."""
    reach = min(ceil(3.5 * sigma), min(image.shape) - 1)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    for _ in range(2):  # columns, then rows
        padded = np.pad(image, ((reach, reach), (0, 0)), mode="reflect")
        smooth = np.zeros_like(image)
        for start, tap in enumerate(taps):
            smooth += np.float32(tap) * padded[start : start + len(image)]
        image = np.ascontiguousarray(smooth.T)
    return image


def best_gaussian(image: Image, truth: Image) -> tuple[float, float]:
    """(PSNR in dB, sigma in px) of the best Gaussian filter; wider ones are tried until the PSNR falls."""
    best = (psnr(image, truth), 0.0)
    for sigma in _WIDTHS:
        tried = (psnr(gaussian(image, sigma), truth), sigma)
        if tried < best:
            break
        best = tried
    return best


def table(scores: Sequence[Score], width: int = 100) -> str:
    """The scores as plain text, PSNR in dB, no wider than `width` columns (or 70, if that is more)."""
    columns = " size  counts  contrast      s    raw  2 px   best  denoised"
    name = max(10, min(width - len(columns), max((len(one.exposure.file) for one in scores), default=10)))
    lines = [f"{'micrograph':<{name}}" + columns, "─" * (name + len(columns))]
    for one in scores:
        shot = one.exposure
        file = shot.file if len(shot.file) <= name else "…" + shot.file[1 - name :]
        lines.append(
            f"{file:<{name}}{shot.side:>5}{shot.dose:>8g}{shot.contrast:>10.0%}{one.seconds:>7.1f}"
            f"{one.raw:>7.1f}{one.usual:>6.1f}{one.best:>7.1f}{one.denoised:>10.1f}"
        )
    return "\n".join(lines)


def picture(rows: Sequence[tuple[str, Image, Image, Image]], path: Path, side: int = 480) -> None:
    """A PNG of (label, raw, denoised, truth) rows, cut-outs of `side` px at 1:1, the same contrast along each row."""
    gap, head, label_height = 24, 64, 38
    fonts = {size: ImageFont.load_default(size) for size in (15, 19)}
    canvas = Pillow.new("L", (3 * side + 4 * gap, head + len(rows) * (side + label_height) + gap // 2), 18)
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(("as recorded", "denoised", "truth (known to the simulator only)")):
        draw.text((gap + column * (side + gap), 24), title, fill=235, font=fonts[19])
    for row, (label, *images) in enumerate(rows):
        top = head + row * (side + label_height)
        here = _most_structured(images[2], side)
        low, high = np.percentile(images[2][here], (0.3, 99.7))
        low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
        for column, image in enumerate(images):
            shown = np.clip((image[here] - low) / max(high - low, 1e-9), 0, 1)
            canvas.paste(Pillow.fromarray((255 * shown).astype(np.uint8)), (gap + column * (side + gap), top))
        draw.text((gap, top + side + 6), label, fill=185, font=fonts[15])
        nanometres = 4
        right = 3 * (side + gap) - 14
        bar = (right - round(nanometres / PIXEL_NM), top + side - 20, right, top + side - 14)
        draw.rectangle((bar[0] - 8, bar[1] - 24, bar[2] + 8, bar[3] + 6), fill=18)
        draw.rectangle(bar, fill=245)
        draw.text(((bar[0] + right) // 2, bar[1] - 3), f"{nanometres} nm", fill=245, font=fonts[15], anchor="ms")
    canvas.save(path)


def _most_structured(truth: Image, side: int) -> tuple[slice, slice]:
    """The cut-out of at most `side` px a side with the most structure."""
    places = [
        (slice(y, y + side), slice(x, x + side))
        for y in range(0, max(1, truth.shape[0] - side + 1), 64)
        for x in range(0, max(1, truth.shape[1] - side + 1), 64)
    ]
    return max(places, key=lambda place: float(truth[place].std()))


def read(path: Path) -> Any:
    """Pixels (H, W) of a TIFF or MRC, read without the daemon's reader, so that the check is independent."""
    if path.suffix == ".mrc":
        with mrcfile.open(path) as mrc:
            return np.array(mrc.data)
    return tifffile.imread(path)


def prepare(out: Path) -> Path:
    """Make an empty demo folder with its settings file and return that file.

    A folder that an earlier demo made is emptied first. Raises UsageError if it holds anything else.
    """
    config = out / "config.yaml"
    if out.is_dir() and any(out.iterdir()):
        if not (config.is_file() and config.read_text(encoding="utf-8").startswith(_SIGNATURE)):
            raise UsageError(f"{out}: is not empty and was not made by the demo; name a new folder for the demo")
        for name in _FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
    for name in _FOLDERS:
        (out / name).mkdir(parents=True, exist_ok=True)
    keys = {"drop": "drop", "output": "denoised", "state": "state"}
    # A JSON string is a YAML string too, whatever characters the path holds.
    lines = [f"  {key}: {json.dumps(str((out / name).resolve()), ensure_ascii=False)}\n" for key, name in keys.items()]
    # Always on the processor: the figures must not depend on whether an engine was built for a GPU.
    text = _SIGNATURE + "folders:\n" + "".join(lines) + "backend:\n  kind: cpu\nmonitor:\n  listen: 127.0.0.1:0\n"
    config.write_text(text, encoding="utf-8")
    return config


def run(out: Path = Path("demo-output"), timeout: float = 170.0, pace: float = 1.0, count: int = len(SESSION)) -> int:
    """Run camera and daemon on `count` simulated micrographs and report the scores; all files are below `out`.

    Ends within `timeout` seconds; at a terminal the live page then stays for a minute or until a key. Returns 0 if
    every micrograph came out better than it went in and the daemon stopped cleanly, else 1. Raises UsageError if `out`
    holds something that is not a demo's.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace", line_buffering=True)  # a plain ASCII terminal must not end the demo
    return _Demo(out, prepare(out), SESSION[:count]).run(timeout, pace)


class _Demo:
    """One demonstration: two child processes, two threads that note their events, one loop that reports them."""

    def __init__(self, out: Path, config: Path, session: Sequence[Exposure]) -> None:
        self._out = out
        self._config = config
        self._session = session
        self._started = time.monotonic()
        self._events: queue.Queue[tuple[float, dict[str, Any]]] = queue.Queue()
        self._stop = threading.Event()
        self._complete: dict[str, tuple[float, dict[str, Any]]] = {}
        self._scores: dict[str, Score] = {}
        self._waiting = [exposure.file for exposure in session]
        self._problems: list[str] = []
        self._backend = ""
        self._log = out / "daemon.log"
        self._page: str | None = None

    def run(self, timeout: float, pace: float) -> int:
        deadline = self._started + timeout - _STOP_SECONDS - 5  # for the picture
        drop = self._out / "drop"
        print(f"emdenoised demo: a simulated camera writes {len(self._session)} micrographs into {drop};\n"
              "the daemon watches the folder and denoises each one as soon as it is complete.\n")  # fmt: skip
        with ExitStack() as stack:
            errors = stack.enter_context(self._log.open("w", encoding="utf-8"))
            daemon = self._spawn(stack, [*DAEMON, str(self._config)], stdout=errors, stderr=errors)
            command = ["-m", "daemon.demo.camera", str(drop), "--truth", str(self._out / "truth")]
            command += ["--pace", str(pace), "--count", str(len(self._session))]
            camera = self._spawn(stack, command, stdout=subprocess.PIPE)
            stack.callback(self._stop.set)
            threading.Thread(target=self._follow_camera, args=(camera,), daemon=True).start()
            threading.Thread(target=self._follow_results, daemon=True).start()
            self._report(daemon, camera, deadline)
            self._sum_up()
            if not self._problems and self._page is not None:
                browser.keep(self._page)
            self._end(daemon)
        self._complain(self._log)
        return 1 if self._problems else 0

    @staticmethod
    def _spawn(
        stack: ExitStack, command: list[str], stdout: TextIO | int, stderr: TextIO | None = None
    ) -> subprocess.Popen[str]:
        """Python as a child process that ends with the demo."""
        command = [sys.executable, *command]
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, text=True, encoding="utf-8")
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    def _follow_camera(self, camera: subprocess.Popen[str]) -> None:
        assert camera.stdout is not None
        with camera.stdout:
            for line in camera.stdout:
                self._events.put((time.monotonic(), json.loads(line)))

    def _follow_results(self) -> None:
        """Images are written atomically, so one that exists is finished."""
        pending = list(self._waiting)
        while not self._stop.wait(0.1):
            for file in [file for file in pending if (self._out / "denoised" / file).is_file()]:
                self._events.put((time.monotonic(), {"event": "denoised", "file": file}))
                pending.remove(file)

    def _report(self, daemon: subprocess.Popen[str], camera: subprocess.Popen[str], deadline: float) -> None:
        while self._waiting:
            if self._page is None and (page := browser.address(self._log)) is not None:
                self._page = page
                browser.show(page)
            try:
                stamp, event = self._events.get(timeout=0.2)
            except queue.Empty:
                if daemon.poll() is not None:
                    self._problems.append(f"the daemon ended unexpectedly with exit code {daemon.returncode}")
                elif camera.poll():
                    self._problems.append(f"the camera failed with exit code {camera.returncode}")
                elif time.monotonic() > deadline:
                    self._problems.append("time is up")
                else:
                    continue
                self._problems.append(f"never came out: {', '.join(self._waiting)}")
                return
            file = str(event["file"])
            if event["event"] == "started":
                self._print(stamp, "arriving", f"{file}  {event['side']}²  {event['dose']:g} counts/px  "
                                               f"contrast {event['contrast']:.0%}  {event['manner']}")  # fmt: skip
            elif event["event"] == "complete":
                self._complete[file] = (stamp, event)
                self._print(stamp, "complete", f"{file}  {event['bytes'] / 1e6:.1f} MB")
            else:
                self._waiting.remove(file)
                self._judge(stamp, file)

    def _print(self, stamp: float, word: str, rest: str) -> None:
        print(f"{stamp - self._started:6.1f} s  {word:<9} {rest}")

    def _judge(self, stamp: float, file: str) -> None:
        """Compare a finished image with its truth; each fault becomes a problem."""
        if file not in self._complete:
            self._problems.append(f"{file}: was read before it was complete")
            self._print(stamp, "TOO EARLY", file)
            return
        last_byte, event = self._complete[file]
        exposure = next(e for e in self._session if e.file == file)
        truth = np.load(event["truth"])
        raw = self._raw(file, truth)
        try:
            denoised = read(self._out / "denoised" / file)
        except (OSError, ValueError, tifffile.TiffFileError) as error:
            self._problems.append(f"{file}: the result cannot be read ({error})")
            return
        if denoised.shape != truth.shape or denoised.dtype != np.float32 or not np.isfinite(denoised).all():
            self._problems.append(f"{file}: the result is {denoised.shape} {denoised.dtype}, not a finite float32 "
                                  f"image of {truth.shape}")  # fmt: skip
            return
        filtered = psnr(gaussian(raw, USUAL_SIGMA), truth), best_gaussian(raw, truth)[0]
        score = Score(exposure, stamp - last_byte, psnr(raw, truth), *filtered, psnr(denoised, truth))
        self._scores[file] = score
        if score.denoised <= score.raw:
            self._problems.append(f"{file}: is worse than the raw image ({score.raw:.2f} → {score.denoised:.2f} dB)")
        record = self._record(file)
        verdict = (record.verdict and record.verdict.word) or "no verdict"
        dose = "" if record.dose is None else f"  {record.dose:.1f} counts/px"
        self._print(stamp, "denoised", f"{file}{dose}  {verdict}  in {score.seconds:.1f} s  "
                    f"PSNR {score.raw:.1f} → {score.denoised:.1f} dB "
                    f"(Gaussian 2 px {score.usual:.1f}, best {score.best:.1f})")  # fmt: skip

    def _record(self, file: str) -> Record:
        image = self._out / "denoised" / file
        record = own_record(image)
        if record is None:
            self._problems.append(f"{image}: there is no record beside it, or it is damaged")
            return Record()
        self._backend = record.backend or self._backend
        return record

    def _raw(self, file: str, truth: Image) -> Image:
        """The camera's counts as float32, without the X-ray hits."""
        raw: Image = read(self._out / "drop" / file).astype(np.float32)
        for row, column in self._complete[file][1]["hits"]:
            raw[row, column] = truth[row, column]
        return raw

    def _end(self, daemon: subprocess.Popen[str]) -> None:
        if daemon.poll() is None:
            daemon.terminate()
            try:
                if daemon.wait(_STOP_SECONDS) != 0:
                    self._problems.append(f"the daemon stopped with exit code {daemon.returncode} instead of 0")
            except subprocess.TimeoutExpired:
                self._problems.append(f"the daemon did not stop within {_STOP_SECONDS:g} s of SIGTERM")

    def _sum_up(self) -> None:
        scores = [self._scores[e.file] for e in self._session if e.file in self._scores]
        if scores:
            print("\n" + table(scores, shutil.get_terminal_size((100, 24)).columns))
            print("s = seconds from the file's last byte to the result. PSNR in dB against the truth, which only the\n"
                  "simulator knows; peak = its brightest pixel. 2 px, best: Gaussian filters, of a usual width, and\n"
                  "of the best for each image, chosen with knowledge of the truth (at 5 % contrast a blur over 20\n"
                  "pixels and more). The network has never seen this simulator.")  # fmt: skip
            self._picture(scores)
        if self._backend:
            print(f"backend: {self._backend}")
        print(f"\nAll files are in {self._out.resolve()}:\n"
              f"  before-after.png  raw, denoised and truth side by side\n"
              f"  drop/ → denoised/  the camera's files, and the results, each with a preview and a .json\n"
              f"  truth/ state/ daemon.log config.yaml")  # fmt: skip
        program = sys.argv[0] if Path(sys.argv[0]).name == "emdenoised" else "emdenoised"
        print(f"To look at them:\n"
              f"  {program} run --config {self._config}   and open the address of the live page that it logs\n"
              f"  {program} report last --config {self._config} -o session.html   a page for the lab book")  # fmt: skip

    def _complain(self, log: Path) -> None:
        for problem in self._problems:
            print(f"PROBLEM: {problem}")
        if self._problems:
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            print(f"The end of the daemon's log ({log}):", *(tail or ["(empty)"]), sep="\n  ")

    def _picture(self, scores: Sequence[Score]) -> None:
        """One row for each contrast at the lowest dose."""
        lowest = min(one.exposure.dose for one in scores)
        chosen = {one.exposure.contrast: one for one in reversed(scores) if one.exposure.dose == lowest}
        rows = []
        for contrast, one in sorted(chosen.items(), reverse=True):
            file = one.exposure.file
            truth = np.load(self._complete[file][1]["truth"])
            label = (f"{lowest:g} counts per pixel, contrast {contrast:.0%}: PSNR {one.raw:.1f} dB as recorded, "
                     f"{one.denoised:.1f} dB denoised "
                     f"(Gaussian of 2 px {one.usual:.1f} dB, the best {one.best:.1f} dB)")  # fmt: skip
            rows.append((label, self._raw(file, truth), read(self._out / "denoised" / file), truth))
        picture(rows, self._out / "before-after.png")
