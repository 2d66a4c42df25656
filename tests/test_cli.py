"""The command line: answers, messages, exit codes."""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import typer
from jobs import SMALL, options, snapshot
from typer.testing import CliRunner

import nas
from nas.__main__ import app
from nas.cli.app import warned
from nas.cli.checks import EXTRAS
from nas.run.config import Config

PYTHON = [sys.executable, "-c", "from nas.__main__ import main; main()"]
CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def search(out, *more, space="toy", method="random"):
    return call("search", "--space", space, "--method", method, *options(SMALL), "--out", out, *more)


def test_a_search_prints_where_everything_is(tmp_path):
    done = search(tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    assert f"model        {tmp_path / 'run' / 'model.safetensors'}" in done.stdout
    assert "95 % interval" in done.stdout
    assert "search 3/3  trial 2: validation accuracy" in done.stderr
    assert "seed 0" in done.stderr
    before = snapshot(tmp_path / "run")
    other = search(tmp_path / "run", "--seed", "5")
    assert (other.exit_code, "seed: 0 in the folder, 5 now" in other.stderr) == (2, True)
    assert snapshot(tmp_path / "run") == before


def test_the_doctor_knows_every_extra():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    declared = tomllib.loads(text)["project"]["optional-dependencies"]
    names = {
        extra: tuple(re.match(r"[\w-]+", p)[0] for p in packages) for extra, packages in declared.items()
    }
    assert names.pop("dev") and names.pop("audit") and names == EXTRAS


def test_a_signal_saves_and_the_same_command_goes_on(tmp_path):
    settings = SMALL | {"trials": 400}
    command = [*PYTHON, "search", "--space", "nasbench201", "--method", "random", *options(settings)]
    command += ["--set", "space_settings.cells=1", "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stderr:
            if "trial 2:" in line:
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 143
    assert "the same command goes on from here" in rest
    history = nas.Study.read(tmp_path / "run", "search", nas.load("nasbench201", width=4, cells=1))
    assert 3 <= sum(trial.state == "done" for trial in history) < 400


HANGS = """
import signal
import time
import nas
from torch import nn

class Hang(nn.Module):
    def forward(self, x):
        if not x.is_meta:
            request = signal.getsignal(signal.SIGINT).__self__
            print("hanging", flush=True)
            while not request.number:
                time.sleep(0.01)
            print("asked", flush=True)
            time.sleep(60)
        return x

def make(classes=10):
    def build(choose):
        body = choose.op("body", {"a": Hang, "b": lambda: nn.Sequential(Hang(), Hang())})
        return nn.Sequential(body, nn.Flatten(), nn.Linear(64, classes))
    return nas.Space("hangs", build)
"""


def test_a_second_interrupt_does_not_wait_for_a_hanging_step(tmp_path):
    (tmp_path / "s.py").write_text(HANGS)
    arguments = [
        "--space",
        f"{tmp_path}/s.py:make",
        "--method",
        "random",
        "--workers",
        "0",
        "--out",
        str(tmp_path / "run"),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*PYTHON, "search", *arguments], **pipes) as process:
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        assert process.poll() is None
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 130
    assert time.perf_counter() - start < 30  # the step hangs for a minute
    assert "stopped at once; the same command goes on from the last checkpoint" in rest
    assert "Traceback" not in rest


class Heard(Exception):
    """What a command would have run."""


def heard(monkeypatch, target, *arguments):
    """The arguments with which a command calls its job."""

    def listen(*positional, **named):
        raise Heard({**dict(enumerate(positional)), **named})

    monkeypatch.setattr(target, listen)
    called = call(*arguments).exception
    assert isinstance(called, Heard), called
    return called.args[0]


def options_of(command):
    return {name for option in typer.main.get_command(app).commands[command].params for name in option.opts}


def test_every_setting_that_has_a_panel_is_an_option_of_a_search():
    panels = {
        name: (field.json_schema_extra or {}).get("panel") for name, field in Config.model_fields.items()
    }
    settings = {f"--{name.replace('_', '-')}" for name, panel in panels.items() if panel}
    others = {"--set", "--config", "--out", "--force", "--json", "--quiet", "--preview", "--yes"}
    assert options_of("search") == settings | others
    assert {"--space", "--trials", "--workers", "--memory", "--storage", "--executor"} < settings
    assert not settings & {"--retrain", "--searcher"}, "tables are given by --set"


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        (["--method", "evolution", "--scheduler", "hyperband"], {"scheduler": "hyperband"}),
        (
            ["--method", "random", "--no-baselines", "--deterministic"],
            {"baselines": False, "deterministic": True},
        ),
        (["--method", "random"], {"baselines": True, "export": False}),  # as the tests have it
        (["--method", "random", "--export", "--workers", "7"], {"export": True, "workers": 7}),
        (
            [
                "--method",
                "random",
                "--objective",
                "val_acc",
                "--objective",
                "-params",
                "--constraint",
                "macs<=1e9",
            ],
            {"objective": ("val_acc", "-params"), "constraint": ("macs<=1e9",)},
        ),
        (["--method", "random", "--tensorboard", "auto"], {"tensorboard": "auto"}),
        (
            ["--method", "random", "--storage", "postgresql://me:secret@h/d"],
            {"storage": "postgresql+psycopg://me:***@h/d"},
        ),
        (["--method", "beta-darts", "--memory", "8GiB", "--no-guard"], {"memory": 8 * 2**30, "guard": False}),
        (
            ["--method", "random", "--set", "retrain.epochs=7", "--set", "seed=3"],
            {"retrain": {"epochs": 7}, "seed": 3},
        ),
    ],
)
def test_options_reach_a_search(monkeypatch, tmp_path, given, settings):
    (tmp_path / "c.toml").write_text("top_k_epochs = 3\nseed = 1\n")
    more = ["--config", tmp_path / "c.toml", "--out", tmp_path, "--force", "--seed", "2"]
    got = heard(monkeypatch, "nas.run.pipeline.run_job", "search", *given, *more)
    config = got[0].model_dump()
    wanted = {"seed": 2, "top_k_epochs": 3} | settings
    assert {name: config[name] for name in wanted} == wanted
    assert (got["out"], got["force"]) == (tmp_path, True)


def test_the_command_alone_says_which_commands_there_are():
    done = subprocess.run(PYTHON, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and "Commands:" in done.stdout + done.stderr
    assert call("--version").stdout == f"nas-engine {nas.__version__}\n"
    listed = call("--help").stdout.partition("Commands:")[2]
    named = [line.split()[0] for line in listed.splitlines() if line]
    assert named[:2] == ["search", "retrain"] and {"predict", "export", "serve", "doctor"} < set(named)
    assert "..." not in listed  # all fit on 80 columns


def test_a_warning_is_told_without_the_source_that_gave_it(capsys):
    warned("is it\x1b[2J so?", UserWarning, "trial_search.py", 97)
    warned("old", DeprecationWarning, "x.py", 1)
    assert capsys.readouterr().err == "WARNING: is it\\x1b[2J so?\nWARNING: DeprecationWarning: old\n"
