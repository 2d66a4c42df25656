"""Damaged journals: the damage is found wherever it is, and repaired without mixing up trials."""

import itertools
import json
import os
import random
import re
import threading
import time

import optuna
import pytest
from typer.testing import CliRunner

import nas.storage.repair as module
from nas.cli import app
from nas.errors import ConfigError, TrialError
from nas.files.folder_lock import FolderLock
from nas.registry import load
from nas.schedulers.scheduler import Fixed
from nas.searchers import RandomSearch
from nas.storage.journal import JOURNAL, journal_storage
from nas.storage.repair import repair
from nas.study import Study

CELLS = load("nasbench201")
NAMES = ("search", "random")


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def measure(trial, stream):
    if trial.number == 2:
        raise TrialError("oom", "out of memory")
    return {"val_acc": sum(trial.genotype) / 30 + 0.01 * stream.random()}


def study(path, name="search", *, announce=True):
    return Study(CELLS, Fixed(RandomSearch()), journal_storage(path), name=name, seed=3, announce=announce)


def make(folder, *, trials, announce):
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        study(folder / JOURNAL, name, announce=announce).run(measure, trials=trials)
    return folder / JOURNAL


def histories(path):
    return {name: [told(t) for t in study(path, name).history] for name in NAMES}


def told(trial):
    return trial.number, trial.genotype, trial.state, dict(trial.metrics), trial.reason


@pytest.fixture(scope="module", params=[True, False], ids=["announced", "whole"])
def original(request, tmp_path_factory):
    path = make(tmp_path_factory.mktemp("original"), trials=12, announce=request.param)
    return path.read_bytes(), histories(path), request.param


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    path = tmp_path_factory.mktemp("short") / JOURNAL
    storage = journal_storage(path)
    made = optuna.create_study(storage=storage, study_name="s")
    distribution = optuna.distributions.CategoricalDistribution(("a", "b"))
    made.add_trial(optuna.create_trial(params={"x": "a"}, distributions={"x": distribution}, value=0.5))
    made.tell(made.ask({"x": distribution}), 0.25)
    return path.read_bytes(), content(path)


def content(path):
    storage = journal_storage(path)
    trials = storage.get_all_trials(0)
    names = [study.study_name for study in storage.get_all_studies()]
    return names, [(t.number, t.state, t.params, t.values, t.datetime_start) for t in trials]


def damage_of(path):
    with pytest.raises(ConfigError, match="is damaged at byte") as caught:
        journal_storage(path)
    return int(re.search(r"at byte (\d+)", str(caught.value))[1])


# -- finding it -----------------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_byte_is_found_or_harmless(short, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # thousands of them
    whole, history = short
    path, bits = tmp_path / JOURNAL, random.Random(0)
    starts = [0, *itertools.accumulate(len(line) for line in whole.splitlines(keepends=True))]
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bits.randrange(8)
        path.write_bytes(damaged)
        try:
            assert content(path) == history, f"byte {place}: another history"
        except ConfigError as error:
            offset = re.search(r"damaged at byte (\d+)", str(error))
            if offset is None:
                assert "does not begin with" in str(error) and place == 0
            else:
                assert int(offset[1]) in starts and int(offset[1]) <= place


def test_a_lost_or_repeated_or_exchanged_line_is_found(short, tmp_path):
    lines = short[0].splitlines(keepends=True)
    path = tmp_path / JOURNAL
    for number in range(1, len(lines) - 1):
        start = len(b"".join(lines[:number]))
        path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
        assert damage_of(path) == start
        path.write_bytes(b"".join(lines[: number + 1] + lines[number:]))
        assert damage_of(path) == start + len(lines[number])
        path.write_bytes(b"".join([*lines[:number], lines[number + 1], lines[number], *lines[number + 2 :]]))
        assert damage_of(path) == start


def test_the_message_says_how_to_repair_it(short, tmp_path):
    (tmp_path / JOURNAL).write_bytes(short[0].replace(b"op_code", b"oops_co", 2))
    with pytest.raises(ConfigError, match=rf"`nas repair {tmp_path}` saves the records before and after"):
        journal_storage(tmp_path / JOURNAL)


# -- repairing it ---------------------------------------------------------------------------------------


