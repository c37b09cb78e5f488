"""config.yaml: strict, explained, and every mistake answered in the file's own terms."""

import configparser
import copy
import errno
import os
import re
from pathlib import Path, PurePath
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from daemon import files
from daemon.errors import ConfigError, TransientError
from daemon.files import filesystem_type, is_network
from daemon.settings import config, folders, yaml_file
from daemon.settings.config import EX_CONFIG, Config, default_config_path, load, prepare_folders
from daemon.settings.profile import Match, Profile

REPOSITORY = Path(__file__).parents[3]
SHIPPED = REPOSITORY / "config.yaml"

FOLDERS = "folders: {drop: drop, output: out, state: state}\n"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def _write(text: str | bytes) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return _write


def message(path: Path, **overrides: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)


# ---- The shipped file ------------------------------------------------------------------------------------


def leaves(values: Any, key: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every key of nested mappings that holds something other than further keys."""
    if isinstance(values, dict):
        return {k: v for name, value in values.items() for k, v in leaves(value, (*key, name)).items()}
    return {key: values}


def test_the_shipped_file_loads_as_it_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load() == load(SHIPPED) == load(default_config_path())
    assert load().folders.drop == tmp_path / "emdenoised/drop"
    assert load().folders.output == tmp_path / "emdenoised/denoised"
    assert load().folders.state == tmp_path / ".local/state/emdenoised"


def test_the_shipped_values_are_the_defaults(write: Any) -> None:
    shipped, defaults = load(SHIPPED), load(write(FOLDERS))
    assert shipped.model_dump(exclude={"folders"}) == defaults.model_dump(exclude={"folders"})
    assert list(shipped.profiles) == list(defaults.profiles) == ["low", "ordinary", "auto"]
    assert shipped.fingerprint() == defaults.fingerprint()


def test_no_setting_is_missing_from_the_shipped_file() -> None:
    stated = set(leaves(yaml_file.read(SHIPPED).values))
    dumped = set(leaves(load(SHIPPED).model_dump()))
    assert stated == {key for key in dumped if not (key[0] == "profiles" and key[-1] == "name" and len(key) == 3)}


def test_every_key_of_the_shipped_file_is_explained_in_place() -> None:
    lines = SHIPPED.read_text().splitlines()
    for key, number in yaml_file.read(SHIPPED).lines.items():
        if key and isinstance(key[-1], str):
            line, above = lines[number - 1], lines[number - 2].strip()
            beside = line.partition(" # ")[2]
            assert beside or above.startswith("#"), f"line {number}, {yaml_file.dotted(key)}: no comment"


def test_every_comment_states_the_true_default() -> None:
    lines = SHIPPED.read_text().splitlines()
    document = yaml_file.read(SHIPPED)
    for key, value in leaves(document.values).items():
        if key[0] not in ("folders", "profiles"):
            number, comment = document.lines[key] - 1, ""
            while lines[number - 1].strip().startswith("#"):
                number -= 1
                comment = lines[number].strip(" #") + " " + comment
            if isinstance(value, list):
                assert "This list is the default." in comment, key
            else:
                said = re.search(r"Default (\S+)\.(?= |$)", comment)
                written = lines[document.lines[key] - 1].split(": ")[1]
                assert said and said[1] == written, key


GROUPS = [
    value
    for value in vars(config).values()
    if isinstance(value, type) and issubclass(value, yaml_file.Group) and value is not yaml_file.Group
]


@pytest.mark.parametrize("group", GROUPS)
def test_every_setting_has_a_description(group: type[BaseModel]) -> None:
    assert group.__doc__
    for name, field in group.model_fields.items():
        # What a whole group is for stands in its class.
        assert field.description or getattr(field.annotation, "__doc__", None), name


# ---- Mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # unknown keys, with the nearest known one
        ("arrival: {setle_seconds: 1}", "line 2: arrival.setle_seconds = 1: there is no such key; did you mean `s"),
        ("arival: {}", "line 2: arival = {}: there is no such key; did you mean `arrival`?"),
        ("tile: 512", "tile = 512: there is no such key; it belongs in another group: `backend.tile`"),
        ("max_pixels: 512", "max_pixels = 512: there is no such key; it belongs in another group: `backend.max_p"),
        ("log: {zzz: 1}", "log.zzz = 1: there is no such key; remove it, or use one of: level"),
        ("profiles: {auto: {doze: null}}", "profiles.auto.doze = null: there is no such key; did you mean `dose`?"),
        ("profiles: {auto: {match: {nam: x}}}", "profiles.auto.match.nam = 'x': there is no such key; did you mean `n"),
        ("true: 1", "true = 1: there is no such key"),
        # types
        ("output: {preview: yes}", "output.preview = 'yes': must be true or false, without quotes; the default is t"),
        ("output: {preview: 1}", "output.preview = 1: must be true or false"),
        ("arrival: {settle_seconds: true}", "arrival.settle_seconds = true: must be a number"),
        ("arrival: {settle_seconds: '1'}", "arrival.settle_seconds = '1': must be a number, without quotes"),
        ("arrival: {settle_seconds: 1:30}", "arrival.settle_seconds = '1:30': must be a number"),
        ("arrival: {settle_seconds: .inf}", "arrival.settle_seconds = inf: must be an ordinary, finite number"),
        ("arrival: {settle_seconds: .nan}", "arrival.settle_seconds = nan: must be an ordinary, finite number"),
        ("arrival: {settle_seconds:}", "arrival.settle_seconds = null: must be a number"),
        ("retry: {attempts: 2.5}", "retry.attempts = 2.5: must be a whole number"),
        ("arrival: {ignore: '*.tmp'}", "arrival.ignore = '*.tmp': must be a list such as [a, b]"),
        ("arrival: {ignore: [a, 3]}", "arrival.ignore[2] = 3: must be text; put it in quotes"),
        ("arrival: {ignore: ['']}", "arrival.ignore[1] = '': must not be empty"),
        ("arrival:", "arrival = null: must be a group"),
        ("arrival: 3", "arrival = 3: must be a group"),
        ("profiles: [low]", "profiles = ['low']: must be a group: names"),
        ("profiles: {auto: }", "profiles.auto = null: must be a group"),
        ("log: {level: !!int abc}", "log.level: 'abc' cannot be read as int; correct it"),
        ("log: {level: !secret abc}", "log.level: the tag !secret is not used here; write the plain value"),
        ("log: {level: !!python/name:os.system x}", "log.level: the tag tag:yaml.org,2002:python/name:os.system is"),
        ("[a]: 1", "line 2 has a list or group where a name is needed"),
        # ranges
        ("arrival: {settle_seconds: 0}", "arrival.settle_seconds = 0: must be greater than 0; the default is 1"),
        ("arrival: {settle_seconds: 1e400}", "arrival.settle_seconds = inf: must be an ordinary, finite number"),
        ("arrival: {suspicious_tail_seconds: -1}", "arrival.suspicious_tail_seconds = -1: must be at least 0"),
        ("arrival: {rescan_seconds: 1e9}", "arrival.rescan_seconds = 1000000000: must be at most 86400"),
        ("arrival: {extensions: []}", "arrival.extensions = []: must have at least one item"),
        ("arrival: {extensions: [mrc]}", "arrival.extensions = ['mrc']: `mrc` is not a file-name ending; write it"),
        ("order: {backlog_every: 0}", "order.backlog_every = 0: must be at least 1; the default is 4"),
        ("retry: {factor: 0.5}", "retry.factor = 0.5: must be at least 1"),
        ("retry: {first_seconds: 60, longest_seconds: 30}", "retry: longest_seconds (30) is shorter than first_s"),
        ("backend: {tile: 5}", "backend.tile = 5: must be 0 (as the weights recommend) or at least 64"),
        ("backend: {threads: -1}", "backend.threads = -1: must be auto (all cores but one), 0 (all) or a number up to"),
        ("backend: {threads: yes}", "must be auto (all cores but one), 0 (all) or a number up to 1024; the default is"),
        ("backend: {queue: 0}", "backend.queue = 0: must be at least 1"),
        # words
        ("backend: {kind: gpu}", "backend.kind = 'gpu': must be auto or cpu or tensorrt or server"),
        ("backend: {kind: server}", "kind: server needs `server.url`, such as gpu.example.org:8001"),
        ("backend: {server: {cert: a.pem}}", "certificate and private key belong together"),
        ("backend: {server: {ca: 3}}", "backend.server.ca = 3: must be a path, as text"),
        ("backend: {server: {url: 'http://gpu:8001'}}", "backend.server.url = 'http://gpu:8001'"),
        ("backend: {server: {timeout_seconds: 0}}", "must be at least 1; the default is 60"),
        ("backend: {kind: TensorTR}", "(did you mean `tensorrt`?); the default is 'auto'"),
        ("arrival: {require_sidecar: none}", "arrival.require_sidecar = 'none': must be epu or serialem or null"),
        ("arrival: {polling: true}", "arrival.polling = true: must be auto or always or never"),
        # profiles
        ("default_profile: blue", "default_profile = 'blue': no profile has this name; use one of: low, ordinary"),
        ("profiles: {a: {}}", "default_profile = 'auto': no profile has this name; use one of: a"),
        ("profiles: {}", "default_profile = 'auto': there are no profiles"),
        ("profiles: {auto: {name: b}}", "profiles: `auto` has a key `name` that differs from it"),
        ("profiles: {auto: {dose: [5, 5]}}", "profiles.auto.dose = [5, 5]: the lowest must be 0 or more, and less"),
        ("profiles: {auto: {dose: [-1, 5]}}", "profiles.auto.dose = [-1, 5]: the lowest must be 0 or more"),
        ("profiles: {auto: {dose: [1, .inf]}}", "profiles.auto.dose = [1, inf]: must be two numbers"),
        ("profiles: {auto: {dose: 50}}", "profiles.auto.dose = 50: must be two numbers"),
        ("profiles: {auto: {dose: [1, yes]}}", "profiles.auto.dose = [1, 'yes']: must be two numbers"),
        ("profiles: {auto: {gain: 0}}", "profiles.auto.gain = 0: must be a number greater than 0, or auto"),
        ("profiles: {auto: {gain: -2}}", "profiles.auto.gain = -2: must be a number greater than 0, or auto"),
        ("profiles: {auto: {gain: .inf}}", "profiles.auto.gain = inf: must be a number greater than 0, or auto"),
        ("profiles: {auto: {gain: true}}", "profiles.auto.gain = true: must be a number greater than 0, or auto"),
        ("profiles: {auto: {gain: automatic}}", "profiles.auto.gain = 'automatic': must be a number greater than 0"),
        (f"profiles: {{auto: {{gain: {10**400}}}}}", "must be a number greater than 0, or auto"),
        ("profiles: {auto: {offset: .nan}}", "profiles.auto.offset = nan: must be an ordinary, finite number"),
        ("profiles: {auto: {weights: 3}}", "profiles.auto.weights = 3: must be text; put it in quotes"),
        ("profiles: {auto: {match: {measured: true}}}", "profiles.auto: match.measured is true but there is no `dose`"),
        # twice
        ("log: {level: info}\norder: {}\nlog: {}", "line 2: log: is given twice, on line 2 and again on line 4; keep"),
        ("profiles: {auto: {}, auto: {}}", "profiles.auto: is given twice, on line 2 and again on line 2; keep one"),
    ],
)
def test_a_mistake_is_named_with_file_line_key_value_and_remedy(write: Any, text: str, expected: str) -> None:
    path = write(FOLDERS + text + "\n")
    said = message(path)
    assert expected in said
    assert all(re.match(rf"{re.escape(str(path))}, line \d+: ", line) for line in said.splitlines())
    assert said.count("\n") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty; start from a copy"),
        ("# nothing but a comment\n", "is empty; start from a copy"),
        ("---\n", "is empty; start from a copy"),
        ("- drop\n- output\n", "is not a list of `key: value` lines"),
        ("drop\n", "is not a list of `key: value` lines"),
        ("folders: [\n", "line 2, column 1: is not valid YAML"),
        ("folders:\n\tdrop: x\n", "line 2, column 1: is not valid YAML"),
        ("a: 1\n---\nb: 2\n", "is not valid YAML"),
        ("a: *nothing\n", "is not valid YAML (found undefined alias"),
        ("folders: &a {drop: *a}\n", "an alias (`*name`) contains itself"),
        ("[" * 5000, "is nested too deeply"),
        (b"folders: {drop: caf\xe9}\n", "is not plain text"),
        (b"\x00\x01\x02", "is not plain text"),
        (b"\x89PNG\r\n\x1a\n", "is not plain text"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(write: Any, text: str | bytes, expected: str) -> None:
    path = write(text)
    said = message(path)
    assert expected in said
    assert str(path) in said


def test_a_missing_file_a_folder_and_a_forbidden_file_are_named(
    tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no such file; check the path given with --config" in message(tmp_path / "none.yaml")
    assert "is a folder; name the settings file inside it" in message(tmp_path)
    path = write(FOLDERS)
    assert "cannot be read" in message(path / "below.yaml")

    def forbidden(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert "cannot be read (Permission denied); check the path and who may read it" in message(path)


def test_all_mistakes_are_listed_at_once_one_a_line_in_the_order_of_the_file(write: Any) -> None:
    path = write(
        "folders:\n  drop: in\n  output: in/out\n  state: state\n"
        "retry:\n  attempts: many\n  tries: 3\n  tries: 4\n"
        "profiles:\n  a: {gain: 0, dose: [3]}\ndefault_profile: a\nlog: {level: loud}\n"
    )
    lines = message(path).splitlines()
    assert [int(line.split(", line ")[1].split(":")[0]) for line in lines] == [1, 6, 7, 7, 10, 10, 12]
    assert all(line.startswith(f"{path}, line ") for line in lines)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("log: {level: info}", ["folders"]),
        ("folders: {drop: a}", ["folders.output", "folders.state"]),
        ("folders: {drop: ~, output: '', state: 3}", ["folders.drop", "folders.output", "folders.state"]),
    ],
)
def test_the_folders_must_be_given(write: Any, text: str, missing: list[str]) -> None:
    lines = message(write(text)).splitlines()
    assert [re.split("[: ]", line.split(": ", 1)[1])[0] for line in lines] == missing


def test_plain_words_mean_what_they_look_like(write: Any) -> None:
    loaded = load(
        write(
            FOLDERS + "profiles:\n"
            "  no: {gain: 1e-3, offset: -32_768, dose: [1, 2e3], match: {name: 2026-11-22, folder: on}}\n"
            "  8: {gain: 010}\ndefault_profile: no\narrival: {settle_seconds: 2}\n"
        )
    )
    profile = loaded.profiles["no"]
    assert (profile.gain, profile.offset, profile.dose) == (0.001, -32768.0, (1.0, 2000.0))
    assert (profile.match.name, profile.match.folder) == ("2026-11-22", "on")
    assert loaded.profiles["8"].gain == 10.0
    assert isinstance(loaded.arrival.settle_seconds, float)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_windows_editors_are_understood(write: Any, tmp_path: Path, encoding: str) -> None:
    text = "folders:\r\n  drop: Proben für Käthe\r\n  output: out\r\n  state: state\r\n"
    assert load(write(text.encode(encoding))).folders.drop == tmp_path / "Proben für Käthe"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["folders", "drop", "arrival", "ignore", "profiles", "auto", "dose", "match", "x"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_whatever_the_file_says_it_is_loaded_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, values: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "anything.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    try:
        loaded = load(path)
    except ConfigError as error:
        assert str(path) in str(error)
    else:
        assert loaded.default_profile in loaded.profiles


def test_the_settings_cannot_be_changed(write: Any) -> None:
    loaded = load(write(FOLDERS))
    with pytest.raises(ValidationError, match="frozen"):
        loaded.arrival.settle_seconds = 3.0


# ---- Folders ---------------------------------------------------------------------------------------------


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


def test_missing_folders_are_created_but_the_drop_folder_only_when_told(write: Any, tmp_path: Path) -> None:
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
        (errno.EROFS, ConfigError),
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


@pytest.mark.parametrize("which", ["drop", "out", "state"])
def test_a_folder_without_permission_is_named(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    loaded = made(write, state="state")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != which)
    with pytest.raises(ConfigError, match=f"{tmp_path / which}: the .* folder may not be .* by the user"):
        prepare_folders(loaded, create_drop=True)


# ---- Profiles and fingerprint ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "name", "path", "fits"),
    [
        (None, None, "a.mrc", True),
        ("low", None, "low/a.mrc", True),
        ("low", None, "Low/grid 1/a.mrc", True),
        ("low", None, "lower/a.mrc", False),
        ("low", None, "low.mrc", False),
        ("low/", None, "low/a.mrc", True),
        ("*_low", None, "day/7_low/x/a.mrc", True),
        ("grid?", None, "grid12/a.mrc", False),
        (None, "*_lowdose_*", "x/a_LowDose_1.mrc", True),
        (None, "*_lowdose_*", "x_lowdose_/a.mrc", False),
        ("low", "*.tif", "low/a.mrc", False),
        ("low", "*.tif", "low/a.tif", True),
    ],
)
def test_rules_on_folder_and_name(folder: str | None, name: str | None, path: str, fits: bool) -> None:
    assert Match(folder=folder, name=name).path_fits(PurePath(path)) is fits


def test_a_profile_without_rules_says_so() -> None:
    assert not Match().states_a_rule
    assert all(rule.states_a_rule for rule in (Match(folder="a"), Match(name="a"), Match(measured=True)))


def test_the_fingerprint_follows_pixels_and_nothing_else(write: Any, tmp_path: Path) -> None:
    plain = load(write(FOLDERS)).fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", plain)
    same = [
        "log: {level: debug}",
        "arrival: {settle_seconds: 3}",
        "backend: {threads: 1, queue: 3}",
        "output: {format: mrc}",
        "profiles:\n  low: {dose: [0.5, 100], match: {folder: low}}\n"
        "  ordinary: {dose: [100, 3000], match: {folder: ordinary}}\n  auto: {gain: auto}\n",
    ]
    other = [
        "spikes: {find: false}",
        "backend: {tile: 256}",
        "default_profile: low",
        "profiles: {auto: {gain: 2}}",
        "profiles: {auto: {offset: 2}}",
        "profiles: {auto: {}, b: {}}",
        "profiles: {b: {}, auto: {}}",
    ]
    assert {load(write(FOLDERS + text)).fingerprint() for text in same} == {plain}
    assert len({load(write(FOLDERS + text)).fingerprint() for text in other} | {plain}) == len(other) + 1
    moved = load(write(FOLDERS), {"drop": tmp_path / "elsewhere"})
    assert moved.fingerprint() == plain


def test_profiles_can_be_built_in_code(tmp_path: Path) -> None:
    built = Config(
        folders=folders.Folders(drop=tmp_path / "a", output=tmp_path / "b", state=tmp_path / "c"),
        profiles={"mine": Profile(name="mine", gain=2)},
        default_profile="mine",
    )
    assert built.profiles["mine"].gain == 2.0
    assert Config.model_validate(built.model_dump()) == built


# ---- Filesystems -----------------------------------------------------------------------------------------

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:30 / /mnt/share rw,relatime shared:2 master:1 - cifs //microscope/data rw
31 30 8:1 / /mnt/share/local rw - xfs /dev/sda1 rw
32 27 0:31 / /mnt/my\040old\134share rw - nfs4 server:/x rw
33 27 0:32 / /mnt/twice rw - nfs server:/y rw
34 27 0:33 / /mnt/twice rw - ext4 /dev/sdb rw
35 27 0:34 / /mnt/ssh rw - fuse.sshfs host: rw
nonsense
36 27 0:35
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "ext4"),
        ("/home/x/y", "ext4"),
        ("/mnt/share", "cifs"),
        ("/mnt/share/a/b", "cifs"),
        ("/mnt/shared", "ext4"),
        ("/mnt/share/local/a", "xfs"),
        ("/mnt/share/../other", "ext4"),
        (r"/mnt/my old\share/a", "nfs4"),
        ("/mnt/twice/a", "ext4"),
        ("/mnt/ssh/a", "fuse.sshfs"),
    ],
)
def test_the_deepest_mount_decides_the_filesystem(path: str, expected: str) -> None:
    assert filesystem_type(Path(path), MOUNTS) == expected


def test_a_symlink_is_followed_to_its_filesystem(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/mnt/share")
    assert filesystem_type(tmp_path / "link/file", MOUNTS) == "cifs"


def test_this_machine_answers_and_others_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if files.MOUNTINFO.exists():
        assert filesystem_type(Path("/proc/self")) == "proc"
    monkeypatch.setattr(files, "MOUNTINFO", tmp_path / "none")
    assert filesystem_type(tmp_path) == files.UNKNOWN
    assert not is_network(files.UNKNOWN)


@pytest.mark.parametrize(
    ("fstype", "network"),
    [
        ("cifs", True),
        ("smb3", True),
        ("nfs", True),
        ("nfs4", True),
        ("fuse.sshfs", True),
        ("9p", True),
        ("virtiofs", True),
        ("autofs", True),
        ("ext4", False),
        ("xfs", False),
        ("btrfs", False),
        ("fuseblk", False),
        ("tmpfs", False),
        ("overlay", False),
    ],
)
def test_network_filesystems_are_known(fstype: str, network: bool) -> None:
    assert is_network(fstype) is network


# ---- The unit --------------------------------------------------------------------------------------------


def test_the_unit_does_not_restart_on_a_configuration_error() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read(REPOSITORY / "systemd/emdenoised.service")
    service = unit["Service"]
    assert int(service["RestartPreventExitStatus"]) == EX_CONFIG
    assert service["Type"] == "notify"
    assert service["Restart"] == "on-failure"
    assert service["KillMode"] == "mixed"
    assert service["ExecStart"].endswith("emdenoised run --config /etc/emdenoised/config.yaml")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "low", "~", "$X"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
SHIPPED_VALUES = yaml.safe_load(SHIPPED.read_text())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_anywhere_is_taken_or_refused_by_name(tmp_path: Path, data: st.DataObject) -> None:
    """One value of the shipped file is replaced by anything YAML can write."""
    values = copy.deepcopy(SHIPPED_VALUES)
    place, path = values, []
    while isinstance(place, dict) and (not path or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(place)))
        path.append(key)
        parent, place = place, place[key]
    parent[path[-1]] = data.draw(VALUES)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=True))
    try:
        config.load(file)
    except ConfigError as error:
        assert str(file) in str(error)
