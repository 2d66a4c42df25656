"""Finds a space by name (`"darts"`), by module (`"my_pkg.spaces:make"`) or by file (`"my_space.py:make"`)."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import cast

from nas.errors import FAULTS, ConfigError, SpaceError, describe, foreign_code, staying, unknown
from nas.files.folder import is_file
from nas.space.space import Space

BUNDLED = "nas.spaces"
"""The folder `spaces/` of the repository, which `nas/spaces` is a link to: installed, it lies in `nas`."""


def bundled() -> tuple[str, ...]:
    """Names of the spaces that come with the engine."""
    package = importlib.import_module(BUNDLED)
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")))


def about(name: str) -> str:
    """What a space that comes with the engine is, in a sentence."""
    return (inspect.getdoc(importlib.import_module(f"{BUNDLED}.{name}")) or "").partition("\n")[0]


def is_plugin(path: str) -> bool:
    """Whether loading `path` runs code from outside the engine."""
    return ":" in path


def load(path: str, offer: Mapping[str, object] | None = None, /, **settings: object) -> Space:
    """Makes the space that `path` names.

    path: `"darts"` is `spaces/darts.py:darts`; `"module:function"` and `"file.py:function"` are a user's own.
    offer: settings that are passed only where the function takes them (a task's classes and image size).
    settings: passed to the function.

    Raises:
        SpaceError: when there is no such space, its code fails, or it takes no such setting.
    """
    make = _function(path)
    accepted = _parameters(path, make)
    for name, value in settings.items():
        if name not in accepted:
            raise SpaceError(f"space {path!r}: {unknown('setting', name, accepted)}")
        default = accepted[name]
        if type(default) in (int, float) and isinstance(value, str):
            raise SpaceError(
                f"space {path!r}: the setting {name} is {value!r}, wanted a number like its default, "
                f"{default}"
            )
    resolved = accepted | {k: v for k, v in (offer or {}).items() if k in accepted} | settings
    missing = [name for name, value in resolved.items() if value is inspect.Parameter.empty]
    if missing:
        raise SpaceError(
            f"space {path!r} needs the setting {missing[0]!r}; give the parameter a default or a value"
        )
    with foreign_code(f"space {path!r} failed"):
        space = make(**resolved)
    if not isinstance(space, Space):
        raise SpaceError(f"space {path!r} returned {type(space).__name__}, wanted a nas.Space")
    return replace(space, origin=path, settings=resolved)


def source_hash(path: str) -> str | None:
    """A fingerprint of the file that a user's own space is made in; None for the engine's own spaces."""
    if not path or not is_plugin(path):
        return None
    module = inspect.getmodule(_function(path))
    file = getattr(module, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else None


def own_function(path: str) -> Callable[..., object]:
    """The function that `module:function` or `file.py:function` names, for a method.

    Raises:
        ConfigError: when there is none or its file fails.
    """
    try:
        return _function(path)
    except SpaceError as error:
        raise ConfigError(str(error).replace(f"space {path!r}", f"method {path!r}", 1)) from error


def _function(path: str) -> Callable[..., object]:
    if not is_plugin(path):
        if path not in bundled():
            hint = "; your own is named with its function, as FILE.py:FUNCTION or module:FUNCTION"
            raise SpaceError(unknown("search space", path, bundled()) + hint)
        return cast(Callable[..., object], getattr(importlib.import_module(f"{BUNDLED}.{path}"), path))
    source, _, name = path.rpartition(":")
    if not source or not name:
        raise SpaceError(f"space {path!r}: wanted FILE.py:FUNCTION or module:FUNCTION")
    if source.endswith(".py") and not is_file(Path(source)):
        raise SpaceError(f"space {path!r}: no file {source} (looked for {Path(source).absolute()})")
    module = _imported(source, path)
    functions = {k: v for k, v in vars(module).items() if callable(v) and not k.startswith("_")}
    if isinstance(vars(module).get(name), Space):
        raise SpaceError(
            f"space {path!r}: {name!r} is a space, wanted a function that makes one: def make(): return ..."
        )
    if name not in functions:
        own = [k for k, v in functions.items() if getattr(v, "__module__", None) == module.__name__]
        raise SpaceError(f"space {path!r}: " + unknown(f"function in {source}", name, own or functions))
    return cast(Callable[..., object], functions[name])


def _parameters(path: str, make: Callable[..., object]) -> dict[str, object]:
    parameters = inspect.signature(make).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if any(p.kind not in named for p in parameters):
        raise SpaceError(
            f"space {path!r}: wanted a function with named parameters only, e.g. `def make(width=16)`"
        )
    return {p.name: p.default for p in parameters}


def _imported(source: str, path: str) -> ModuleType:
    """The module of a user's file or of a name; whatever goes wrong in it is told with the line."""
    try:
        with staying():
            return _from_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except SyntaxError as error:
        line = (error.text or "").strip()
        fault: BaseException = error
        words = f"syntax error in {error.filename}, line {error.lineno}: {line}"
    except FAULTS as error:
        fault, words = error, f"its file fails on import: {describe(error)}"
        if isinstance(error, ModuleNotFoundError) and f"{source}.".startswith(f"{error.name}."):
            file = f"{source.replace('.', '/')}.py:FUNCTION"
            words = f"no module {error.name!r} (from {Path.cwd()}); a file is named as {file}"
    raise SpaceError(f"space {path!r}: {words}") from fault


def _from_file(file: Path) -> ModuleType:
    name = f"nas_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None and spec.loader is not None  # its name ends in .py
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FAULTS:
        del sys.modules[name]
        raise
    return module
