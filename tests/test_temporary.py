"""What processes leave in the system's temporary directory when they are killed, and for how long."""

import fcntl
import multiprocessing
import multiprocessing.util
import os
import socket
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from killing import MODULES

from nas.bundle.proof import prove
from nas.classifier import _temporary
from nas.evaluation.evaluators import Trained
from nas.files import temporary as files_temporary
from nas.files.folders import prepare_folder
from nas.files.temporary import temporary_folder
from nas.job.config import Config
from nas.oneshot.fused.kernels import cubins
from nas.registry import load
from nas.speed.table import Row, fill
from nas.training.recipe import Recipe
from nas.types import Trial
from nas.workers.join import Home, _place

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(MODULES)
HANGING = "#!/bin/sh\nexec sleep 120\n"


def an_export(place):
    python = place / "python"
    python.write_text(HANGING)
    python.chmod(0o755)
    list(prove(place, ["source"], torch.zeros(1, 1, 2, 2), torch.zeros(1), torch.ones(1, 2), python=python))


def a_worker(_):
    with _place(Home(None), Config(space="toy"), None):
        time.sleep(120)


def a_trial(_):
    evaluator = Trained(
        load("toy"), None, Recipe(1, batch=8, lr=0.1, weight_decay=0.0), hopeless=lambda *_: False
    )
    with evaluator._place(Trial(0, (0,), 1)):
        time.sleep(120)


def a_classifier(_):
    owner = processes.Event()
    _temporary(owner)
    time.sleep(120)


def a_bench(place):
    fill({"row": Row("work", "-c 'import time; time.sleep(120)'")}, place, asked=["row"], more={})


def _there(temporary):
    return [path for path in temporary.iterdir() if path.is_dir()]


def _is_held(folder):
    """Whether a process has locked it; a moment ago it was made."""
    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def _using(use, temporary, place):
    tempfile.tempdir = str(temporary)
    use(place)


@contextmanager
def using(use, temporary, place):
    """A process that has a folder in the temporary directory, killed in the end."""
    process = processes.Process(target=_using, args=(use, temporary, place))
    process.start()
    try:
        while not any(map(_is_held, _there(temporary))):
            assert process.is_alive()
            time.sleep(0.01)
        yield
    finally:
        process.kill()
        process.join()
        # A child that was forked and has not begun its own program yet holds the lock for a moment more.
        end = time.monotonic() + 10
        while any(map(_is_held, _there(temporary))) and time.monotonic() < end:
            time.sleep(0.01)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The system's temporary directory."""
    multiprocessing.util.get_temp_dir()  # its own, for as long as all tests take
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.mark.parametrize("use", [an_export, a_worker, a_trial, a_classifier, a_bench])
def test_what_a_killed_process_left_goes_with_the_next_that_needs_a_folder(temporary, tmp_path, use):
    with using(use, temporary, tmp_path):
        (living,) = _there(temporary)
        with temporary_folder() as own:
            assert sorted(_there(temporary)) == sorted([living, own])
        assert _there(temporary) == [living]
    assert _there(temporary) == [living]
    with temporary_folder() as own:
        assert _there(temporary) == [own]
    assert _there(temporary) == []


def test_folders_of_others_and_links_are_left_alone(temporary, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    kept.mkdir()
    with temporary_folder() as own:
        name = own.name
    (temporary / name).symlink_to(kept)
    (temporary / f"{name}-file").touch()
    (temporary / "another").mkdir()
    (temporary / f"{name}-of-another").mkdir()
    before = sorted(temporary.iterdir())
    with monkeypatch.context() as patched:
        user = os.geteuid()
        patched.setattr(os, "geteuid", lambda: user + 1)
        with temporary_folder():
            pass
    assert sorted(temporary.iterdir()) == before
    with temporary_folder():
        pass
    assert sorted(set(before) - set(temporary.iterdir())) == [temporary / f"{name}-of-another"]
    assert kept.is_dir()


def test_folders_of_other_machines_are_left_alone_as_their_locks_may_not_be_seen(temporary, monkeypatch):
    with monkeypatch.context() as elsewhere:
        name = f"{socket.gethostname()}-2"
        elsewhere.setattr(socket, "gethostname", lambda: name)
        theirs = temporary / f"{files_temporary._prefix()}a1b2"
    theirs.mkdir()
    with temporary_folder() as own:
        assert sorted(_there(temporary)) == sorted([theirs, own])
    assert _there(temporary) == [theirs]


def test_a_folder_that_was_taken_for_one_left_behind_is_made_again(temporary, monkeypatch):
    """Another process may sweep between the making of a folder and its lock."""
    make, made = tempfile.mkdtemp, []

    def swept(**settings):
        made.append(Path(make(**settings)))
        if len(made) == 1:
            made[0].rmdir()
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", swept)
    with temporary_folder() as folder:
        assert folder == made[1] and folder.is_dir() and len(made) == 2


def test_nothing_is_left_where_files_have_no_names(tmp_path, monkeypatch):
    """A run's folder is tried by a file, and kernels are kept, without names that a killed process leaves."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for maker in ("mkstemp", "NamedTemporaryFile"):
        monkeypatch.setattr(tempfile, maker, lambda *_, **__: pytest.fail("a file with a name"))
    prepare_folder(tmp_path / "run")
    cubins.kept(["f"], lambda: cubins.Cubin(b"f", b"code"))
    assert [len(list(place.iterdir())) for place in (tmp_path / "run", tmp_path / "nas" / "cubins")] == [0, 1]
