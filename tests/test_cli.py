"""The command line: answers, messages, exit codes."""

import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from nas.__main__ import app
from nas.cli.app import warned
from nas.cli.checks import EXTRAS
from nas.run.config import Config

PYTHON = [sys.executable, "-c", "from nas.__main__ import main; main()"]


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_doctor_knows_every_extra():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    declared = tomllib.loads(text)["project"]["optional-dependencies"]
    names = {
        extra: tuple(re.match(r"[\w-]+", p)[0] for p in packages) for extra, packages in declared.items()
    }
    assert names.pop("dev") and names.pop("audit") and names == EXTRAS


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
    arguments = ["--space", f"{tmp_path}/s.py:make", "--method", "random"]
    arguments += ["--workers", "0", "--out", str(tmp_path / "run")]
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
        (
            ["--method", "random", "--no-baselines", "--deterministic", "--export", "--workers", "7"],
            {"baselines": False, "deterministic": True, "export": True, "workers": 7},
        ),
        (["--method", "random"], {"baselines": True, "export": False}),  # as the tests have it
        (
            ["--method=random", "--objective=val_acc", "--objective=-params", "--constraint=macs<=1e9"],
            {"objective": ("val_acc", "-params"), "constraint": ("macs<=1e9",)},
        ),
        (
            ["--method", "random", "--storage", "postgresql://me:secret@h/d"],
            {"storage": "postgresql+psycopg://me:***@h/d"},
        ),
        (["--method", "beta-darts", "--memory", "8GiB", "--no-guard"], {"memory": 8 * 2**30, "guard": False}),
        (["--method", "random", "--set", "seed=3"], {"seed": 3}),
    ],
)
def test_options_reach_a_search(monkeypatch, tmp_path, given, settings):
    (tmp_path / "c.toml").write_text("top_k_epochs = 3\nseed = 1\n")
    more = ["--config", tmp_path / "c.toml", "--out", tmp_path, "--force", "--seed", "2"]

    def listen(config, **named):
        raise Heard(config.model_dump(), named)

    monkeypatch.setattr("nas.run.pipeline.run_job", listen)
    config, named = call("search", *given, *more).exception.args
    wanted = {"seed": 2, "top_k_epochs": 3} | settings
    assert {name: config[name] for name in wanted} == wanted
    assert (named["out"], named["force"]) == (tmp_path, True)


def test_a_warning_is_told_without_the_source_that_gave_it(capsys):
    warned("is it\x1b[2J so?", UserWarning, "trial_search.py", 97)
    warned("old", DeprecationWarning, "x.py", 1)
    assert capsys.readouterr().err == "WARNING: is it\\x1b[2J so?\nWARNING: DeprecationWarning: old\n"
