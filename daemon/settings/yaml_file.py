"""Reads a YAML settings file strictly, and reports its faults by line, key and value.

Plain words are read as in YAML 1.2: `yes`, `no`, `on` and dates are text, `1e-3` is a number.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import isclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from daemon.errors import ConfigError

_MOST_KEYS = 20_000

Key = tuple[str | int, ...]
"""Path of a key in the file: ("arrival", "ignore", 2) is the third item of `ignore` under `arrival`."""


class Group(BaseModel):
    """A group of settings. Unknown keys, wrong types, infinities and later changes are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


@dataclass(frozen=True, slots=True)
class Document:
    """The values in a file (plain Python), the line of each key, and the faults found while reading."""

    values: dict[str, Any]
    lines: Mapping[Key, int]
    problems: tuple[tuple[Key, str], ...]


class _Loader(yaml.SafeLoader):
    """Composes nodes with the few plain types below, instead of YAML 1.1's many."""


_Loader.yaml_implicit_resolvers = {}
_MAP = "tag:yaml.org,2002:map"
_NULL, _BOOL, _INT, _FLOAT, _TEXT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))
# Patterns are tried in this order; a float's would also match an integer.
for _tag, _pattern, _first in (
    (_NULL, r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    (_BOOL, r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    (_INT, r"^[-+]?(?:[0-9]+|[0-9]{1,3}(?:_[0-9]{3})+)$", list("-+0123456789")),
    (_FLOAT, r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    (_FLOAT, r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def read(path: Path) -> Document:
    """Read one YAML mapping. Raises ConfigError if the file cannot be read or is not a mapping."""
    try:
        root = yaml.compose(path.read_bytes(), Loader=_Loader)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file; check the path given with --config") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder; name the settings file inside it") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read ({reason}); check the path and who may read it") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"{path}{place}: is not valid YAML ({error.problem or error.context}); check the "
            "indentation (spaces, no tabs), the colons and the quotes near that place"
        ) from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: is not plain text ({reason}); save it as UTF-8 text") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply for a settings file; correct its brackets") from error
    if root is None or (isinstance(root, ScalarNode) and root.tag == _NULL):
        raise ConfigError(f"{path}: is empty; start from a copy of the config.yaml that came with the program")
    if not isinstance(root, MappingNode) or root.tag != _MAP:
        raise ConfigError(
            f"{path}: is not a list of `key: value` lines; start from a copy of the config.yaml "
            "that came with the program"
        )
    lines: dict[Key, int] = {}
    problems: list[tuple[Key, str]] = []
    try:
        values = _plain(root, (), lines, problems)
    except OverflowError as error:
        raise ConfigError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: an alias (`*name`) contains itself; write the values out instead") from error
    return Document(values, lines, tuple(problems))


def _plain(node: Node, key: Key, lines: dict[Key, int], problems: list[tuple[Key, str]]) -> Any:
    """A YAML node as plain Python values; adds to `lines` and `problems`. Raises OverflowError."""
    lines.setdefault(key, node.start_mark.line + 1)
    if len(lines) > _MOST_KEYS:  # a few aliases of aliases make billions
        raise OverflowError(f"has more than {_MOST_KEYS} values; a settings file has some hundred: remove the aliases")
    if isinstance(node, SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_plain(item, (*key, index), lines, problems) for index, item in enumerate(node.value)]
    if isinstance(node, MappingNode) and node.tag == _MAP:
        values: dict[str, Any] = {}
        for name, value in node.value:
            # A key is only ever a name: `8: ...` and `true: ...` name something too.
            if not isinstance(name, ScalarNode):
                problems.append(
                    (
                        key,
                        f"line {name.start_mark.line + 1} has a list or group where a name is needed; "
                        "write `name: value`",
                    )
                )
                continue
            inner = (*key, name.value)
            if name.value in values:
                problems.append(
                    (
                        inner,
                        f"is given twice, on line {lines[inner]} and again on line "
                        f"{name.start_mark.line + 1}; keep one of them",
                    )
                )
                continue
            lines[inner] = name.start_mark.line + 1
            values[name.value] = _plain(value, inner, lines, problems)
        return values
    if isinstance(node, ScalarNode):
        if node.tag == _TEXT:
            return node.value
        if node.tag == _NULL:
            return None
        try:
            if node.tag == _BOOL:
                return {"true": True, "false": False}[node.value.lower()]
            if node.tag == _INT:
                return int(node.value.replace("_", ""))
            if node.tag == _FLOAT:
                return float(re.sub(r"^([-+]?)\.(?=[a-zA-Z])", r"\1", node.value))
        except (KeyError, ValueError):
            problems.append((key, f"{shown(node.value)} cannot be read as {node.tag.rpartition(':')[2]}; correct it"))
            return None
    problems.append((key, f"the tag {node.tag} is not used here; write the plain value"))
    return None


def explain(path: Path, document: Document, model: type[Group], error: ValidationError | None) -> str:
    """All problems of a file, one a line: file, line, key, value, cause, remedy."""
    found = [(key, f"{dotted(key)}: {text}") for key, text in document.problems]
    for detail in error.errors(include_url=False) if error else ():
        if detail["input"] is not None or detail["loc"] not in dict(document.problems):
            found += [(detail["loc"], line) for line in _describe(detail, model)]
    found.sort(key=lambda item: _line(document, item[0]))
    return "\n".join(f"{path}, line {_line(document, key)}: {text}" for key, text in found)


def _line(document: Document, key: Key) -> int:
    while key not in document.lines:
        key = key[:-1]
    return document.lines[key]


def _describe(detail: ErrorDetails, model: type[Group]) -> Iterator[str]:
    key, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    group, value = _group(model, key[:-1]), detail["input"]
    name = dotted(key)
    if kind == "extra_forbidden":
        yield f"{name} = {shown(value)}: there is no such key; {_suggest(model, group, key)}"
    elif kind == "missing":
        yield f"{name}: is missing; {_purpose(group, key)}"
    elif kind == "value_error":
        # A check of ours, which may have found several faults.
        where = name if isinstance(value, (dict, BaseModel)) else f"{name} = {shown(value)}"
        yield from (f"{where}: {line}" for line in str(context["error"]).splitlines())
    else:
        yield f"{name} = {shown(value)}: {_must_be(kind, context, group, key, value)}; {_default(group, key)}"


def _must_be(kind: str, context: Mapping[str, Any], group: type[BaseModel], key: Key, value: object) -> str:
    if kind == "literal_error":
        words = _words(group, key)
        close = get_close_matches(str(value).lower(), words, n=1, cutoff=0.7)
        return f"must be {' or '.join(words)}" + (f" (did you mean `{close[0]}`?)" if close else "")
    limits = {
        "greater_than": ("gt", "greater than"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
    }
    if kind in limits:
        limit, words_ = limits[kind]
        return f"must be {words_} {shown(context[limit])}"
    plain = {
        "bool_type": "must be true or false, without quotes",
        "int_type": "must be a whole number, without quotes",
        "float_type": "must be a number, without quotes",
        "finite_number": "must be an ordinary, finite number",
        "string_type": "must be text; put it in quotes",
        "string_too_short": "must not be empty",
        "too_short": "must have at least one item",
        "tuple_type": "must be a list such as [a, b]",
        "model_type": "must be a group: its own keys on the lines below, indented",
        "dict_type": "must be a group: names on the lines below, indented",
    }
    return plain.get(kind, kind.replace("_", " "))


def _suggest(model: type[Group], group: type[BaseModel], key: Key) -> str:
    name = str(key[-1])
    elsewhere = [
        f"{other}.{name}"
        for other, field in model.model_fields.items()
        if isclass(field.annotation) and issubclass(field.annotation, Group) and name in field.annotation.model_fields
    ]
    if elsewhere:
        return f"it belongs in another group: `{elsewhere[0]}`"
    close = get_close_matches(name.lower(), group.model_fields, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"remove it, or use one of: {', '.join(group.model_fields)}"


def _words(group: type[BaseModel], key: Key) -> list[str]:
    annotation = group.model_fields[str(key[-1])].annotation
    literals = [item for item in (annotation, *get_args(annotation)) if get_origin(item) is Literal]
    words = [str(word) for literal in literals for word in get_args(literal)]
    return words + (["null"] if type(None) in get_args(annotation) else [])


def _default(group: type[BaseModel], key: Key) -> str:
    field = group.model_fields.get(str(key[-1]))
    if field is None or field.is_required():
        return "correct it"
    if isinstance(field.default, (BaseModel, Mapping)):
        return "or remove the line for the defaults"
    return f"the default is {shown(field.default)}"


def _purpose(group: type[BaseModel], key: Key) -> str:
    field = group.model_fields.get(str(key[-1]))
    meaning = (field.description or "").split(". ")[0].rstrip(".") if field else ""
    return f"add it: {meaning}" if meaning else "add it"


def _group(model: type[Group], key: Key) -> type[BaseModel]:
    """The group of settings that a key leads to; names of profiles are skipped."""
    group: type[BaseModel] = model
    for part in key:
        field = group.model_fields.get(str(part))
        for inner in (field.annotation, *get_args(field.annotation)) if field else ():
            if isclass(inner) and issubclass(inner, BaseModel):
                group = inner
    return group


def dotted(key: Key) -> str:
    """A key as messages show it: ("arrival", "ignore", 2) → "arrival.ignore[3]", counted from one."""
    text = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".") or "the file"


def shown(value: object) -> str:
    """A value as it is written in the file, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, float) and value.is_integer():
        text = str(int(value))
    elif isinstance(value, Sequence):
        text = "[" + ", ".join(shown(item) for item in value) + "]"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{name}: {shown(item)}" for name, item in value.items()) + "}"
    else:
        text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
