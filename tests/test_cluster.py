"""Workers started elsewhere: the commands that are handed to SLURM and Ray, and how a worker is stopped."""

import os
import sys

import pytest
from optuna.storages import InMemoryStorage

from nas.cli.worker import _home
from nas.cluster import on_ray, worker_command
from nas.cluster.slurm import SlurmWorker, Wishes, script, submit
from nas.cluster.worker_command import Worker, stop, worker_arguments
from nas.errors import ConfigError
from nas.storage.address import VARIABLE
from nas.workers import join

SECRET = "postgresql+psycopg://me:hunter2@db/nas"


def test_a_folder_is_named_by_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert worker_arguments("run", storage=None, study=None) == [str(tmp_path / "run")]


def test_a_password_stays_in_the_environment(monkeypatch):
    monkeypatch.setenv(VARIABLE, SECRET)
    found = worker_arguments(None, storage=None, study="s", space="a.py:f")
    assert found == [
        *("--storage", "postgresql+psycopg://me:***@db/nas", "--study", "s", "--space", "a.py:f"),
    ]


def test_a_launched_worker_takes_the_password_from_the_environment(monkeypatch):
    opened = []
    monkeypatch.setattr(join, "open_storage", lambda address: opened.append(address) or InMemoryStorage())
    monkeypatch.setenv(VARIABLE, SECRET)
    _, storage, _, study = worker_arguments(None, storage=None, study="run-12345678")
    home = join.home_at(storage, study)
    assert [address.secret for address in (*opened, home.address)] == [SECRET, SECRET]
    assert _home(None, None, study, None).address.secret == SECRET
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match=f"whose password is masked; .* environment variable {VARIABLE}"):
        join.home_at(storage, study)


@pytest.mark.parametrize(
    ("run", "storage", "study", "message"),
    [
        (None, None, None, "name the run's folder, or --study"),
        ("run", None, "s", "one of the two"),
        (None, None, "s", "--study needs --storage URL"),
        (None, SECRET, "s", "a password in --storage would stand in the list of processes"),
    ],
)
def test_what_cannot_be_launched_says_why(monkeypatch, run, storage, study, message):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=message) as caught:
        worker_arguments(run, storage=storage, study=study)
    assert "hunter2" not in str(caught.value)


# -- SLURM ---------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A machine with SLURM's commands, of which sbatch keeps what it is given."""
    pytest.importorskip("submitit")
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "srun").write_text("#!/bin/sh\n")
    (bin / "sbatch").write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/given\necho Submitted batch job 42\n')
    for command in bin.iterdir():
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    return tmp_path


def test_the_script_is_an_array_of_workers(tmp_path):
    pytest.importorskip("submitit")
    wishes = Wishes(minutes=60, gpus=2, memory_gb=32, at_once=4, partition="gpu", others={"qos": "high"})
    lines = script(["/runs/a"], 8, wishes, tmp_path).splitlines()
    wanted = {"array": "0-7%4", "time": "60", "gpus-per-node": "2", "mem": "32GB", "partition": "gpu",
              "qos": "high", "signal": "USR2@120"}  # fmt: skip
    assert {f"#SBATCH --{name}={value}" for name, value in wanted.items()} <= set(lines)
    assert any("-m nas worker /runs/a" in line for line in lines)


def test_an_array_is_submitted(slurm):
    numbers = submit(["/runs/a"], 3, Wishes(minutes=60), slurm / "logs")
    assert numbers == ["42_0", "42_1", "42_2"]
    given = (slurm / "given").read_text()
    assert "#SBATCH --array=0-2%3" in given and "#SBATCH --job-name=nas-worker" in given


def test_without_slurm_the_error_says_so(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="this machine has no SLURM"):
        submit(["/runs/a"], 1, Wishes(), tmp_path)


@pytest.mark.parametrize("wrong", [{"minutes": 2}, {"cpus": 0}, {"gpus": -1}, {"at_once": 0}])
def test_wishes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"launch: {next(iter(wrong))} is"):
        Wishes(**wrong)


class Saving(SlurmWorker):
    """A worker that says when it has begun, and saves when it is asked to stop."""

    program = (
        "import signal, sys, time\n"
        "def end(*_):\n    open(sys.argv[1] + '.saved', 'w').close()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\nopen(sys.argv[1], 'w').close()\ntime.sleep(60)\n"
    )

    @property
    def command(self):
        return [sys.executable, "-c", self.program, *self.arguments]


class Deaf(Saving):
    program = Saving.program.replace("signal.signal(signal.SIGTERM, end)", "signal.signal(15, 1)")


def begun(worker, path):
    worker._child = worker.start()
    while not path.exists():
        assert worker._child.poll() is None
    return worker._child


def test_a_worker_whose_time_is_over_saves_and_is_queued_again(tmp_path):
    pytest.importorskip("submitit")
    worker = Saving([str(tmp_path / "begun")])
    child = begun(worker, tmp_path / "begun")
    again = worker.checkpoint()
    assert child.returncode == 143
    assert (tmp_path / "begun.saved").exists()
    assert (again.function.arguments, type(again.function)) == (worker.arguments, Saving)


def test_a_worker_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_command, "GRACE_S", 0.2)
    child = begun(Deaf([str(tmp_path / "begun")]), tmp_path / "begun")
    stop(child)
    assert child.returncode == -9


def test_a_worker_has_what_it_needs_of_the_environment(monkeypatch):
    monkeypatch.setenv(VARIABLE, SECRET)
    assert on_ray.environment_of_workers([VARIABLE, "ABSENT"]) == {VARIABLE: SECRET}
    child = Worker(["--help"], {"NO_COLOR": "1"})
    assert child.command[1:] == ["-m", "nas", "worker", "--help"]


# -- Ray -----------------------------------------------------------------------------------------------------


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'nas-engine\[ray\]'"):
        on_ray.run(["/runs/a"], 1)


def test_workers_run_as_actors():
    pytest.importorskip("ray", reason="needs the extra `ray`")
    told = []
    assert on_ray.run(["--help"], 2, gpus=0, cpus=1, tell=told.append) == [0, 0]
    assert told[0].startswith("2 workers on Ray")
    with pytest.raises(ConfigError, match="a worker wants 1000 GPU, but Ray has 0"):
        on_ray.run(["--help"], 1, gpus=1000)


def test_a_worker_whose_time_is_over_before_it_was_started_is_queued_again():
    pytest.importorskip("submitit")
    worker = Saving(["nothing"])
    assert worker.checkpoint().function.arguments == worker.arguments
