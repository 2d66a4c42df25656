"""A bundle: every form is the scored model, and one that is not is refused."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import SMALL, Recorder, snapshot
from typer.testing import CliRunner

import nas
from nas.__main__ import app
from nas.errors import ConfigError, MismatchError
from nas.export.bundle import bundle, card, origin, record_of
from nas.export.formats import FILES, Pixels
from nas.export.verify import prove
from nas.files.folder import check_manifest, folder_lock

pytest.importorskip("onnxruntime", reason="the ONNX form needs the extra `onnx`")
pytest.importorskip("onnxscript", reason="the ONNX form needs the extra `onnx`")


@pytest.fixture(scope="module")
def task():
    return nas.load_task("digits", seed=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A finished search with its bundle."""
    settings = {**SMALL, "trials": 1, "retrain": {"epochs": 2}, "export": True}
    folder = tmp_path_factory.mktemp("runs") / "run"
    return nas.search("toy", "digits", "random", out=folder, settings=settings, progress=False)


@pytest.fixture
def result(exported, tmp_path):
    """The finished search in a folder that may be changed."""
    return replace(exported, folder=shutil.copytree(exported.folder, tmp_path / "copy"))


@pytest.fixture
def given(exported, task):
    """Eight images as forms take them, their labels, and the logits of the scored model."""
    pixels = task.test.x[:8].numpy().astype(np.float32) / 255
    return pixels, task.test.y[:8].numpy(), Pixels(exported.network, exported.inputs).logits(pixels)


def card_of(result):
    return (result.folder / "MODEL_CARD.md").read_text()


def test_the_card_says_what_was_trained_and_that_of_a_retraining_names_no_search(exported):
    written = card_of(exported)
    assert "the default architecture" in written, "as one trial of one epoch learns nothing"
    assert "flip False" in written, "a mirrored digit is another one"
    record = record_of(exported.folder) | {"architecture": list(exported.genotype)}
    metrics = {k: v for k, v in exported.metrics.items() if k not in ("search_seconds", "rerank_seconds")}
    text = card(replace(exported, metrics=metrics), record, [], [])
    assert not any(words in text for words in ("found by", "| search |", "search 0 s"))
    assert origin(record) == "trained again from scratch"


def test_names_cannot_break_out_of_the_card(exported):
    hostile = "<script>alert(1)</script> | `x` [a](b)\n# title"
    record = record_of(exported.folder)
    text = card(exported, record | {"space": record["space"] | {"name": hostile}}, [], [hostile])
    assert "<script>" not in text.replace("\\<script\\>", "") and "\n# title" not in text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nas.types\nfrom old import *\n", "source imports the engine"),
        ("import no_such_package\n", r"ModuleNotFoundError.*no_such_package"),
        ("import time\ntime.sleep(60)\n", "source did not end within 1 s"),
    ],
)
def test_a_form_that_does_not_run_alone_says_why(result, given, source, words):
    (result.folder / "old.py").write_text((result.folder / "model.py").read_text())
    here = f"import sys\nsys.path += [{str(result.folder)!r}, {str(Path(nas.__path__[0]).parent)!r}]\n"
    (result.folder / "model.py").write_text(here + source)
    limit_s = 1 if "sleep" in source else 60
    with pytest.raises(ConfigError, match=words):
        list(prove(result.folder, ["source"], *given, limit_s=limit_s))


def test_another_weight_is_another_model(result, given):
    (pixels, labels, _), changed = given, Pixels(result.network, result.inputs)
    with torch.no_grad():
        next(changed.network.parameters()).mul_(1.01)
    with pytest.raises(MismatchError, match=r"source: logits differ by .* so this form is not the model"):
        list(prove(result.folder, ["source"], pixels, labels, changed.logits(pixels)))


WITHOUT = """#!/bin/sh
shift
exec {python} -IB -c 'import runpy, sys
sys.modules.update(dict.fromkeys({lacks}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")' "$@"
"""


def test_every_interpreter_proves_what_it_has_the_packages_for(result, task, tmp_path, monkeypatch):
    """These are this one, and lack something."""
    monkeypatch.setattr("nas.export.bundle.write_forms", lambda *_, **__: ([*FILES], []))  # they are there
    pythons = {}
    for name, lacks in [
        ("first", ["onnxruntime"]),
        ("second", ["torch"]),
        ("third", ["torch", "onnxruntime"]),
    ]:
        pythons[name] = tmp_path / name
        pythons[name].write_text(WITHOUT.format(python=sys.executable, lacks=str(lacks).replace("'", '"')))
        pythons[name].chmod(0o755)
    told = []
    proofs = bundle(result, task, pythons=[pythons["first"], pythons["second"]], tell=told.append)
    assert [proof.form for proof in proofs] == ["source", "program", "onnx"]
    assert f"{pythons['first']} has no onnxruntime, so it leaves onnx" in told
    bundle(result, task, pythons=[pythons["second"]])
    assert "model.py was not run: no torch where the forms were run" in card_of(result)
    with pytest.raises(ConfigError, match="third can run no form; install onnxruntime and torch there"):
        bundle(result, task, pythons=[pythons["third"]])
    with pytest.raises(ConfigError, match="cannot be run"):
        bundle(result, task, pythons=[tmp_path / "none"])


def failing(error):
    def bundle(*_, **__):
        raise error

    return bundle


def test_a_form_that_cannot_be_written_leaves_a_note(result, task, monkeypatch):
    monkeypatch.setattr("nas.export.formats.write_source", failing(KeyError("mine")))
    monkeypatch.setattr("nas.export.formats.find_spec", lambda _: None)
    told = []
    assert [proof.form for proof in bundle(result, task, tell=told.append)] == ["program"]
    assert told[0].startswith("no model.py: KeyError: 'mine'")
    assert told[1].startswith("no model.onnx: it needs onnx, onnxscript, onnxruntime; pip install")
    assert not (result.folder / "model.py").exists() and not (result.folder / "model.onnx").exists()
    assert all(words in card_of(result).replace("\\", "") for words in told[:2])
    assert check_manifest(result.folder) == []


def found(folder, **settings):
    heard = Recorder()
    given = {name: value for name, value in SMALL.items() if name not in ("repeats", "top_k_epochs")}
    given |= {"trials": 1, "top_k": 1, "export": True} | settings
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


def test_an_export_waits_for_nobody_in_the_folder(exported):
    with folder_lock(exported.folder):
        done = CliRunner().invoke(app, ["export", str(exported.folder)])
    assert (done.exit_code, f"is in use by pid {os.getpid()}" in done.stderr) == (2, True)
