"""The settings of the daemon: one strict model of config.yaml, read once at start and never changed."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from daemon.errors import ConfigError
from daemon.settings import folders, yaml_file
from daemon.settings.folders import AbsolutePath, Folders, expand_home
from daemon.settings.monitor import MonitorConfig
from daemon.settings.profile import SHIPPED, Profiles, Word
from daemon.settings.yaml_file import Group

EX_CONFIG = 78
"""Exit status for settings that cannot be used (sysexits.h); the service manager does not restart on it."""


def _to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Seconds = Annotated[float, Field(gt=0, le=86_400)]
SecondsOrZero = Annotated[float, Field(ge=0, le=86_400)]
Words = Annotated[tuple[Word, ...], BeforeValidator(_to_tuple)]


class Arrival(Group):
    """When a file counts as complete, and which files count at all."""

    settle_seconds: Seconds = 1.0
    """Seconds a file must stay unchanged before it is read."""
    suspicious_tail_seconds: SecondsOrZero = 30.0
    """Seconds a file whose end is all zeros must stay unchanged; 0 treats it like any other."""
    rescan_seconds: Seconds = 10.0
    """Seconds between full scans of the drop folder, whatever was notified."""
    polling: Literal["auto", "always", "never"] = "auto"
    """Whether to scan often instead of waiting for notifications; auto: on network filesystems only."""
    poll_seconds: Seconds = 1.0
    """Seconds between scans while polling."""
    recursive: bool = True
    """Whether sub-folders are watched too."""
    extensions: Words = Field(
        default=(".tif", ".tiff", ".mrc", ".st", ".dm3", ".dm4", ".ser", ".emd", ".hspy", ".eer"), min_length=1
    )
    """File-name endings that are micrographs, lower case, with their dot; capitals in a file's name do not matter."""
    ignore: Words = ("*.tmp", "*.temp", "*.part", "*.partial", "*.filepart", "*.crdownload", ".*", "~*")
    """Patterns of names of files and sub-folders that are ignored; an empty list ignores none."""
    sections: Words = ("*.st",)
    """Patterns of names of stacks whose sections are micrographs of their own, whatever the file states."""
    frames: Words = ("*movie*", "*frames*", "*fractions*", "*.eer", "movies/*", "*/movies/*")
    """Patterns of names of stacks whose sections are frames of one exposure, unless their file states otherwise."""
    require_sidecar: Literal["epu", "serialem"] | None = None
    """Wait for the file that the acquisition software writes beside each finished exposure; null: do not."""

    @field_validator("extensions", mode="after")
    @classmethod
    def _dotted(cls, extensions: tuple[str, ...]) -> tuple[str, ...]:
        for extension in extensions:
            if not re.fullmatch(r"(\.\w+)+", extension):
                raise ValueError(f"`{extension}` is not a file-name ending; write it with its dot, such as .mrc")
        return tuple(extension.lower() for extension in extensions)


class QueueOrder(Group):
    """Which micrograph is next."""

    backlog_every: int = Field(default=4, ge=1, le=1000)
    """While new micrographs keep coming, one in this many is taken from the backlog; 1: the backlog goes first."""


class Retry(Group):
    """When a micrograph is tried again after a failure that may pass."""

    first_seconds: Seconds = 5.0
    """Seconds before the second attempt."""
    factor: float = Field(default=2.0, ge=1, le=100)
    """Each further wait is this many times longer; 1 keeps it the same."""
    longest_seconds: Seconds = 600.0
    """No wait is longer than this many seconds."""
    attempts: int = Field(default=8, ge=1, le=1000)
    """Attempts before a micrograph is quarantined; 1 never tries again."""

    def pause(self, attempts: int) -> float:
        """Seconds to wait after that many attempts (at least 1)."""
        return min(self.longest_seconds, self.first_seconds * self.factor ** min(attempts - 1, 64))

    @model_validator(mode="after")
    def _grows(self) -> "Retry":
        if self.longest_seconds < self.first_seconds:
            raise ValueError(
                f"longest_seconds ({self.longest_seconds:g}) is shorter than first_seconds "
                f"({self.first_seconds:g}); make it at least as long"
            )
        return self


