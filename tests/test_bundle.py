"""A bundle: every form is the scored model, and one that is not is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import SMALL, Recorder, snapshot
from nas.export.model_card import card, origin
from typer.testing import CliRunner

import nas
from nas.__main__ import app
from nas.errors import ConfigError, MismatchError
from nas.export.bundle import bundle, record_of
from nas.export.formats import Pixels
from nas.export.verify import TOLERANCE, installed, prove
from nas.files.folder import check_manifest, folder_lock

pytest.importorskip("onnxruntime", reason="the ONNX form needs the extra `onnx`")
pytest.importorskip("onnxscript", reason="the ONNX form needs the extra `onnx`")


@pytest.fixture(scope="module")
def task():
    return nas.load_task("digits", seed=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A finished search with its bundle, and what was told of it."""
    folder, heard = tmp_path_factory.mktemp("runs") / "run", Recorder()
    settings = {**SMALL, "trials": 1, "retrain": {"epochs": 2}, "export": True}
    result = nas.search("toy", "digits", "random", out=folder, settings=settings, progress=heard)
    return result, [note for note in heard.notes if note.startswith("export: ")][1:]


@pytest.fixture
def result(exported, tmp_path):
    """The finished search in a folder that may be changed."""
    return replace(exported[0], folder=shutil.copytree(exported[0].folder, tmp_path / "copy"))


@pytest.fixture
def given(exported, task):
    """Eight images as forms take them, their labels, and the logits of the scored model."""
    pixels = task.test.x[:8].numpy().astype(np.float32) / 255
    model = Pixels(exported[0].network, exported[0].inputs)
    return pixels, task.test.y[:8].numpy(), model.logits(pixels)


def card_of(result):
    return (result.folder / "MODEL_CARD.md").read_text()


def test_every_form_is_the_scored_model(exported):
    result, told = exported
    assert [line.split(": ")[1] for line in told] == ["source", "program", "onnx"]
    for line in told:
        difference = re.search(r"differ by at most (\S+) of the largest", line)[1]
        assert float(difference) < 1e-5 < TOLERANCE <= 1e-4
        assert "0 classes differ" in line and f"accuracy {result.metrics['test_acc']:.4f};" in line
        assert "ms for 1 image" in line and "ms for 32" in line
    assert check_manifest(result.folder) == []
    names = {"model.py", "model.pt2", "model.onnx", "model.safetensors", "MODEL_CARD.md", "requirements.txt"}
    assert names <= json.loads((result.folder / "manifest.json").read_text())["files"].keys()


def test_the_card_says_how_good_and_of_what(exported):
    result, _ = exported
    written = card_of(result)
    assert f"{result.metrics['test_acc']:.4f} (95 % interval" in written
    assert "fingerprint" in written and "Limits" in written
    assert "the default architecture" in written, "as one trial of one epoch learns nothing"
    assert "flip False" in written, "a mirrored digit is another one"
    assert "onnxruntime>=" in (result.folder / "requirements.txt").read_text()
    tables = [line.count("|") for line in written.splitlines() if line.startswith("| ")]
    assert set(tables) == {3, 9}, "every row has the columns of its table"


def test_a_card_of_a_retraining_names_no_search(exported):
    result, _ = exported
    record = record_of(result.folder) | {"architecture": list(result.genotype)}
    metrics = {k: v for k, v in result.metrics.items() if k not in ("search_seconds", "rerank_seconds")}
    text = card(replace(result, metrics=metrics), record, [], [])
    assert "an architecture that was known, trained again from scratch (nas-engine" in text
    assert not any(words in text for words in ("found by", "| search |", "search 0 s"))
    assert "default architecture" in (result.folder / "model.py").read_text()
    assert origin(record) == "trained again from scratch"


def test_names_cannot_break_out_of_the_card(exported):
    hostile = "<script>alert(1)</script> | `x` [a](b)\n# title"
    record = record_of(exported[0].folder)
    text = card(exported[0], record | {"space": record["space"] | {"name": hostile}}, [], [hostile])
    assert "<script>" not in text.replace("\\<script\\>", "") and "\n# title" not in text


def test_another_weight_is_another_model(result, given, task, monkeypatch):
    pixels, labels, _ = given
    changed = Pixels(result.network, result.inputs)
    with torch.no_grad():
        next(changed.network.parameters()).mul_(1.01)
    with pytest.raises(MismatchError, match=r"source: logits differ by .* so this form is not the model"):
        list(prove(result.folder, ["source"], pixels, labels, changed.logits(pixels)))
    monkeypatch.setattr("nas.export.bundle._written", lambda *_: (["source"], []))
    metrics = dict(result.metrics) | {"test_acc": result.metrics["test_acc"] - 0.1}
    with pytest.raises(MismatchError, match="this is not the model that was scored"):
        bundle(replace(result, metrics=metrics), task)
    left = {path.name for path in result.folder.iterdir()}
    assert not left & {"model.py", "model.pt2", "model.onnx", "MODEL_CARD.md"}
    assert check_manifest(result.folder) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nas.types\nfrom old import *\n", "source imports the engine"),
        ("import no_such_package\n", r"ModuleNotFoundError.*no_such_package.*; install torch there"),
        ("import time\ntime.sleep(60)\n", "source did not end within 5 s"),
    ],
)
def test_a_form_that_does_not_run_alone_says_why(result, given, source, words):
    (result.folder / "old.py").write_text((result.folder / "model.py").read_text())
    here = f"import sys\nsys.path += [{str(result.folder)!r}, {str(Path(nas.__path__[0]).parent)!r}]\n"
    (result.folder / "model.py").write_text(here + source)
    limit_s = 5 if "sleep" in source else 60
    with pytest.raises(ConfigError, match=words):
        list(prove(result.folder, ["source"], *given, limit_s=limit_s))


