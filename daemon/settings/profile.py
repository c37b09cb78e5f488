"""Dose profiles in the settings: what you state about a kind of micrograph, and the rules that match one."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import inf, isfinite
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from daemon.errors import ConfigError
from daemon.settings import camera_file
from daemon.settings.folders import to_path
from daemon.settings.names import folded
from daemon.settings.yaml_file import Group

Word = Annotated[str, Field(min_length=1)]


class Match(Group):
    """When a profile applies: every rule that is stated must hold. Case and composition of letters do not matter."""

    folder: Word | None = None
    """Pattern of a sub-folder of `drop`; it and all below it match. null: any."""
    name: Word | None = None
    """Pattern of the file's name. null: any."""
    measured: bool = False
    """Whether the measured mean counts per pixel must lie in the profile's `dose`."""

    @property
    def states_a_rule(self) -> bool:
        """False for a profile that is only ever chosen by name or as the default."""
        return self.folder is not None or self.name is not None or self.measured

    def path_fits(self, relative: PurePath) -> bool:
        """Whether the rules on folder and name, if any, hold for a file's path relative to `drop`."""
        folders = [folded(folder.as_posix()) for folder in relative.parents if folder.name]
        wanted = None if self.folder is None else folded(self.folder.strip("/"))
        return (wanted is None or any(fnmatchcase(folder, wanted) for folder in folders)) and (
            self.name is None or fnmatchcase(folded(relative.name), folded(self.name))
        )


class Profile(Group):
    """How micrographs of one kind are taken: their dose, the weights for them, and the camera's scale."""

    name: Word
    """The profile's name, from its heading in the file."""
    dose: tuple[float, float] | None = None
    """Lowest and highest mean counts per pixel it is meant for; null: any."""
    weights: Word = "fast"
    """Name of weights that came with the program, or (with a slash in it) the path of a folder of weights."""
    passes: Literal[1, 8] = 1
    """8: the result is the average over the eight orientations of the image, at eight times the network's time."""
    gain: float | Literal["auto"] = 1.0
    """The file's units per detected count; auto: it and the offset are measured from the image's own noise."""
    offset: float = 0.0
    """The file's value where no electron hit; not used with gain: auto."""
    camera: Word | None = None
    """Name of a calibrated camera, of cameras/NAME.yaml beside the settings, or its file's full path; null: none."""
    frames: Literal["sum", "each"] | None = None
    """How a stack is processed: one sum, or each frame a micrograph; null: by `arrival.sections`, file and name."""
    match: Match = Match()
    """When this profile is chosen; without a rule, only by name or as the default."""

    @field_validator("dose", mode="before")
    @classmethod
    def _range(cls, dose: object) -> object:
        if dose is None:
            return None
        low, high = map(_number, dose) if isinstance(dose, (list, tuple)) and len(dose) == 2 else (None, None)
        if low is None or high is None:
            raise ValueError("must be two numbers, lowest and highest, such as [0.5, 100], or null")
        if not 0 <= low < high:
            raise ValueError("the lowest must be 0 or more, and less than the highest, such as [0.5, 100]")
        return low, high

    @field_validator("gain", mode="before")
    @classmethod
    def _positive(cls, gain: object) -> object:
        if gain == "auto":
            return gain
        number = _number(gain)
        if number is None or number <= 0:
            raise ValueError("must be a number greater than 0, or auto")
        return number

    @field_validator("camera", mode="after")
    @classmethod
    def _found(cls, camera: str | None, info: ValidationInfo) -> str | None:
        if camera is None:
            return None
        is_path = "/" in camera or camera.startswith(("~", "$"))
        path = to_path(camera if is_path else f"cameras/{camera}.yaml", info)
        try:
            camera_file.load(path)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return str(path)

    @field_validator("weights", mode="after")
    @classmethod
    def _located(cls, weights: str, info: ValidationInfo) -> str:
        is_path = "/" in weights or weights.startswith(("~", "$"))
        return str(to_path(weights, info)) if is_path else weights

    @model_validator(mode="after")
    def _one_scale(self) -> "Profile":
        if self.camera is not None and (self.gain != 1.0 or self.offset != 0.0):
            raise ValueError(
                "`camera` states the gain and the offset; remove the lines `gain` and `offset`, or the line `camera`"
            )
        return self

    @model_validator(mode="after")
    def _measurable(self) -> "Profile":
        if self.match.measured and self.dose is None:
            raise ValueError(
                "match.measured is true but there is no `dose` to compare with; add one, such as "
                "[0.5, 100], or set measured to false"
            )
        if self.match.measured and self.frames is not None:
            raise ValueError(
                "match.measured is true, so the profile is known only once the frames are read; leave `frames` null "
                "here, and state it in a profile with a folder or a name"
            )
        return self

    def influences(self) -> dict[str, Any]:
        """The settings that influence pixels, as plain JSON types; a camera by its file's content, not its path."""
        values = self.model_dump(mode="json")
        if values.pop("camera") is not None and self.camera is not None:
            values["camera"] = camera_file.load(Path(self.camera)).model_dump(mode="json")
        return values


def _number(value: object) -> float | None:
    """A finite number as a float; None for anything else, booleans included."""
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else inf
    except OverflowError:
        return None
    return number if isfinite(number) else None


def _named(profiles: object) -> object:
    """Copy each profile's name, its heading in the file, into the profile."""
    if not isinstance(profiles, Mapping):
        return profiles
    for name, value in profiles.items():
        if isinstance(value, Mapping) and value.get("name", name) != name:
            raise ValueError(f"`{name}` has a key `name` that differs from it; remove the key: the heading is the name")
    return {name: {**value, "name": name} if isinstance(value, Mapping) else value for name, value in profiles.items()}


Profiles = Annotated[Mapping[str, Profile], BeforeValidator(_named)]
SHIPPED = {
    "low": Profile(name="low", dose=(0.5, 100.0), match=Match(folder="low")),
    "ordinary": Profile(name="ordinary", dose=(100.0, 3000.0), match=Match(folder="ordinary")),
    "auto": Profile(name="auto", gain="auto"),
}
