"""The journal: what is torn, damaged or full, and who may write."""

import errno
import multiprocessing
import os

import optuna
import pytest

from nas.errors import ConfigError, StorageError
from nas.searchers import RandomSearch
from nas.searchers.scheduler import Fixed
from nas.space.loading import load
from nas.study import storage as storages
from nas.study.storage import open_storage, patiently
from nas.study.study import Study

TOY = load("toy")


def make(path, **settings):
    return Study(TOY, Fixed(RandomSearch()), open_storage(path), name="s", seed=1, **settings)


def scored(trial, stream):
    return {"val_acc": stream.random()}


def timeless(history):
    return [(t.number, t.genotype, t.state, dict(t.metrics)) for t in history]


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_no_record_and_goes_with_the_next(tmp_path, cut):
    path, whole = tmp_path / "study.log", tmp_path / "whole.log"
    make(path).run(scored, trials=3)
    make(whole).run(scored, trials=5)
    content = path.read_bytes()
    path.unlink()  # whoever wrote it is gone
    path.write_bytes(content[:-cut])
    again = make(path)
    again.run(scored, trials=5)
    assert timeless(again.history) == timeless(make(path).history) == timeless(make(whole).history)
    assert all(line.endswith(b"\n") for line in path.read_bytes().splitlines(keepends=True))


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "study.log"
    make(path).run(scored, trials=3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b"{no json\n", *lines[5:]]))
    with pytest.raises(ConfigError, match=r"study.log, line 5 is damaged"):
        make(path)


def test_a_full_disk_leaves_the_history_as_it_was_and_is_waited_for(tmp_path, monkeypatch):
    path, times = tmp_path / "study.log", []
    study = make(path)
    study.run(scored, trials=2)
    real, before = os.fsync, path.read_bytes()

    def full(descriptor):
        times.append(len(times))
        if len(times) <= 2:
            assert path.read_bytes().startswith(before)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    study.run(scored, trials=4)
    assert len(times) > 2
    whole = make(tmp_path / "whole.log")
    whole.run(scored, trials=4)
    assert timeless(make(path).history) == timeless(whole.history)


def test_a_disk_that_stays_full_ends_the_study_and_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "study.log"
    make(path).run(scored, trials=2)
    with monkeypatch.context() as patched:

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left on device"):
            make(path, patience_s=0.1).run(scored, trials=4)
    again = make(path)
    assert again.ended == 2
    again.run(scored, trials=4)
    assert again.ended == 4


def write(path, told):
    make(path).run(scored, trials=1)
    told.put("written")
    told.close()
    told.join_thread()
    multiprocessing.Event().wait(60)


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    context = multiprocessing.get_context("fork")
    told, path = context.Queue(), tmp_path / "study.log"
    other = context.Process(target=write, args=(path, told))
    other.start()
    assert told.get(timeout=60) == "written"
    study = make(path)
    assert study.ended == 1  # anybody may read
    with pytest.raises(ConfigError, match=r"study.log is written by another process"):
        study.run(scored, trials=2)
    other.kill()
    other.join()
    make(path).run(scored, trials=2)


def test_what_was_written_although_the_storage_said_no_is_not_written_again(tmp_path, monkeypatch):
    """The connection was lost after the commit."""
    study = make(tmp_path / "study.log")
    real, calls = optuna.Study.add_trial, []

    def lost(self, trial):
        calls.append(trial)
        real(self, trial)
        if len(calls) == 1:
            raise storages.StorageInternalError("the server has gone away")

    monkeypatch.setattr(optuna.Study, "add_trial", lost)
    study.run(scored, trials=3)
    assert len(calls) == 3 and len(make(tmp_path / "study.log").history) == 3


def test_waiting_can_be_stopped():
    def away():
        raise OSError(errno.ENOSPC, "full")

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patiently(away, what="x", patience_s=60.0, stop=stop)
