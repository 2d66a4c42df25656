"""The commands around a search: help, what machine and engine offer, an architecture trained again."""

import json
import subprocess
import sys
import time

import numpy as np
from using import AS_OPTIONS, nas_command, refused

import nas

COMMANDS = (
    *("search", "retrain", "predict", "report", "draw", "export", "serve", "dashboard", "check"),
    *("validate", "audit", "calibrate", "benchmark", "spaces", "doctor"),
)


def test_every_command_says_what_it_is_for():
    said = nas_command("--help")
    assert said.code == 0
    assert not [command for command in COMMANDS if command not in said.out]
    for command in COMMANDS:
        help_ = nas_command(command, "--help")
        assert help_.code == 0
        assert "Options" in help_.out
    version = nas_command("--version")
    assert nas.__version__ in version.out


def test_help_and_a_finished_folder_are_told_without_waiting_for_torch(runs, command):
    """`import nas` and help do not load it, which takes seconds."""
    code = "import sys, nas, nas.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    begin = time.monotonic()
    said = command("check", runs("spos"), code=0)
    assert time.monotonic() - begin < 20
    assert str(runs("spos")) in said.stdout


def test_what_the_doctor_says_is_of_this_machine():
    told = json.loads(nas_command("doctor", "--json").out)
    import torch

    assert told["torch"] == torch.__version__
    assert told["python"] == sys.version.split()[0]
    assert "cpu" in told["devices"]
    assert told["task digits"].startswith("yes")
    assert "digits" in nas_command("doctor").out


def test_every_space_that_is_listed_can_be_loaded_and_is_as_large_as_said():
    told = json.loads(nas_command("spaces", "--json").out)
    assert {row["name"] for row in told} >= {"darts", "nasbench101", "nasbench201", "toy"}
    for row in told:
        space = nas.load(row["name"])
        assert len(space.decisions) == row["decisions"]
        assert set(row["settings"]) <= set(space.settings)
    sizes = {row["name"]: row["size"] for row in told}
    assert sizes["toy"] == "27"
    assert sizes["nasbench201"] == "15,625"


def test_a_sound_space_is_valid_and_its_cost_is_told():
    said = nas_command("validate", "toy", "--set", "width=4", "--json")
    assert said.code == 0, said.err
    told, space = json.loads(said.out), nas.load("toy", width=4)
    sizes = {sum(p.numel() for p in space.network(g).parameters()) for g in space.enumerate()}
    assert {told["params"][name] for name in ("least", "median", "most")} <= sizes
    assert told["params"]["least"] <= told["params"]["median"] <= told["params"]["most"]
    assert told["params"]["least"] < told["params"]["most"]
    assert told["macs"]["most"] > told["macs"]["least"] > 0
    assert told["size"]["count"] == 27
    assert [decision["name"] for decision in told["decisions"]] == [d.name for d in space.decisions]


def test_a_search_says_its_result_as_json_and_nothing_else(tmp_path):
    asked = ["--space", "toy", "--method", "random", *AS_OPTIONS, "--out", tmp_path / "run"]
    told = json.loads(nas_command("search", *asked, "--json").out)
    result = nas.load_result(tmp_path / "run")
    assert told["metrics"] == result.metrics
    assert told["choices"] == result.space.choices(result.genotype)
    again = nas_command("search", *asked, "--json")
    assert again.code == 0
    assert json.loads(again.out) == told


def test_quiet_means_that_only_the_result_is_said(tmp_path):
    asked = ["--space", "toy", "--method", "random", *AS_OPTIONS]
    loud = nas_command("search", *asked, "--out", tmp_path / "loud")
    quiet = nas_command("search", *asked, "--out", tmp_path / "quiet", "--quiet")
    assert (loud.code, quiet.code) == (0, 0)
    assert "seed" in loud.err
    assert len(quiet.err.splitlines()) < len(loud.err.splitlines())
    assert "seed" not in quiet.err
    assert str(tmp_path / "quiet") in quiet.out


def test_settings_of_a_file_count_and_the_command_line_comes_first(tmp_path):
    (tmp_path / "job.toml").write_text(
        "space = 'toy'\nmethod = 'random'\ntrials = 2\nepochs = 2\ntop_k = 1\nbaselines = false\n"
        "search_images = 100\nexport = false\npictures = false\n[retrain]\nepochs = 1\nlr = 0.03\n"
    )
    asked = ["--config", tmp_path / "job.toml", "--epochs", "1", "--set", "retrain.lr=0.02"]
    said = nas_command("search", *asked, "--out", tmp_path / "run")
    assert said.code == 0, said.err
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert settings["trials"] == 2
    assert settings["epochs"] == 1
    assert settings["retrain"] == {"epochs": 1, "lr": 0.02}
    result = nas.load_result(tmp_path / "run")
    assert {trial.fidelity for trial in result.history} == {1}
    written = tmp_path / "run" / "config.toml"
    repeated = nas_command("search", "--config", written, "--out", tmp_path / "again")
    assert repeated.code == 0, repeated.err
    assert nas.load_result(tmp_path / "again").genotype == result.genotype


def test_an_architecture_is_trained_again_from_a_folder_a_file_or_its_name_in_the_field(runs, tmp_path):
    folder, digits = runs("spos"), nas.load_task("digits").test
    found = nas.load_result(folder)
    np.savez(tmp_path / "few.npz", x_train=digits.x[:200, 0].numpy(), y_train=digits.y[:200].numpy())
    asked = ["--task", f"npz:{tmp_path}/few.npz", "--epochs", "1", "--no-export", "--json"]
    text = found.space.notation.write(found.genotype)
    sources = {"folder": [folder], "file": [folder / "architecture.json"]}
    sources["text"] = [text, "--space", "nasbench201", "--set", "space_settings.width=4"]
    sources["text"] += ["--set", "space_settings.cells=1"]
    for name, source in sources.items():
        said = nas_command("retrain", *source, *asked, "--out", tmp_path / name)
        assert said.code == 0, said.err
        assert json.loads(said.out)["choices"] == found.space.choices(found.genotype)
        again = nas.load_result(tmp_path / name)
        assert again.genotype == found.genotype
        assert again.metrics["params"] == found.metrics["params"]
    weights = [nas.load_result(tmp_path / name).network.state_dict() for name in ("folder", "file")]
    assert all(bool((weights[0][key] == weights[1][key]).all()) for key in weights[0])
    refused(lambda: nas.retrain({"space": "toy"}, "digits", out=tmp_path / "none"))


def test_a_finished_run_passes_its_check(runs):
    assert nas_command("check", runs("spos")).code == 0
