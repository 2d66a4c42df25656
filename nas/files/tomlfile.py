"""Settings as TOML: read from files of unknown origin, written, and changed by KEY=VALUE."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from nas.errors import ConfigError, shown
from nas.files.atomic import MAX_DEPTH, is_deep, read_bytes

MAX_BYTES = 1 << 20
_DOT = re.compile(r"""[\w"'-][ \t]*\.[ \t]*(?=[\w"'-])""")
"""A dot between two parts of a key; not those of a row in a comment, nor of `../`."""


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        ConfigError: naming the path tried, or line and column of what is wrong.
    """
    raw = read_bytes(path, max_bytes=MAX_BYTES)
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    deep = ConfigError(f"{path}: nested deeper than {MAX_DEPTH}; a config is a flat table of settings")
    # The time that a key takes grows with the square of its parts.
    if any(len(_DOT.findall(line)) > MAX_DEPTH for line in text.splitlines()):
        raise deep
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise deep from error
    except ValueError as error:  # also for an integer of thousands of digits
        raise ConfigError(f"{path}: {error}{_yaml_hint(text)}") from error
    if is_deep(values):
        raise deep
    if not values:
        raise ConfigError(f"{path}: empty config")
    return values


def _yaml_hint(text: str) -> str:
    looks_yaml = re.search(r"^[ \t]*[\w-]+:\s", text, re.MULTILINE) is not None
    return "; the file looks like YAML, but configs are TOML: key = value" if looks_yaml else ""


def write_toml(values: Mapping[str, object]) -> str:
    """The inverse of `read_toml`; what is `None` or empty is left out."""
    return tomli_w.dumps({name: value for name, value in values.items() if value not in (None, (), {})})


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`values` with `key=value` or `table.key=value` assignments on top, written as in TOML or bare."""
    merged = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        *tables, key = (part.strip() for part in path.split("."))
        if not equals or not key or len(tables) > 1:
            raise ConfigError(f"--set {shown(assignment)}: wanted KEY=VALUE or TABLE.KEY=VALUE")
        target = merged
        for table in tables:
            target = merged.setdefault(table, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {shown(assignment)}: {shown(table)} is no table")
        target[key] = _value(text.strip())
    return merged


def _value(text: str) -> object:
    if "\n" in text or "\r" in text:  # what follows the line would be read as another setting
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
