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
from nas.cli import app
from nas.cli.app import ORDER, warned
from nas.doctor import EXTRAS
from nas.files.lock import FolderLock
from nas.results.result import load_result

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


def test_a_quiet_search_says_its_result_and_what_went_wrong(tmp_path):
    loud = search(tmp_path / "loud")
    done = search(tmp_path / "run", "--quiet", "--constraint", "params<=1")
    assert done.exit_code == 0, done.stderr
    warnings = done.stderr.splitlines()
    unkept = "WARNING: no architecture keeps all constraints (max val_acc, params <= 1); the nearest is taken"
    assert unkept in warnings
    assert all(line.startswith("WARNING: ") for line in warnings)
    kinds = [[line.split("  ")[0] for line in text.stdout.splitlines()] for text in (done, loud)]
    assert set(kinds[0]) - {"baselines"} == set(kinds[1]) - {"baselines"}


def test_json_is_one_object_and_nothing_else(tmp_path):
    answer = json.loads(search(tmp_path / "run", "--json").stdout)
    assert answer["metrics"]["trials"] == 3
    assert set(answer["choices"]) == {"0->1", "0->2", "1->2"}
    assert len(json.loads(call("spaces", "--json").stdout)) == 5
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
        (["--method", "evolution", "--set", "searcher.tournament=60"], 2, "tournament is 60"),
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


def test_checking_what_is_no_run_says_so(tmp_path):
    done = call("check", tmp_path)
    assert done.stderr == f"error: {tmp_path} holds no finished run: there is no manifest.json in it\n"


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
    shown = call("spaces").stdout
    names = [line.split()[0] for line in shown.splitlines()[:15] if not line.startswith(" ")]
    assert names == ["convnet", "darts", "nasbench101", "nasbench201", "toy"]
    assert names == [row["name"] for row in spaces_as_json()]
    for row in spaces_as_json():
        assert f"{row['name']:12}  {row['decisions']} decisions, {row['size']} architectures\n" in shown
        assert row["about"].endswith(".") and row["about"] in shown
    assert (
        "6 decisions, 15,625 architectures" in shown
        and "settings: width=16  cells=5  stem_stride=1\n" in shown
    )
    assert "--set space_settings.NAME=VALUE" in shown


def spaces_as_json():
    return json.loads(call("spaces", "--json").stdout)


def test_the_doctor_says_what_there_is_and_what_to_do_where_it_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("NAS_BENCHMARKS", str(tmp_path))
    (tmp_path / "nasbench101.npz").write_bytes(b"")

    def read(name):
        if name != "digits":
            raise nas.DataError(f"{name}: no folder of it; get it")
        return SimpleNamespace(x_train=range(1797))

    monkeypatch.setattr("nas.doctor.datasets.read", read)
    monkeypatch.setattr("nas.doctor._installed", lambda package: package != "onnx")
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
    arguments = ["--space", f"{tmp_path}/s.py:make", "--method", "random", "--out", str(tmp_path / "run")]
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


@pytest.mark.parametrize("name", ["a\nb", "x" * 300, "file", "file/inside", "loop"])
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    done = search(tmp_path / name)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_a_folder_in_use_names_its_owner(tmp_path):
    with FolderLock(tmp_path):
        done = search(tmp_path)
    assert done.exit_code == 2
    assert f"in use by pid {os.getpid()} on host" in done.stderr
    assert f"to help it with its trials: nas worker {tmp_path}" in done.stderr


def test_a_folder_of_a_newer_version_is_refused(tmp_path):
    assert search(tmp_path).exit_code == 0
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record | {"format": 99}))
    done = search(tmp_path)
    assert (done.exit_code, "upgrade nas-engine" in done.stderr) == (2, True)


def test_changed_data_need_force(tmp_path):
    x, y = np.arange(60 * 64).reshape(60, 8, 8) % 251 / 251, np.arange(60) % 3
    data = ["--task", f"npz:{tmp_path / 'data.npz'}", "--set", "search_images=30"]
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y)
    assert search(tmp_path / "run", *data, "--set", "trial.lr=1e30").exit_code == 4
    np.savez(tmp_path / "data.npz", x_train=x[::-1], y_train=y[::-1])
    refused = search(tmp_path / "run", *data, "--set", "trial.lr=1e30")
    assert (refused.exit_code, "use --force" in refused.stderr) == (3, True)
    forced = search(tmp_path / "run", *data, "--set", "trial.lr=1e30", "--force")
    assert (forced.exit_code, "all 3 trials failed" in forced.stderr) == (4, True)


