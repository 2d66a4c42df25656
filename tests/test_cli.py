"""The command line: answers, messages, exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from jobs import SMALL, options, snapshot
from typer.testing import CliRunner

import nas
from nas.__main__ import app
from nas.cli.app import ORDER, warned
from nas.cli.doctor import EXTRAS
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


def test_a_drawing_from_a_run_from_a_file_and_from_text(tmp_path):
    assert search(tmp_path / "run").exit_code == 0
    before = snapshot(tmp_path / "run")
    for i, source in enumerate((tmp_path / "run", tmp_path / "run" / "architecture.json")):
        assert call("draw", source, "--out", tmp_path / str(i)).exit_code == 0
        assert (tmp_path / str(i) / "cells.png").stat().st_size > 5000
    space = nas.load("darts", width=4, cells=3)
    long = space.notation.write(space.sample(np.random.default_rng(0)))
    assert len(long) > 255  # longer than the name of a file can be
    for name, text in (("nasbench201", CELL), ("darts", long)):
        assert call("draw", text, "--space", name, "--out", tmp_path / name).exit_code == 0
        assert (tmp_path / name / "cells.svg").is_file()
        done = call("draw", text, "--out", tmp_path)
        assert (done.exit_code, "needs --space" in done.stderr) == (2, True)
    done = call("draw", tmp_path / "run", "--space", "toy", "--out", tmp_path)
    assert (done.exit_code, "--space is for a genotype's text" in done.stderr) == (2, True)
    assert snapshot(tmp_path / "run") == before


def test_spaces_lists_every_space():
    shown, rows = call("spaces").stdout, json.loads(call("spaces", "--json").stdout)
    assert [row["name"] for row in rows] == ["convnet", "darts", "nasbench101", "nasbench201", "toy"]
    for row in rows:
        assert f"{row['name']:12}  {row['decisions']} decisions, {row['size']} architectures\n" in shown
        assert row["about"].endswith(".") and row["about"] in shown
    assert "settings: width=16  cells=5  stem_stride=1\n" in shown


def test_the_doctor_says_what_there_is_and_what_to_do_where_it_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("NAS_BENCHMARKS", str(tmp_path))
    (tmp_path / "nasbench101.npz").write_bytes(b"")

    def read(name):
        if name != "digits":
            raise nas.DataError(f"{name}: no folder of it; get it")
        return SimpleNamespace(x_train=range(1797))

    monkeypatch.setattr("nas.data.datasets.read", read)
    monkeypatch.setattr("nas.cli.doctor._installed", lambda package: package != "onnx")
    monkeypatch.setattr("torch.version.cuda", None)
    found = json.loads(call("doctor", "--json").stdout)
    assert found["devices"] == "cpu; auto takes cpu"
    assert found["gpu"].endswith("is built without CUDA; an NVIDIA GPU needs a build with it")
    assert found["task digits"] == "yes, 1,797 training images"
    assert found["task cifar10"] == "no: no folder of it; get it"
    assert found["table nasbench101"] == f"yes, {tmp_path / 'nasbench101.npz'}"
    assert found["table nasbench201"].startswith("no: no table nasbench201.csv.gz (looked for ")
    assert "onnx" not in found["extras"].split(", ") and "serve" in found["extras"].split(", ")
    assert found["extras lacking"] == "onnx (without onnx); e.g. pip install 'nas-engine[onnx]'"
    shown = call("doctor").stdout.splitlines()
    assert [line[:19].rstrip() for line in shown] == list(found)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpu = json.loads(call("doctor", "--json").stdout)["gpu"]
    assert "sees no GPU (does nvidia-smi?); CUDA_VISIBLE_DEVICES is ''" in gpu


def test_the_doctor_knows_every_extra():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    declared = tomllib.loads(text)["project"]["optional-dependencies"]
    names = {
        extra: tuple(re.match(r"[\w-]+", p)[0] for p in packages) for extra, packages in declared.items()
    }
    assert names.pop("dev") and names.pop("audit") and names == EXTRAS


def test_validate_says_what_a_space_costs_and_what_is_wrong(tmp_path):
    done = call("validate", "toy", "--set", "width=4")
    assert done.exit_code == 0, done.stderr
    assert "every check passed" in done.stdout
    assert "27 architectures" in done.stdout
    plugin = tmp_path / "bad.py"
    plugin.write_text(
        "import nas\nfrom torch import nn\n"
        "def make():\n"
        "    ops = {'a': lambda: nn.Conv2d(1, 4, 1), 'b': lambda: nn.Conv2d(1, 5, 1)}\n"
        "    def build(choose):\n"
        "        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)]\n"
        "        return nn.Sequential(choose.op('x', ops), *head)\n"
        "    return nas.Space('bad', build)\n"
    )
    done = call("validate", f"{plugin}:make")
    assert done.exit_code == 3
    assert "'x'" in done.stderr
    assert "(4, 5, 8, 8)" in done.stderr
    assert f"running your code: {plugin}:make" in done.stderr


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


def test_options_reach_a_retraining(monkeypatch, tmp_path):
    (tmp_path / "c.toml").write_text("[final_settings]\nwidth = 3\n")
    used = {"--task": "digits", "--out": tmp_path, "--space": "nasbench201", "--preset": "standard"}
    used |= {"--epochs": 7, "--seed": 7, "--config": tmp_path / "c.toml", "--mlflow": "sqlite:///runs.db"}
    given = [word for pair in (used | {"--set": "retrain.lr=0.5"}).items() for word in pair]
    got = heard(
        monkeypatch,
        "nas.run.pipeline.retrain",
        "retrain",
        CELL,
        *given,
        "--force",
        "--deterministic",
        "--no-graph",
    )
    assert (got[0]["notation"], got[1], got["out"], got["space"]) == (CELL, "digits", tmp_path, "nasbench201")
    assert got["force"]
    assert got["settings"] == {
        "task": "digits",
        "preset": "standard",
        "seed": "7",  # text, which is read by the setting's own type
        "deterministic": True,
        "graph": False,
        "mlflow": "sqlite:///runs.db",
        "retrain": {"epochs": 7, "lr": 0.5},
        "final_settings": {"width": 3},
    }


def test_the_command_alone_says_which_commands_there_are():
    done = subprocess.run(PYTHON, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and "Commands:" in done.stdout + done.stderr
    assert call("--version").stdout == f"nas-engine {nas.__version__}\n"
    listed = call("--help").stdout.partition("Commands:")[2]
    assert tuple(line.split()[0] for line in listed.splitlines() if line) == ORDER
    assert "..." not in listed  # all fit on 80 columns


def test_a_reader_that_has_had_enough_is_no_fault():
    with subprocess.Popen([*PYTHON, "--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_warning_is_told_without_the_source_that_gave_it(capsys):
    warned("is it\x1b[2J so?", UserWarning, "trial_search.py", 97)
    warned("old", DeprecationWarning, "x.py", 1)
    assert capsys.readouterr().err == "WARNING: is it\\x1b[2J so?\nWARNING: DeprecationWarning: old\n"
