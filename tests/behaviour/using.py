"""What these tests share: small settings, the command within this process, refusals, time limits."""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from unittest import mock

import pytest
import typer.main
from hostile import in_time

import nas
from nas.__main__ import main

TINY = {
    "trials": 2,
    "epochs": 2,
    "top_k": 1,
    "search_images": 100,
    "baselines": False,
    "retrain": {"epochs": 1},
    "export": False,
    "pictures": False,
}
"""Settings of a search of half a second on scikit-learn's digits."""
LEARNING = TINY | {"top_k": 2, "repeats": 1, "trials": 3, "epochs": 6, "trial": {"batch": 10, "lr": 0.2}}
"""The same with trials that are better than guessing."""
AS_OPTIONS = (
    *("--trials", "2", "--epochs", "1", "--top-k", "1", "--no-baselines", "--no-export"),
    *("--set", "search_images=100", "--set", "retrain.epochs=1", "--set", "pictures=false"),
)
"""The same for the command."""


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


_built = functools.cache(typer.main.get_command)
"""What parses a command line takes a tenth of a second to build, each time."""


def nas_command(*arguments):
    """Runs `nas ARGUMENTS` here, as its console script would; what it does not foresee is raised."""
    out, err, root = io.StringIO(), io.StringIO(), logging.getLogger()
    with contextlib.ExitStack() as changed:
        changed.enter_context(contextlib.redirect_stdout(out))
        changed.enter_context(contextlib.redirect_stderr(err))
        changed.enter_context(warnings.catch_warnings())
        changed.enter_context(mock.patch.object(sys, "argv", ["nas", *map(str, arguments)]))
        changed.enter_context(mock.patch.object(sys, "path", [*sys.path]))
        changed.enter_context(mock.patch.object(root, "handlers", []))
        changed.enter_context(mock.patch("typer.main.get_command", _built))
        changed.callback(root.setLevel, root.level)
        warnings.simplefilter("default")
        changed.enter_context(in_time(120))
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        else:
            code = 0
    return Said(code, out.getvalue(), err.getvalue())


def refused(call, *names, by=nas.NasError):
    """Asserts that a call is refused by the engine in words that name each of `names`; gives the words."""
    with in_time(), pytest.raises(by) as caught:
        call()
    words = str(caught.value)
    missing = [name for name in names if str(name) not in words]
    assert not missing, f"{words!r} does not name {missing}"
    assert len(words) < 5000
    return words


class Told:
    """Progress that remembers what it was told."""

    def __init__(self):
        self.phases, self.done, self.notes = [], [], []

    def phase(self, name, total, *, done=0):
        self.phases.append(name)

    def advance(self, text, *, done=None):
        self.done.append((self.phases[-1], text))

    def note(self, text):
        self.notes.append(text)


def begun(folder, *, space="toy", method="evolution", units=3, asks=0, settings=TINY):
    """A search that is stopped as by Ctrl-C, so many units of work and then questions after its beginning."""
    told, asked = Told(), itertools.count()
    with pytest.raises(nas.Stopped):
        nas.search(
            space,
            "digits",
            method,
            out=folder,
            settings=settings,
            progress=told,
            stop=lambda: len(told.done) >= units and next(asked) >= asks,
        )
    return folder


def rewrite_manifest(folder):
    """Records the files as they are now, as somebody with bad intentions would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


class Attack:
    """What unpickling it does: a folder is made."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)