class ServerConfig(Group):
    """The Triton server of `backend.kind: server`."""

    url: Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$")] | None = None
    """Host and port of its gRPC, such as gpu.example.org:8001; null: there is none."""
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    """Name of the model there; null: the name of the weights, such as fast-3. Profiles with different weights need
    null."""
    ca: AbsolutePath | None = None
    """PEM file of the authority whose certificate the server must have; null: no TLS, unless `cert` is given."""
    cert: AbsolutePath | None = None
    """PEM file of this computer's certificate, for a server that asks for one; null: none."""
    key: AbsolutePath | None = None
    """PEM file of its private key; null: none."""
    timeout_seconds: float = Field(default=60.0, ge=1, le=3600)
    """Seconds after which a request without an answer has failed."""
    in_flight: int = Field(default=4, ge=1, le=64)
    """Requests on their way at once: while one is computed, others travel."""

    @model_validator(mode="after")
    def _pair(self) -> "ServerConfig":
        if (self.cert is None) != (self.key is None):
            raise ValueError("certificate and private key belong together; give both `cert` and `key`, or neither")
        return self


class BackendConfig(Group):
    """What runs the network, and how much of the computer it may take."""

    kind: Literal["auto", "cpu", "tensorrt", "server"] = "auto"
    """auto: TensorRT where there is an NVIDIA card, else the CPU; decided once, at start. A card that does not
    answer is an error. server: a Triton server, never chosen by auto."""
    server: ServerConfig = ServerConfig()
    """Which server, and how to reach it; for `kind: server` only."""
    threads: int | Literal["auto"] = "auto"
    """Processor cores the network may use; auto: all but one, which the microscope's own software keeps; 0: all."""
    tile: int = Field(default=0, ge=0, le=8192)
    """Side of the square tiles a micrograph is cut into, pixels; 0: on a GPU what fits it, else the weights' own."""
    batch: int = Field(default=1, ge=1, le=256)
    """Tiles computed at once; on a GPU at least 4 of the paper's network's small ones."""
    device: int = Field(default=0, ge=0, le=63)
    """Which GPU, as nvidia-smi counts them."""
    gpu_memory: float | None = Field(default=None, ge=0.25, le=1024)
    """GiB of a GPU's memory that micrographs and network may take; null: what the card has."""
    flavour: Literal["auto", "tensorrt", "rtx"] = "auto"
    """Which TensorRT; auto: TensorRT-RTX on the cards it is made for, where it is installed, else TensorRT."""
    rebuild: bool = True
    """Whether an engine that is missing or no longer fits is built at the start; false: that is an error."""
    queue: int = Field(default=2, ge=1, le=64)
    """Micrographs that may wait in memory between reading, network and writing."""
    max_pixels: int = Field(default=150_000_000, ge=1024)
    """Larger micrographs, in pixels, are quarantined instead of filling the memory."""
    decode_seconds: Seconds = 60.0
    """A compressed micrograph that takes the processor longer to decode is quarantined."""

    @property
    def gpu_bytes(self) -> int | None:
        """`gpu_memory` in bytes."""
        return None if self.gpu_memory is None else int(self.gpu_memory * 2**30)

    @field_validator("threads", mode="before")
    @classmethod
    def _cores(cls, threads: object) -> object:
        if threads == "auto" or (type(threads) is int and 0 <= threads <= 1024):
            return threads
        raise ValueError("must be auto (all cores but one), 0 (all) or a number up to 1024")

    @field_validator("tile", mode="after")
    @classmethod
    def _not_tiny(cls, tile: int) -> int:
        if 0 < tile < 64:
            raise ValueError("must be 0 (as the weights recommend) or at least 64")
        return tile

    @model_validator(mode="after")
    def _reachable(self) -> "BackendConfig":
        if self.kind == "server" and self.server.url is None:
            raise ValueError("kind: server needs `server.url`, such as gpu.example.org:8001")
        return self


class OutputConfig(Group):
    """The files that are written for each micrograph."""

    format: Literal["same", "tiff", "mrc"] = "same"
    """File format of the result; same: the micrograph's own."""
    preview: bool = True
    """Whether to write a PNG picture, raw beside denoised."""
    preview_pixels: int = Field(default=1024, ge=64, le=8192)
    """Longest side of each of the preview's two pictures, pixels."""


