"""The folders of config.yaml: where their paths start, which are refused, and which are created."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from settings_file import FOLDERS, message

from daemon.errors import ConfigError, TransientError
from daemon.settings import folders
from daemon.settings.config import Config, load, prepare_folders


def test_relative_paths_start_at_the_files_folder_and_names_are_replaced(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SESSION", "grid 7")
    monkeypatch.chdir("/")
    path = write(
        "folders: {drop: '$SESSION/in', output: '${SESSION}/out', state: ~/state}\n"
        "profiles: {auto: {weights: ./mine}, low: {weights: fast}, high: {weights: ~/theirs}}\n"
    )
    for given_path in (path, Path(os.path.relpath(path, "/"))):
        loaded = load(given_path)
        assert loaded.folders.drop == tmp_path / "grid 7/in"
        assert loaded.folders.output == tmp_path / "grid 7/out"
        assert loaded.folders.state == tmp_path / "home/state"
        assert loaded.profiles["auto"].weights == str(tmp_path / "mine")
        assert loaded.profiles["low"].weights == "fast"
        assert loaded.profiles["high"].weights == str(tmp_path / "home/theirs")


@pytest.mark.parametrize(
    ("drop", "expected"),
    [
        ("$NOT_SET_ANYWHERE/in", "the environment variable NOT_SET_ANYWHERE is not set; set it or write the path out"),
        ("${SET_BUT_EMPTY}/in", "the environment variable SET_BUT_EMPTY is not set"),
        ("~nobody-of-this-name/in", "the home folder of `~nobody-of-this-name` is not known here"),
        ('"a\\0b"', "has a control character in it"),
    ],
)
def test_a_path_that_cannot_be_made_out_is_named(
    write: Any, monkeypatch: pytest.MonkeyPatch, drop: str, expected: str
) -> None:
    monkeypatch.setenv("SET_BUT_EMPTY", "")
    said = message(write(f"folders:\n  drop: {drop}\n  output: out\n  state: state\n"))
    assert expected in said
    assert "line 2: folders.drop = " in said


def test_the_command_line_replaces_folders_and_starts_at_the_working_folder(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = write("folders:\n  drop: ~\n  output: $NOT_SET_ANYWHERE\n")
    loaded = load(path, {"drop": Path("in"), "output": Path("/results/$x"), "state": Path("../state")})
    assert loaded.folders.drop == tmp_path / "here/in"
    assert loaded.folders.output == Path("/results/$x")
    assert loaded.folders.state.resolve() == tmp_path / "state"
    assert load(write("log: {level: info}"), {n: Path(n) for n in ("drop", "output", "state")}).log.level == "info"


@pytest.mark.parametrize(
    ("drop", "output", "state", "expected"),
    [
        ("a", "a", "s", ["`drop` and `output` are the same folder"]),
        ("a", "b", "b", ["`output` and `state` are the same folder"]),
        ("a", "a/b", "s", ["`output` (", "lies inside `drop`"]),
        ("a", "b", "a/b/c", ["`state` (", "lies inside `drop`"]),
        ("a/b", "a", "s", ["`drop` (", "lies inside `output`"]),
        ("a", "b/../a/x", "s", ["lies inside `drop`"]),
        ("real", "link/out", "s", ["lies inside `drop`"]),
        ("link", "real/out", "s", ["lies inside `drop`"]),
        ("link", "real", "s", ["are the same folder"]),
    ],
)
def test_folders_that_would_mix_are_refused(
    write: Any, tmp_path: Path, drop: str, output: str, state: str, expected: list[str]
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    said = message(write(f"folders: {{drop: {drop}, output: {output}, state: {state}}}\n"))
    assert said.count("\n") == 0
    assert all(part in said for part in expected)


def test_neighbours_with_a_common_beginning_are_not_inside_each_other(write: Any, tmp_path: Path) -> None:
    loaded = load(write("folders: {drop: data, output: data-denoised, state: data.state}\n"))
    assert loaded.folders.output == tmp_path / "data-denoised"
    assert load(write("folders: {drop: in, output: out, state: out/.state}\n")).folders.state == tmp_path / "out/.state"


def test_state_on_a_network_share_is_refused(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "filesystem_type", lambda path: "cifs" if path.name == "state" else "ext4")
    said = message(write(FOLDERS))
    assert "is on a network filesystem (cifs)" in said
    assert "choose a folder on a local disk" in said


def made(write: Any, drop: str = "drop", output: str = "out", state: str = "deep/state") -> Config:
    return load(write(f"folders: {{drop: {drop}, output: {output}, state: {state}}}\n"))


def test_missing_folders_are_created_but_the_drop_folder_only_on_request(write: Any, tmp_path: Path) -> None:
    loaded = made(write)
    with pytest.raises(TransientError, match="the drop folder is missing; mount the share"):
        prepare_folders(loaded)
    assert (tmp_path / "out").is_dir() and (tmp_path / "deep/state").is_dir()
    assert not (tmp_path / "drop").exists()
    prepare_folders(loaded, create_drop=True)
    prepare_folders(loaded)
    assert (tmp_path / "drop").is_dir()


@pytest.mark.parametrize(("drop", "output"), [("share/drop", "out"), ("drop", "share/out")])
def test_what_lies_on_a_vanished_share_is_not_made_anew(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drop: str, output: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(TransientError, match=r"share is missing; mount the share"):
        prepare_folders(made(write, drop=drop, output=output), create_drop=True)
    assert not (tmp_path / "share").exists()


def test_in_the_users_home_parents_are_created_too(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare_folders(load(), create_drop=True)
    assert (tmp_path / "emdenoised/drop").is_dir() and (tmp_path / "emdenoised/denoised").is_dir()


@pytest.mark.parametrize("which", ["drop", "out", "deep"])
@pytest.mark.parametrize("create_drop", [True, False])
def test_a_file_in_a_folders_place_is_named(write: Any, tmp_path: Path, which: str, create_drop: bool) -> None:
    (tmp_path / which).write_text("")
    with pytest.raises(ConfigError, match=f"{tmp_path / which}.*choose another `folders"):
        prepare_folders(made(write), create_drop=create_drop)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, ConfigError),
        (errno.EROFS, TransientError),
        (errno.ENOSPC, TransientError),
        (errno.ESTALE, TransientError),
    ],
)
def test_a_folder_that_cannot_be_created_is_named_with_what_to_do(
    write: Any, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    loaded = made(write)

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(kind, match=f"cannot be created .{os.strerror(number)}.; create it for the user"):
        prepare_folders(loaded)


@pytest.mark.parametrize("name", ["output", "state"])
def test_a_disk_that_is_read_only_for_now_is_no_mistake_of_the_settings(
    write: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A disk with errors is mounted read-only until somebody repairs it: the service must not end for good."""
    loaded = made(write)
    folder = getattr(loaded.folders, name)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY * (path == folder)))
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder)
    with pytest.raises(TransientError, match=f"{folder}: the disk of the {name} folder is read-only now; make it"):
        prepare_folders(loaded)

    def gone(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "statvfs", gone)
    with pytest.raises(TransientError, match="the state folder cannot be reached"):
        prepare_folders(loaded)


@pytest.mark.parametrize("which", ["drop", "out", "state"])
def test_a_folder_without_permission_is_named(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    loaded = made(write, state="state")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != which)
    with pytest.raises(ConfigError, match=f"{tmp_path / which}: the .* folder may not be .* by the user"):
        prepare_folders(loaded, create_drop=True)