def test_a_downloaded_result_never_runs_its_plug_in(tmp_path):
    plugin = tmp_path / "evil.py"
    plugin.write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nfrom nas.spaces.toy import toy as make  # noqa\n"
    )
    sizes = ["--set", "space_settings.width=4", "--set", "retrain.epochs=1"]
    assert search(tmp_path / "run", space=f"{plugin}:make").exit_code == 0
    (tmp_path / "ran").unlink()
    assert call("draw", tmp_path / "run", "--out", tmp_path / "drawn").exit_code == 0
    arguments = ["retrain", tmp_path / "run", "--task", "digits", *sizes, "--out", tmp_path / "again"]
    refused = call(*arguments)
    assert (refused.exit_code, "name it with --space" in refused.stderr) == (2, True)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "again").exists()
    named = call(*arguments, "--space", f"{plugin}:make")
    assert (named.exit_code, (tmp_path / "ran").exists()) == (0, True)


def test_a_long_genotype_is_text_and_no_path(tmp_path):
    space = nas.load("darts", width=4, cells=3)
    text = space.notation.write(space.sample(np.random.default_rng(0)))
    assert len(text) > 255
    assert call("draw", text, "--space", "darts", "--out", tmp_path).exit_code == 0
    done = call("draw", text, "--out", tmp_path)
    assert (done.exit_code, "needs --space" in done.stderr) == (2, True)


def test_a_space_that_would_be_ignored_is_refused(tmp_path):
    assert search(tmp_path / "run").exit_code == 0
    done = call("draw", tmp_path / "run", "--space", "toy", "--out", tmp_path)
    assert (done.exit_code, "--space is for a genotype's text" in done.stderr) == (2, True)


class Heard(Exception):
    """What a command would have run."""


def heard(monkeypatch, module, name, *arguments):
    """The arguments with which a command calls its job."""

    def listen(*positional, **named):
        raise Heard({**dict(enumerate(positional)), **named})

    monkeypatch.setattr(f"nas.{module}.{name}", listen)
    called = call(*arguments).exception
    assert isinstance(called, Heard), called
    return called.args[0]


SEARCH = {
    "--space": "toy",
    "--task": "cifar10",
    "--method": "random",
    "--evaluator": "shared",
    "--preset": "standard",
    "--trials": 7,
    "--max-failures": 7,
    "--epochs": 7,
    "--budget": 7.0,
    "--workers": 7,
    "--top-k": 7,
    "--seed": 7,
    "--device": "cpu",
    "--execution": "plain",
    "--augment": "crop",
}


def options_of(command):
    return {name for option in typer.main.get_command(app).commands[command].params for name in option.opts}


def test_every_option_of_a_search_reaches_it(monkeypatch, tmp_path):
    (tmp_path / "c.toml").write_text("top_k_epochs = 3\n")
    others = ["--set", "retrain.epochs=7", "--config", tmp_path / "c.toml", "--out", tmp_path, "--force"]
    given = [word for pair in SEARCH.items() for word in pair]
    lists = {"--objective": ("val_acc", "-params"), "--constraint": ("params<=3e6", "macs<=1e9")}
    given += [word for name, texts in lists.items() for text in texts for word in (name, text)]
    switches = ("--no-baselines", "--deterministic", "--no-graph")
    got = heard(monkeypatch, "run.search_run", "run_job", "search", *given, *others, *switches)
    config = got[0].model_dump()
    assert {name: config[name.strip("-").replace("-", "_")] for name in SEARCH} == SEARCH
    assert {name: config[name.strip("-")] for name in lists} == lists
    assert (config["baselines"], config["deterministic"], config["graph"]) == (False, True, False)
    assert (config["retrain"], config["top_k_epochs"]) == ({"epochs": 7}, 3)
    assert (got["out"], got["force"]) == (tmp_path, True)
    assert options_of("search") == {
        *SEARCH,
        *lists,
        *others[::2],
        *(
            "--force",
            "--json",
            "--quiet",
            "--baselines",
            "--deterministic",
            "--export",
            "--graph",
            "--trial-timeout",
        ),
        *("--scheduler", "--fidelity", "--calibration", "--guard", "--selection", "--memory"),
        *("--storage", "--preview", "--yes"),
        *("--storage", "--tensorboard", "--mlflow"),
        *("--storage", "--exclude", "--audit"),
    } - {tmp_path}


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        (["--scheduler", "hyperband"], "scheduler", "hyperband"),
        (["--fidelity", "epochs=2,width=0.5"], "fidelity", "epochs=2,width=0.5"),
        (["--fidelity", "auto", "--calibration", "c"], "calibration", "c"),
        ([], "baselines", True),
        (["--no-export"], "export", False),
        (["--export"], "export", True),
        (["--exclude", "s.json:leak"], "exclude", "s.json:leak"),
        (["--audit"], "audit", True),
        (["--storage", "postgresql://me:secret@h/d"], "storage", "postgresql+psycopg://me:***@h/d"),
        (["--tensorboard", "auto"], "tensorboard", "auto"),
        (["--mlflow", "sqlite:///runs.db"], "mlflow", "sqlite:///runs.db"),
    ],
)
def test_options_of_trained_trials_reach_a_search(monkeypatch, given, field, value):
    got = heard(monkeypatch, "run.search_run", "run_job", "search", "--method", "evolution", *given)
    assert got[0].model_dump()[field] == value


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        (["--no-guard"], "guard", False),
        (["--selection", "perturbation"], "selection", "perturbation"),
        (["--memory", "8GiB"], "memory", 8 * 2**30),
        (["--method", "beta-darts"], "method", "beta-darts"),
    ],
)
def test_options_of_gradients_reach_a_search(monkeypatch, given, field, value):
    got = heard(monkeypatch, "run.search_run", "run_job", "search", *given)
    assert got[0].model_dump()[field] == value