class Keep(Group):
    """Limits for what would grow without end. Results, their JSON and raw files are never removed."""

    previews_gib: float | None = Field(default=50.0, ge=0, le=1e6)
    """GiB of previews kept, the newest; null: all."""
    ledger_days: float | None = Field(default=365.0, ge=0, le=1e5)
    """Days after which the ledger forgets a micrograph whose raw file is gone; null: never."""
    page_mib: int = Field(default=256, ge=0, le=1_000_000)
    """MiB of the live page's small pictures kept in the state folder, the latest used; 0: none."""


class SpikesConfig(Group):
    """X-ray hits and hot pixels."""

    find: bool = True
    """Whether to find them, fill them in for the network, and list them in the JSON."""


class Log(Group):
    """Level and format of the log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important messages to write; info has one line per micrograph."""
    format: Literal["text", "json"] = "text"
    """text: lines for people; json: one object a line, for programs that collect logs."""


class Config(Group):
    """Everything in config.yaml. The folders must be given; everything else has a default."""

    folders: Folders
    """Where micrographs come from and results go."""
    arrival: Arrival = Arrival()
    order: QueueOrder = QueueOrder()
    retry: Retry = Retry()
    profiles: Profiles = SHIPPED
    """By name, in the order of the file: the first whose rules hold is chosen."""
    default_profile: Word = Field(default="auto", validate_default=True)
    """The profile for micrographs that no rule fits."""
    spikes: SpikesConfig = SpikesConfig()
    output: OutputConfig = OutputConfig()
    keep: Keep = Keep()
    backend: BackendConfig = BackendConfig()
    monitor: MonitorConfig = MonitorConfig()
    log: Log = Log()

    @field_validator("default_profile", mode="after")
    @classmethod
    def _exists(cls, name: str, info: ValidationInfo) -> str:
        profiles = info.data.get("profiles")
        if profiles is not None and name not in profiles:
            raise ValueError(
                f"no profile has this name; use one of: {', '.join(profiles)}"
                if profiles
                else "there are no profiles; remove the line `profiles` for the shipped ones"
            )
        return name

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the settings that influence pixels, for provenance.

        Profiles (with their order, rules and weights' names), spikes and tile. Not the folders, the
        schedule or the file format; the backend that ran and the weights' own hash are recorded beside it.
        """
        influences = {
            "profiles": [profile.influences() for profile in self.profiles.values()],
            "default_profile": self.default_profile,
            "spikes": self.spikes.model_dump(mode="json"),
            "tile": self.backend.tile,
        }
        return hashlib.sha256(json.dumps(influences, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def weights_named(given: str) -> str:
    """Weights of the command line as a profile states them: a name unchanged, a path (with a slash in it) in full."""
    return str(expand_home(Path(given)).absolute()) if "/" in given or given.startswith("~") else given


def with_profiles(config: Config, **changes: Any) -> Config:
    """The same settings with `changes` in every profile."""
    profiles = {name: one.model_copy(update=changes) for name, one in config.profiles.items()}
    return config.model_copy(update={"profiles": profiles})


def default_config_path() -> Path:
    """The config.yaml that came with the program: in the package when installed, else at the repository's top."""
    here = Path(__file__).resolve().parents[1]
    installed = here / "config.yaml"
    return installed if installed.is_file() else here.parent / "config.yaml"


def load(path: Path | None = None, overrides: Mapping[str, Path] | None = None) -> Config:
    """Read and check the settings; None reads the file that came with the program.

    `overrides` (any of "drop", "output", "state") replace folders of the file. Relative paths in the file
    start at the file's folder, overrides at the working folder. Raises ConfigError, one line per problem:
    file, line, key, value, cause, remedy.
    """
    path = (default_config_path() if path is None else expand_home(path)).absolute()
    document = yaml_file.read(path)
    values: dict[str, Any] = dict(document.values)
    if overrides:
        stated = values.get("folders") or {}
        if isinstance(stated, dict):
            values["folders"] = stated | {name: expand_home(folder) for name, folder in overrides.items()}
    error = None
    try:
        config = Config.model_validate(values, context={"base": path.parent})
        if not document.problems:
            return config
    except ValidationError as found:
        error = found
    raise ConfigError(yaml_file.explain(path, document, Config, error)) from error


def prepare_folders(config: Config, create_drop: bool = False) -> None:
    """Create the folders that are missing; see `daemon.settings.folders.prepare`."""
    folders.prepare(config.folders, create_drop)
