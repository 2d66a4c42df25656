"""The command line: answers, messages, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from jobs import SMALL, options, snapshot
from typer.testing import CliRunner

import nas
from nas.cli import app
from nas.result import load_result

PYTHON = [sys.executable, "-c", "from nas.cli import main; main()"]


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


def test_json_is_one_object_and_nothing_else(tmp_path):
    answer = json.loads(search(tmp_path / "run", "--json").stdout)
    assert answer["metrics"]["trials"] == 3
    assert set(answer["choices"]) == {"0->1", "0->2", "1->2"}
    assert len(json.loads(call("spaces", "--json").stdout)) == 3
    assert json.loads(call("doctor", "--json").stdout)["devices"].startswith("cpu")
    assert json.loads(call("validate", "toy", "--json").stdout)["space"] == "toy"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--space", "dart"], 3, "no search space 'dart'; did you mean 'darts'?"),
        (["--task", "digit"], 2, "did you mean 'digits'?"),
        (["--method", "evolve"], 2, "no method 'evolve'; did you mean 'evolution'?"),
        (["--preset", "fast"], 2, "no preset 'fast'"),
        (["--epochs", "0"], 2, "epochs is 0"),
        (["--trials", "5", "--method", "darts"], 2, "trials is set, but method 'darts'"),
        (["--device", "cuda:7"], 2, "no device 'cuda:7'; this machine has cpu"),
        (["--seed", "-1"], 2, "seed is -1"),
        (["--budget", "soon"], 2, "wanted a time"),
        (["--set", "retrain.learning_rate=1"], 2, "no recipe setting 'learning_rate'"),
        (["--set", "retrain"], 2, "wanted KEY=VALUE"),
        (["--config", "missing.toml"], 2, "no config file missing.toml"),
        (["--task", "npz:missing.npz"], 3, "missing.npz"),
        (["--space", "missing.py:make"], 3, "no file missing.py"),
        (["--method", "evolution", "--set", "evolution.tournament=60"], 2, "tournament is 60"),
    ],
)
def test_bad_input_is_one_message_before_anything_starts(arguments, code, words, tmp_path):
    given = {"--space": "toy", "--method": "random"}
    defaults = [word for key, value in given.items() if key not in arguments for word in (key, value)]
    done = call("search", *defaults, *arguments, "--out", tmp_path / "run")
    assert done.exit_code == code, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith(("error: ", "running your code"))
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_option_names_the_nearest():
    done = call("search", "--trails", "3")
    assert done.exit_code == 2
    assert "--trials" in done.stderr


def test_options_come_before_the_file_and_set_before_both(tmp_path):
    (tmp_path / "c.toml").write_text("seed = 1\nepochs = 1\ntop_k = 3\n[retrain]\nepochs = 2\n")
    arguments = ["--config", tmp_path / "c.toml", "--seed", "2", "--set", "retrain.epochs=1"]
    done = call(
        "search", "--space", "toy", "--method", "random", "--trials", "1", *arguments,
        "--set", "search_images=200", "--set", "top_k=1", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["seed"], config["epochs"], config["top_k"], config["retrain"]) == (2, 1, 1, {"epochs": 1})


def test_another_setting_in_the_same_folder_is_refused_with_the_difference(tmp_path):
    assert search(tmp_path / "run").exit_code == 0
    before = snapshot(tmp_path / "run")
    done = search(tmp_path / "run", "--seed", "5")
    assert done.exit_code == 2
    assert "seed: 0 in the folder, 5 now" in done.stderr
    assert snapshot(tmp_path / "run") == before


def test_every_trial_diverging_ends_with_a_diagnosis(tmp_path):
    done = search(tmp_path / "run", "--set", "trial.lr=1e30")
    assert done.exit_code == 4
    assert "nan" in done.stderr
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_drawing_from_a_run_from_a_file_and_from_text(tmp_path):
    found = search(tmp_path / "run")
    assert found.exit_code == 0
    before = snapshot(tmp_path / "run")
    for i, source in enumerate((tmp_path / "run", tmp_path / "run" / "architecture.json")):
        assert call("draw", source, "--out", tmp_path / str(i)).exit_code == 0
        assert (tmp_path / str(i) / "cells.png").stat().st_size > 5000
    text = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
    assert call("draw", text, "--space", "nasbench201", "--out", tmp_path / "text").exit_code == 0
    assert (tmp_path / "text" / "cells.svg").is_file()
    assert snapshot(tmp_path / "run") == before
    done = call("draw", "nothing here")
    assert done.exit_code == 2
    assert "needs --space" in done.stderr


def test_a_retraining_from_the_command_line(tmp_path):
    text = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
    sizes = ["--set", "space_settings.width=4", "--set", "space_settings.cells=1"]
    done = call(
        "retrain", text, "--space", "nasbench201", "--task", "digits", "--epochs", "1",
        *sizes, "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["retrain_epochs"] == 1
    assert load_result(tmp_path / "run").space.notation.write(load_result(tmp_path / "run").genotype) == text


def test_spaces_lists_every_space():
    lines = call("spaces").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["darts", "nasbench201", "toy"]
    assert "15,625" in lines[1]


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_goes_on(number, code, tmp_path):
    settings = SMALL | {"trials": 400}
    command = [*PYTHON, "search", "--space", "nasbench201", "--method", "random", *options(settings)]
    command += ["--set", "space_settings.cells=1", "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stderr:
            if "trial 2:" in line:
                break
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == code
    assert "the same command goes on from here" in rest
    history = nas.Study.read(tmp_path / "run", "search", nas.load("nasbench201", width=4, cells=1))
    assert 3 <= sum(trial.state == "done" for trial in history) < 400


def test_help_is_quick():
    start = time.perf_counter()
    done = subprocess.run([*PYTHON, "--help"], capture_output=True, text=True, check=True)
    print(f"nas --help: {time.perf_counter() - start:.2f} s")
    assert "retrain" in done.stdout