def test_every_option_of_a_retraining_reaches_it(monkeypatch, tmp_path):
    (tmp_path / "c.toml").write_text("[final_settings]\nwidth = 3\n")
    text = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
    used = {"--task": "digits", "--out": tmp_path, "--space": "nasbench201", "--preset": "standard"}
    used |= {"--epochs": 7, "--seed": 7, "--device": "cpu", "--execution": "plain"}
    used |= {"--config": tmp_path / "c.toml", "--tensorboard": "events", "--mlflow": "sqlite:///runs.db"}
    used |= {"--exclude": "s.json", "--augment": "crop"}
    given = [word for pair in (used | {"--set": "retrain.lr=0.5"}).items() for word in pair]
    switches = ("--force", "--deterministic", "--no-graph", "--no-export")
    got = heard(monkeypatch, "run.retrain", "retrain", "retrain", text, *given, *switches)
    assert (got[0]["notation"], got[1], got["out"], got["space"]) == (text, "digits", tmp_path, "nasbench201")
    assert got["force"]
    assert got["settings"] == {
        "task": "digits",
        "preset": "standard",
        "seed": 7,
        "device": "cpu",
        "execution": "plain",
        "exclude": "s.json",
        "augment": "crop",
        "deterministic": True,
        "graph": False,
        "export": False,
        "tensorboard": "events",
        "mlflow": "sqlite:///runs.db",
        "retrain": {"epochs": 7, "lr": 0.5},
        "final_settings": {"width": 3},
    }
    assert options_of("retrain") == {
        *used,
        "source",
        "--set",
        "--force",
        "--json",
        "--quiet",
        "--deterministic",
        "--graph",
        "--export",
    }


def test_the_command_alone_says_which_commands_there_are():
    done = subprocess.run(PYTHON, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and "Commands:" in done.stdout + done.stderr


def test_the_version_and_commands_in_the_order_of_their_use():
    assert call("--version").stdout == f"nas-engine {nas.__version__}\n"
    listed = call("--help").stdout.partition("Commands:")[2]
    assert tuple(line.split()[0] for line in listed.splitlines() if line) == ORDER
    assert "..." not in listed  # all fit on 80 columns


def test_every_command_is_the_module_of_its_name():
    modules = {path.stem for path in Path(nas.cli.__file__).parent.glob("*.py")}
    assert modules == {"__init__", "app", "job", *ORDER}


def test_a_warning_is_told_without_the_source_that_gave_it(capsys):
    warned("is it\x1b[2J so?", UserWarning, "trial_search.py", 97, line="study = Study(")
    warned("old", DeprecationWarning, "x.py", 1)
    assert capsys.readouterr().err == "WARNING: is it\\x1b[2J so?\nWARNING: DeprecationWarning: old\n"


def test_help_is_quick():
    start = time.perf_counter()
    done = subprocess.run([*PYTHON, "--help"], capture_output=True, text=True, check=True)
    print(f"nas --help: {time.perf_counter() - start:.2f} s")
    assert "retrain" in done.stdout