def test_a_whole_journal_is_left_alone(original, tmp_path):
    (tmp_path / JOURNAL).write_bytes(original[0])
    report = repair(tmp_path)
    assert report.original is None and report.records == original[0].count(b"\n")
    assert report.lines() == [f"{tmp_path / JOURNAL} is whole: {report.records} records"]
    assert (tmp_path / JOURNAL).read_bytes() == original[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.lock", JOURNAL]


def test_a_flipped_bit_costs_nothing(short, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    whole, history = short
    path, bits = tmp_path / JOURNAL, random.Random(1)
    for place in [*range(0, len(whole), 23), *(i for i, byte in enumerate(whole) if byte == ord("\n"))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bits.randrange(8)
        path.write_bytes(damaged)
        report = repair(tmp_path)
        assert content(path) == history and not report.losses and not report.affected
        assert path.read_bytes() == whole or report.original is None
        if report.original is not None:
            assert report.original.read_bytes() == damaged
            report.original.unlink()


def test_each_damaged_file_is_kept(short, tmp_path):
    whole = short[0]
    for number in (1, 2):
        (tmp_path / JOURNAL).write_bytes(b"garbage\n" * number + whole)
        report = repair(tmp_path)
        assert report.original == tmp_path / f"{JOURNAL}.damaged-{number}"
        assert report.original.read_bytes() == b"garbage\n" * number + whole
        assert (tmp_path / JOURNAL).read_bytes() == whole


def survives(path, original, *, announce):
    """No trial has another's outcome, and the searches can be brought to their end."""
    for name in NAMES:
        found = study(path, name, announce=announce).history
        for trial in found:
            assert trial.number < len(original[name])
            if trial.state == "done" or (trial.state == "failed" and not trial.reason.startswith("lost")):
                assert told(trial) == original[name][trial.number]
        again = study(path, name, announce=announce)
        again.run(measure, trials=12)
        assert [t.number for t in again.history] == list(range(12))
        assert all(t.state != "running" for t in again.history)


def test_a_lost_block_costs_the_trials_in_it_only(original, tmp_path):
    whole, before, announce = original
    path = tmp_path / JOURNAL
    middle = len(whole) // 3
    path.write_bytes(whole[:middle] + b"\0" * 2000 + whole[middle + 2000 :])
    damage_of(path)
    report = repair(tmp_path)
    assert sum(loss.size for loss in report.losses) >= 2000 and report.affected
    after = histories(path)
    assert after["random"] == before["random"]
    same = [a == b for a, b in zip(after["search"], before["search"], strict=True)]
    assert sum(same) in range(6, 12)
    assert str(report.original) in report.lines()[-1] and "lost at byte" in report.lines()[1]
    survives(path, before, announce=announce)


@pytest.mark.parametrize("seed", range(25))
def test_no_damage_mixes_up_trials(original, tmp_path, seed):
    whole, before, announce = original
    path, draw = tmp_path / JOURNAL, random.Random(seed)
    data = bytearray(whole)
    # What begins the studies stands first; it is damaged in another test.
    head = whole.index(b'{"op_code":4,')
    for _ in range(draw.randrange(1, 4)):
        start, size = draw.randrange(head, len(data)), draw.choice([1, 3, 50, 700, 3000])
        match draw.randrange(4):
            case 0:
                del data[start : start + size]
            case 1:
                data[start : start + size] = draw.randbytes(min(size, len(data) - start))
            case 2:
                data[start:start] = data[start : start + size]
            case 3:
                data[start : start + size] = b""
                data[start:start] = b"\0" * size
    path.write_bytes(data)
    repair(tmp_path)
    survives(path, before, announce=announce)


def test_a_lost_line_of_the_beginning_keeps_the_other_studies(original, tmp_path):
    whole, before, _ = original
    lines = whole.splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"#" * 50 + b"\n" + b"".join(lines[1:]))
    report = repair(tmp_path)
    assert report.affected == ["the record that began study 'lost-0' is lost; it is taken to maximise"]
    assert [told(t) for t in study(tmp_path / JOURNAL, "random").history] == before["random"]
    assert [told(t) for t in study(tmp_path / JOURNAL, "lost-0").history] == before["search"]


def test_a_torn_line_that_was_written_on_is_taken_apart(short, tmp_path):
    whole, history = short
    lines = whole.splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:-1], lines[0][:40], lines[-1]]))
    report = repair(tmp_path)
    assert content(tmp_path / JOURNAL) == history
    assert [(loss.size, loss.records) for loss in report.losses] == [(40, 0)]


