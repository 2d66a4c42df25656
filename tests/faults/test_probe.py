"""How many workers to start: as many as pay, and as the memory bears."""

import io
import os
import sys

import pytest
import torch
from jobs import SMALL, Recorder

from nas.errors import WorkersError
from nas.job.config import make_config
from nas.job.preparation import prepare
from nas.job.run_folder import begin
from nas.workers import start
from nas.workers.probe import Crowd, SampleProcess, Tried, probe
from nas.workers.sample import Meter, memory, train_for_ever

GIB = 1 << 30


def machine(rates, *, each=GIB, total=100 * GIB):
    """Tries on a made-up machine: its steps a second by the number of workers."""

    def try_out(workers):
        asked.append(workers)
        if workers not in rates:
            raise WorkersError("no more can be started")
        return Tried(workers, rates[workers], each, total - workers * each)

    asked = []
    try_out.asked = asked
    return try_out


@pytest.mark.parametrize(
    ("rates", "most", "found", "asked"),
    [
        ({1: 10, 2: 19, 4: 35, 8: 36}, 64, 4, [1, 2, 4, 8]),
        ({1: 10, 2: 10.5}, 64, 1, [1, 2]),
        ({1: 10, 2: 19, 3: 28}, 3, 3, [1, 2, 3]),
        ({1: 10}, 1, 1, [1]),
        ({1: 10, 2: 19}, 64, 2, [1, 2, 4]),
        ({1: 10, 2: 19, 4: 12}, 64, 2, [1, 2, 4]),
    ],
)
def test_more_workers_must_pay(rates, most, found, asked):
    try_out, told = machine(rates), []
    assert probe(try_out, most=most, on_try=told.append) == found
    assert try_out.asked == asked
    assert [tried.workers for tried in told] == [n for n in asked if n in rates]
    assert str(told[0]) == "1 at a time: 10.0 steps/s"


def test_memory_bounds_the_workers_before_it_runs_out():
    rates = {n: 10.0 * n for n in (1, 2, 4, 8, 16)}
    assert probe(machine(rates, each=GIB, total=8 * GIB), most=64) == 4
    assert probe(machine(rates, each=5 * GIB, total=9 * GIB), most=64) == 1


def test_one_that_cannot_be_started_is_an_error():
    with pytest.raises(WorkersError):
        probe(machine({}), most=4)


def test_a_crowd_begins_together_and_shares_the_threads():
    log = []

    class Made:
        def __init__(self):
            self.name = sum(kind == "start" for kind, *_ in log)
            log.append(("start", self.name))

        def run(self, seconds, threads):
            log.append(("run", self.name, seconds, threads))

        def result(self):
            log.append(("result", self.name))
            return 5.0, 100 + self.name, 1000 - self.name

        def close(self):
            log.append(("close", self.name))

    with Crowd(Made, lambda n: 8 // n, seconds=2.0) as crowd:
        assert crowd(1) == Tried(1, 5.0, 100, 1000)
        log.clear()
        log.append(("start", 0))
        assert crowd(2) == Tried(2, 10.0, 101, 999)
    assert log == [
        ("start", 0),
        ("start", 1),
        ("run", 1, 0.0, 1),
        ("result", 1),
        ("run", 0, 2.0, 4),
        ("run", 1, 2.0, 4),
        ("result", 0),
        ("result", 1),
        ("close", 0),
        ("close", 1),
    ]


ECHO = """
import sys
for line in sys.stdin:
    seconds, threads = line.split()
    print(2 * float(seconds), int(threads), 7, flush=True)
"""


def test_a_sample_answers_every_line():
    sample = SampleProcess([sys.executable, "-c", ECHO], os.environ)
    for threads in (1, 2):
        sample.run(1.5, threads)
        assert sample.result() == (3.0, threads, 7)
    sample.close()


def test_a_sample_that_ends_says_why():
    sample = SampleProcess([sys.executable, "-c", "raise SystemExit('no such folder')"], os.environ)
    with pytest.raises(WorkersError, match="cannot be trained to find the number of workers: no such folder"):
        sample.result()
    sample._process.wait()
    with pytest.raises(WorkersError, match="no such folder"):
        for _ in range(2):
            sample.run(1.0, 1)
    sample.close()


def job(folder, **settings):
    config = make_config({"space": "toy", "method": "random"} | SMALL | settings)
    return prepare(config, folder, progress=Recorder())[0]


def test_the_candidate_is_trained_as_trials_are(tmp_path, monkeypatch, capsys):
    before = torch.get_num_threads()
    monkeypatch.setattr(sys, "stdin", io.StringIO("0.0 1\n0.05 1\n"))
    train_for_ever(job(tmp_path), Meter(torch.device("cpu")))
    torch.set_num_threads(before)
    ready, measured = (line.split() for line in capsys.readouterr().out.splitlines())
    assert float(ready[0]) == 0
    assert float(measured[0]) > 0
    assert 10 << 20 < int(measured[1]) < 64 * GIB
    assert int(measured[2]) > 0
    assert memory(torch.device("cpu"))[0] >= int(measured[1])


def test_the_number_of_workers_is_found_by_trying(tmp_path, monkeypatch):
    """With real processes, on two cores at most."""
    monkeypatch.setattr(start, "cores", lambda: 2)
    monkeypatch.setattr("nas.workers.probe.SECONDS", 0.2)
    asked = job(tmp_path, workers="auto")
    begin(tmp_path, asked.config, asked.plan, space=asked.space, task=asked.task, force=False)
    slots = start.job_slots(asked)
    assert len(slots) in (0, 2)
    notes = asked.progress.notes
    assert notes[0] == "trying how many workers this machine bears"
    assert notes[1].startswith("1 at a time: ") and notes[2].startswith("2 at a time: ")
    assert notes[-1] == f"workers: {max(1, len(slots))}"


def test_a_candidate_that_cannot_be_trained_leaves_one_worker(tmp_path):
    asked = job(tmp_path, workers="auto")  # there is no run in the folder
    assert start.job_slots(asked) == []
    assert any("holds no run" in note for note in asked.progress.notes)


def test_a_file_database_takes_one_worker(tmp_path):
    asked = job(tmp_path, workers="auto", storage=f"sqlite:///{tmp_path / 'x.db'}")
    assert start.job_slots(asked) == []
    assert any("takes no more" in note for note in asked.progress.notes)
    with pytest.raises(Exception, match="takes 1 worker, not 2"):
        start.job_slots(job(tmp_path, workers=2, storage=f"sqlite:///{tmp_path / 'x.db'}"))


def test_a_sample_that_hangs_is_killed():
    code = "import time; time.sleep(600)"
    sample = SampleProcess([sys.executable, "-c", code], os.environ, limit_s=0.2)
    with pytest.raises(WorkersError, match="cannot be trained to find the number of workers"):
        sample.result()
    sample.close()


def test_samples_are_ended_where_the_next_cannot_be_started():
    ended = []

    class Sleeping:
        def close(self):
            ended.append(self)

    def start():
        if len(started) == 2:
            raise WorkersError("no more")
        started.append(Sleeping())
        return started[-1]

    started = []
    with pytest.raises(WorkersError, match="no more"), Crowd(start, lambda _: 1) as crowd:
        crowd(4)
    assert ended == started and len(ended) == 2
    with pytest.raises(WorkersError, match="no process can be started to try a candidate: No such file"):
        SampleProcess(["/absent/program"], {})
