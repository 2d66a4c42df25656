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

from nas.errors import FAULTS, ConfigError, NasError, SpaceError, describe, staying, unknown
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
    try:
        with staying():
            space = make(**resolved)
    except NasError:
        raise
    except FAULTS as error:
        raise SpaceError(f"space {path!r} failed: {describe(error)}") from error
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
        raise ConfigError(str(error).replace(f"space {path!r}", f"method {path!r}")) from error


def _function(path: str) -> Callable[..., object]:
    if not is_plugin(path):
        if path not in bundled():
            if path.endswith(".py"):
                raise SpaceError(
                    f"space {path!r} is a file; name the function in it, too, as FILE.py:FUNCTION"
                )
            hint = "; or give your own as FILE.py:FUNCTION or module:FUNCTION"
            raise SpaceError(unknown("search space", path, bundled()) + hint)
        return cast(Callable[..., object], getattr(importlib.import_module(f"{BUNDLED}.{path}"), path))
    source, _, name = path.rpartition(":")
    if not source or not name:
        raise SpaceError(f"space {path!r}: wanted FILE.py:FUNCTION or module:FUNCTION")
    with staying():
        module = _from_file(Path(source), path) if source.endswith(".py") else _from_module(source, path)
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


def _from_file(file: Path, path: str) -> ModuleType:
    if not is_file(file):
        raise SpaceError(
            f"space {path!r}: no file {file} (looked for {Path.cwd() / file}, from {Path.cwd()})"
        )
    name = f"nas_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    if spec is None or spec.loader is None:
        raise SpaceError(f"space {path!r}: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except FAULTS as error:
        del sys.modules[name]
        raise SpaceError(f"space {path!r}: {_import_failure(error)}") from error
    return module


def _from_module(name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise SpaceError(
                f"space {path!r}: no module {error.name!r} (from {Path.cwd()}); a file is named as "
                f"{name.replace('.', '/')}.py:FUNCTION"
            ) from error
        raise SpaceError(f"space {path!r}: {_import_failure(error)}") from error
    except FAULTS as error:
        raise SpaceError(f"space {path!r}: {_import_failure(error)}") from error


def _import_failure(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"syntax error in {error.filename}, line {error.lineno}: {(error.text or '').strip()}"
    return f"its file fails on import: {describe(error)}"
