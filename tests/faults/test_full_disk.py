"""A disk that is full, or fails, in the middle of a run: an error that says so, and nothing is lost."""

import errno
import multiprocessing
import os
import resource
from functools import partial

import numpy as np
import pytest
import torch
from jobs import SMALL, TINY, options, outcome
from killing import MODULES
from typer.testing import CliRunner

import nas
from nas.cli.app import app
from nas.errors import NasError, StorageError
from nas.evaluate.trained import Trained
from nas.files import atomic as files
from nas.files.atomic import storage_errors, write_bytes
from nas.files.folder import MANIFEST
from nas.results.result import load_result
from nas.run.pipeline import search
from nas.training.recipe import Recipe
from nas.types import Trial

DIGITS = nas.load_task("digits")
TASK = DIGITS.reduced(128)
TOY = nas.load("toy", width=4)
RECIPE = Recipe(epochs=2, batch=32, lr=0.05, weight_decay=1e-4)
DRAWN = {"pictures": True}  # pictures are files, too
METHODS = {"random": SMALL | DRAWN | {"trials": 2}, "darts": TINY | DRAWN | {"epochs": 2}}


class FailingDisk:
    """Lets so many files be written and then fails, as long as it is in use."""

    def __init__(self, monkeypatch, writes, error=errno.ENOSPC):
        self.left, self.error, self.refused = writes, error, []
        sync = files._sync

        def fail(path):
            if self.left <= 0:
                self.refused.append(path)
                raise OSError(self.error, os.strerror(self.error))
            self.left -= path.is_file()
            sync(path)

        monkeypatch.setattr(files, "_sync", fail)


def temporaries(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(files.TEMPORARY)]


def test_a_storage_error_is_an_error_of_both_kinds(tmp_path):
    with pytest.raises(StorageError) as caught, storage_errors(tmp_path / "a"):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert isinstance(caught.value, NasError) and isinstance(caught.value, OSError)
    assert caught.value.errno == errno.EDQUOT and caught.value.filename == str(tmp_path / "a")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free some space on"),
        (errno.EDQUOT, "a larger quota"),
        (errno.EROFS, "make / writable"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "check the file system"),
    ],
)
def test_every_fault_says_what_to_do_and_names_the_file(tmp_path, monkeypatch, number, words):
    monkeypatch.setattr(files.Path, "is_mount", lambda self: str(self) == "/")
    FailingDisk(monkeypatch, 0, number)
    with pytest.raises(StorageError) as caught:
        write_bytes(tmp_path / "a", b"x")
    for part in (f"cannot write {tmp_path / 'a'}", words, os.strerror(number), "saved before is whole"):
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_whatever_call_fails_the_trial_is_not_to_blame(tmp_path, monkeypatch, call):
    """A trial on a full disk has not failed; it goes on from the checkpoint that was kept."""
    measure = Trained(TOY, TASK, RECIPE, folder=tmp_path)
    whole = Trained(TOY, TASK, RECIPE)(Trial(0, (2, 0, 2), 2), np.random.default_rng(0))
    working, calls = getattr(os, call), 0

    def fail(*arguments, **settings):
        nonlocal calls
        calls += ".tmp-" in str(arguments[0]) or call == "fsync"
        if calls > 1 + (call == "fsync"):  # the first checkpoint is a file and its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        return working(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError, match=r"step-00000000\d-\w+\.safetensors: No space left on device"):
            measure(Trial(0, (2, 0, 2), 2), np.random.default_rng(0))
    assert not temporaries(tmp_path)
    assert measure(Trial(0, (2, 0, 2), 2), np.random.default_rng(0)) == whole
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    made = {}

    def whole(method):
        if method not in made:
            out = tmp_path_factory.mktemp(method)
            made[method] = outcome(search("toy", DIGITS, method, out=out, settings=METHODS[method]))
        return made[method]

    return whole


@pytest.mark.parametrize(("method", "writes"), [("random", 0), ("random", 11), ("random", 19), ("darts", 9)])
def test_a_job_whose_disk_fills_up_goes_on_when_there_is_space(tmp_path, monkeypatch, wholes, method, writes):
    """Configuration, checkpoints, results, manifest: whichever file is the first that does not fit."""
    expected = wholes(method)
    run = partial(search, "toy", DIGITS, method, out=tmp_path, settings=METHODS[method])
    with monkeypatch.context() as patch:
        FailingDisk(patch, writes)
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            run()
    assert not (tmp_path / MANIFEST).exists() and not temporaries(tmp_path)
    result = run()
    assert not [t for t in result.history if t.state == "failed"]
    assert outcome(result) == expected
    assert outcome(load_result(tmp_path)) == expected


def limited(out, limit):
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    arguments = ["search", "--space", "toy", "--method", "random", *options(METHODS["random"])]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert "Traceback" not in result.output, result.output
    assert "error: cannot write" in result.output and "File too large" in result.output, result.output
    raise SystemExit(result.exit_code)


@pytest.mark.parametrize("limit", [3_000, 12_000])
def test_a_real_limit_of_the_system_ends_a_job_that_can_be_resumed(tmp_path, wholes, limit):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    process = context.Process(target=limited, args=(tmp_path, limit))
    process.start()
    process.join()
    assert process.exitcode == 5
    assert not temporaries(tmp_path)
    result = search("toy", "digits", "random", out=tmp_path, settings=METHODS["random"])
    assert outcome(result) == wholes("random")