def without_seals(data):
    return re.sub(rb',"seal":"[^"]*"', b"", data)


def test_an_older_journal_is_repaired_too(original, tmp_path):
    whole, before, announce = original
    lines = without_seals(whole).splitlines(keepends=True)
    path = tmp_path / JOURNAL
    path.write_bytes(b"".join(lines))
    assert histories(path) == before and repair(tmp_path).original is None
    number = next(i for i, line in enumerate(lines) if line.startswith(b'{"op_code":4,') and i > 8)
    lines[number] = lines[number][:60] + b"\xff" + lines[number][61:]
    path.write_bytes(b"".join(lines))
    report = repair(tmp_path)
    assert [loss.records for loss in report.losses] == [1] and len(report.affected) == 1
    survives(path, before, announce=announce)


def test_an_older_journal_is_continued_with_seals(original, tmp_path):
    whole, before, announce = original
    path = tmp_path / JOURNAL
    path.write_bytes(without_seals(whole))
    study(path, "random", announce=announce).run(measure, trials=13)
    assert path.read_bytes().count(b'"seal"') == (3 if announce else 1)
    assert histories(path)["random"][:12] == before["random"]
    assert repair(tmp_path).original is None


def test_records_of_other_programs_are_taken_as_they_are(original, tmp_path):
    path = tmp_path / JOURNAL
    path.write_bytes(original[0])
    stock = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    stock.set_study_user_attr(0, "note", "by a dashboard")
    study(path, announce=original[2]).run(measure, trials=13)
    assert len(study(path).history) == 13
    assert study(path).optuna_study.user_attrs["note"] == "by a dashboard"
    assert repair(tmp_path).original is None


def test_a_run_in_progress_is_left_alone(short, tmp_path):
    (tmp_path / JOURNAL).write_bytes(b"garbage\n" + short[0])
    with FolderLock(tmp_path), pytest.raises(ConfigError, match=f"pid {os.getpid()}"):
        repair(tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == b"garbage\n" + short[0]


def test_an_empty_journal_and_none(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no journal, study\.log; a history in a database"):
        repair(tmp_path)
    (tmp_path / JOURNAL).touch()
    assert repair(tmp_path).records == 0
    (tmp_path / JOURNAL).write_bytes(b"\0" * 5000)
    assert repair(tmp_path).records == 0
    assert (tmp_path / JOURNAL).read_bytes() == b""


def test_a_link_to_a_journal_elsewhere_is_refused(short, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"garbage\n" + short[0])
    (tmp_path / "run" / JOURNAL).symlink_to("../elsewhere")
    with pytest.raises(ConfigError, match="symbolic link"):
        repair(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "run"]
    assert (tmp_path / "elsewhere").read_bytes() == b"garbage\n" + short[0]


def test_the_command(short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / JOURNAL).write_bytes(b"garbage\n" + short[0])
    done = CliRunner().invoke(app, ["repair", "."])
    assert done.exit_code == 0 and "lost at byte 0: no record, 8 bytes" in done.output
    done = CliRunner().invoke(app, ["repair", str(tmp_path), "--json"])
    assert json.loads(done.output)["original"] is None
    done = CliRunner().invoke(app, ["repair", "absent"])
    assert done.exit_code == 2 and "absent holds no journal" in done.output


def test_a_worker_that_has_joined_writes_to_the_new_journal_or_is_told_to_start_again(tmp_path, monkeypatch):
    """Such a worker holds no lock on the folder: what it writes meanwhile must not go to the old file."""
    path = make(tmp_path / "run", trials=6, announce=True)
    near, far = study(path), study(path)
    far.run(measure, trials=8)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-1], b"#\n"]))
    replace = module._replace
    telling = threading.Thread(target=near.storage.set_study_user_attr, args=(0, "a", 1))

    def slow(path, records):
        telling.start()
        time.sleep(0.1)
        return replace(path, records)

    monkeypatch.setattr(module, "_replace", slow)
    assert repair(path.parent).original is not None
    telling.join()
    assert study(path).optuna_study.user_attrs["a"] == 1
    with pytest.raises(ConfigError, match="start this process again"):
        far.sync()
