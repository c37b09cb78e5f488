"""The file of a camera's calibration, `cameras/NAME.yaml`: `emdenoised calibrate` writes it, profiles name it."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from daemon.errors import ConfigError
from daemon.files import write_atomically
from daemon.settings import yaml_file
from daemon.settings.yaml_file import Group

Size = Annotated[tuple[int, int], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
Row = Annotated[tuple[float, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
Rows = Annotated[tuple[Row, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
Places = Annotated[tuple[Size, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
Numbers = Annotated[tuple[int, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]


class Defects(Group):
    """Pixels, rows and columns that are not like the others."""

    hot: int = Field(default=0, ge=0)
    """Pixels that are bright without light, or far too sensitive."""
    dead: int = Field(default=0, ge=0)
    """Pixels that see less than half of the light."""
    places: Places = ()
    """[row, column] of these, from 0, the first thousand."""
    rows: Numbers = ()
    """Rows that deviate as a whole, from 0."""
    columns: Numbers = ()
    """Columns that deviate as a whole, from 0."""


class Camera(Group):
    """A camera as measured on flat fields and darks: ``pixel = offset + gain (smeared Poisson counts + read-out)``."""

    made: str
    """When it was calibrated, and by which version."""
    size: Size
    """Height and width of its frames, pixels."""
    detector: str | None = None
    """In the files' words; null: they do not say."""
    voltage_kv: float | None = None
    """Of the microscope, kV; null: the files do not say."""
    gain: float = Field(gt=0)
    """Units of pixel value per detected count, at frequency zero."""
    gain_error: float = Field(ge=0)
    """Its relative standard error."""
    offset: float
    """Pixel value at zero counts."""
    readout: float = Field(ge=0)
    """Read-out noise, counts rms."""
    psf: float = Field(ge=0, le=10)
    """Standard deviation of the Gaussian over which a count is smeared, pixels; 0: none seen."""
    psf_error: float = Field(ge=0)
    """Its standard error, pixels."""
    linear_to: float | None = None
    """Pixel value up to which variance grows in proportion to the mean; null: none of the flats was beyond it."""
    fixed_pattern: float | None = None
    """Rms of what differs from pixel to pixel in every flat, as a share of the light; null: too few frames to tell."""
    defects: Defects = Defects()
    """Pixels, rows and columns that are not like the others; places count from 0."""
    curve: Rows = ()
    """Photon transfer: [mean, variance, frames], units and units²; the darks first."""
    spectrum: Rows = ()
    """Noise at the brightest level: [cycles per pixel, power, as fitted], as shares of the power of white noise."""


def save(path: Path, camera: Camera) -> None:
    """Write the file atomically, each value with its description. Raises OSError."""
    lines = [
        "# A camera, calibrated by `emdenoised calibrate`. A profile of config.yaml names it: `camera: NAME`.",
        "# pixel = offset + gain x (counts, each smeared by a Gaussian of psf pixels, + read-out noise)",
    ]
    for name, value in camera.model_dump(mode="json").items():
        flow = None if isinstance(value, list | dict) else False
        lines += ["", f"# {Camera.model_fields[name].description}"]
        lines.append(yaml.safe_dump({name: value}, default_flow_style=flow, allow_unicode=True, width=110).rstrip())
    text = "\n".join(lines) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode("utf-8")))


def load(path: Path) -> Camera:
    """Read such a file. Raises ConfigError with the remedy if it is missing, damaged or edited and wrong."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(
            f"{path}: this camera's calibration cannot be read ({error.strerror}); make it with `emdenoised "
            f"calibrate FLATS --dark DARKS -o {path}`, or correct `camera` in the profile"
        ) from error
    return _load(path, changed)


@lru_cache(maxsize=32)
def _load(path: Path, changed: int) -> Camera:  # noqa: ARG001 - part of the cache's key
    document = yaml_file.read(path)
    error = None
    try:
        camera = Camera.model_validate(document.values)
        if not document.problems:
            return camera
    except ValidationError as found:
        error = found
    raise ConfigError(
        f"{yaml_file.explain(path, document, Camera, error)}\n{path}: make it again with `emdenoised calibrate`"
    ) from error