def test_other_images_are_not_what_was_scored(exported, task):
    with pytest.raises(ConfigError, match="was scored on other images"):
        bundle(exported[0], task.reduced(100))


def test_no_form_of_an_older_export_stays_and_other_damage_is_still_found(result, task, monkeypatch):
    (result.folder / "architecture.graphml").write_text("damaged")
    monkeypatch.setattr("nas.export.bundle._written", lambda *_: ([], ["no model.py: why"]))
    bundle(result, task)
    assert not (result.folder / "model.onnx").exists()
    assert "No form could be written." in card_of(result) and "no model.py: why" in card_of(result)
    assert "from model import" not in card_of(result) and "| form |" not in card_of(result)
    assert check_manifest(result.folder) == ["architecture.graphml: differs from what was recorded"]


def test_every_interpreter_proves_what_it_has_the_packages_for(result, task, tmp_path, monkeypatch):
    """An interpreter is asked what it has; these are this one, and say that they lack something."""
    monkeypatch.setattr("nas.export.bundle._written", lambda *_: (["source", "program", "onnx"], []))
    pythons = {}
    for name, has in (("first", "torch"), ("second", "onnxruntime"), ("third", "")):
        pythons[name] = tmp_path / name
        pythons[name].write_text(f'#!/bin/sh\n[ "$2" = -c ] && exec echo {has}\nexec {sys.executable} "$@"\n')
        pythons[name].chmod(0o755)
    told = []
    both = bundle(result, task, pythons=[pythons["first"], pythons["second"]], tell=told.append)
    assert [proof.form for proof in both] == ["source", "program", "onnx"]
    assert told[0] == f"{pythons['first']} has no onnxruntime, so it leaves onnx"
    bundle(result, task, pythons=[pythons["second"]])
    assert "model.py was not run: no torch where the forms were run" in card_of(result)
    with pytest.raises(ConfigError, match="third can run no form; install onnxruntime or torch there"):
        bundle(result, task, pythons=[pythons["third"]])
    assert installed(sys.executable) == ["torch", "onnxruntime"]
    with pytest.raises(ConfigError, match="cannot be run"):
        installed(tmp_path / "none")
    with pytest.raises(ConfigError, match="no Python that runs"):
        installed("/bin/false")


def failing(error):
    def bundle(*_, **__):
        raise error

    return bundle


@pytest.mark.parametrize(
    ("broken", "form", "words"),
    [
        ("write_source", "model.py", "no model.py: KeyError: 'mine'"),
        ("exported", "model.pt2", "no model.pt2 and model.onnx: torch.export: KeyError: 'mine'"),
        ("write_onnx", "model.onnx", "no model.onnx: torch.onnx.export: KeyError: 'mine'"),
    ],
)
def test_a_form_that_cannot_be_written_leaves_a_note(  # noqa: PLR0917 - fixtures and parameters
    result, task, monkeypatch, broken, form, words
):
    monkeypatch.setattr(f"nas.export.bundle.{broken}", failing(KeyError("mine")))
    monkeypatch.setattr("nas.export.bundle._proven", lambda *_, **__: [])
    told = []
    bundle(result, task, tell=told.append)
    assert words in told[0] and not (result.folder / form).exists()


def test_a_missing_extra_leaves_out_onnx_and_says_how_to_install_it(result, task, monkeypatch):
    monkeypatch.setattr("nas.export.bundle._ONNX", ("no_such_package",))
    monkeypatch.setattr("nas.export.bundle._proven", lambda *_, **__: [])
    told = []
    bundle(result, task, tell=told.append)
    assert told[0] == "no model.onnx: it needs no_such_package; pip install 'nas-engine[onnx]'"


def found(folder, **settings):
    heard = Recorder()
    given = SMALL | {"trials": 1, "top_k": 1, "export": True} | settings
    given = {name: value for name, value in given.items() if name not in ("seeds", "top_k_epochs")}
    return nas.search("toy", "digits", "random", out=folder, settings=given, progress=heard), heard.notes


def test_a_search_succeeds_without_a_bundle_and_its_command_adds_it(tmp_path, monkeypatch):
    monkeypatch.setattr("nas.export.bundle.bundle", failing(ConfigError("export: no room")))
    result, notes = found(tmp_path / "run")
    assert "WARNING: no bundle: export: no room. The run is finished and whole; nas export" in notes[-1]
    assert result.metrics["test_acc"] > 0 and check_manifest(tmp_path / "run") == []
    before = snapshot(tmp_path / "run")
    calls = []
    monkeypatch.setattr("nas.export.bundle.bundle", lambda *given, **_: calls.append(given[0].folder))
    found(tmp_path / "run", export=False)
    assert calls == []
    found(tmp_path / "run")
    assert calls == [result.folder]
    assert snapshot(tmp_path / "run") == before


def test_a_mismatch_fails_the_search_and_leaves_the_run_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("nas.export.bundle.bundle", failing(MismatchError("export: onnx differs")))
    with pytest.raises(MismatchError, match=r"onnx differs.*is finished and whole"):
        found(tmp_path / "run")
    assert nas.load_result(tmp_path / "run").metrics["test_acc"] > 0


def test_a_bundle_is_the_default_of_a_search():
    code = "from nas.run.config import Config; print(Config().export)"  # not as the tests have it
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_an_export_waits_for_nobody_in_the_folder(exported):
    with folder_lock(exported[0].folder):
        done = CliRunner().invoke(app, ["export", str(exported[0].folder)])
    assert (done.exit_code, f"is in use by pid {os.getpid()}" in done.stderr) == (2, True)
