"""A settings file for tests, and the message that refuses a bad one."""

from pathlib import Path

import pytest

from daemon.errors import ConfigError
from daemon.settings.config import load

FOLDERS = "folders: {drop: drop, output: out, state: state}\n"
"""The settings without a default."""


def message(path: Path, **overrides: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)
