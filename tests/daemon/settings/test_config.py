"""config.yaml: strict, and every mistake answered in the file's own terms."""

import copy
import errno
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from settings_file import FOLDERS, message

from daemon.errors import ConfigError
from daemon.settings import config
from daemon.settings.config import load


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
        ("backend: {threads: yes}", "must be auto (all cores but one), 0 (all) or a number up to 1024"),
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
def test_any_file_is_loaded_or_refused_with_a_message(tmp_path_factory: pytest.TempPathFactory, values: object) -> None:
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
SHIPPED_VALUES = yaml.safe_load((Path(__file__).parents[3] / "config.yaml").read_text())


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
