"""Settings as TOML: read from files of unknown origin, written, and changed by KEY=VALUE."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.errors import ConfigError
from nas.text import shown

MAX_BYTES = 1 << 20
MAX_DEPTH = 100
_DOT = re.compile(r"""[\w"'-][ \t]*\.[ \t]*(?=[\w"'-])""")
"""A dot between two parts of a key; not those of a row in a comment, nor of `../`."""


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        ConfigError: naming the path tried, or line and column of what is wrong.
    """
    raw = _read(path)
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    if max(text.count("["), text.count("{")) > MAX_DEPTH * 10 or _depth(text) > MAX_DEPTH:
        raise ConfigError(f"{path}: nested deeper than {MAX_DEPTH}; a config is a flat table of settings")
    try:
        values = tomllib.loads(text)
    except ValueError as error:  # also for an integer of thousands of digits
        raise ConfigError(f"{path}: {error}{_yaml_hint(text)}") from error
    if not values:
        raise ConfigError(f"{path}: empty config")
    return values


def write_toml(values: Mapping[str, object]) -> str:
    """Scalars first, then one table for each mapping; `None` is left out. The inverse of `read_toml`."""
    plain = {k: v for k, v in values.items() if v not in (None, ()) and not isinstance(v, Mapping)}
    lines = [f"{_key(k)} = {_literal(v)}" for k, v in plain.items()]
    for name, table in values.items():
        if isinstance(table, Mapping) and table:
            lines += ["", f"[{_key(name)}]", *(f"{_key(k)} = {_literal(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


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


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ConfigError(f"no config file {path} (looked for {Path.cwd() / path}, from {Path.cwd()})")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: {size:,} bytes, but a config has at most {MAX_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read config file {shown(str(path))}: {error.strerror}") from error


def _depth(text: str) -> int:
    """How deep brackets or the dots of a key nest, at most."""
    depth, deepest = 0, max((len(_DOT.findall(line)) for line in text.splitlines()), default=0)
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth = max(0, depth - 1)
    return deepest


def _yaml_hint(text: str) -> str:
    looks_yaml = re.search(r"^[ \t]*[\w-]+:\s", text, re.MULTILINE) is not None
    return "; the file looks like YAML, but configs are TOML: key = value" if looks_yaml else ""


def _value(text: str) -> object:
    if "\n" in text or "\r" in text:  # what follows the line would be read as another setting
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _literal(name)


def _literal(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"got {value}, wanted a finite number")
    if isinstance(value, tuple | list) and all(isinstance(item, str) for item in value):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, bool | int | float | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON may hold DEL, TOML not
    raise ConfigError(
        f"got {shown(value)} of type {type(value).__name__}, wanted text, a number, true or false"
    )
