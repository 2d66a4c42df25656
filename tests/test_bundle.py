"""A bundle: every form is the scored model, and one that is not is refused."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from jobs import SMALL, Recorder, snapshot
from typer.testing import CliRunner

import nas
from nas.cli import app
from nas.errors import ConfigError, MismatchError
from nas.export import verify
from nas.export.bundle import _written, bundle, record_of
from nas.export.formats import Pixels
from nas.export.model_card import _text, card, origin
from nas.export.verify import installed, pixels_of, prove
from nas.files.lock import FolderLock
from nas.files.manifest import check_manifest

pytest.importorskip("onnxruntime", reason="the ONNX form needs the extra `onnx`")
pytest.importorskip("onnxscript", reason="the ONNX form needs the extra `onnx`")


@pytest.fixture(scope="module")
def task():
    return nas.load_task("digits", seed=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, task):
    """A finished search with its bundle, and what was told of it."""
    folder, heard, proofs = tmp_path_factory.mktemp("runs") / "run", Recorder(), []
    settings = {**SMALL, "trials": 1, "retrain": {"epochs": 2}, "export": True, "pictures": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "nas.export.bundle.bundle", lambda *given, **named: proofs.extend(bundle(*given, **named))
        )
        result = nas.search("toy", "digits", "random", out=folder, settings=settings, progress=heard)
    return result, proofs, [note for note in heard.notes if note.startswith("export: ")][1:]


def test_every_form_is_the_scored_model(exported):
    result, proofs, told = exported
    assert [p.form for p in proofs] == ["source", "program", "onnx"]
    for p in proofs:
        assert p.difference < 1e-5
        assert p.changed == 0
        assert p.accuracy == pytest.approx(result.metrics["test_acc"], abs=1e-6)
        assert set(p.latency_ms) == {"1", "32"}
    assert len(told) == 3
    assert check_manifest(result.folder) == []
    names = {"model.py", "model.pt2", "model.onnx", "model.safetensors", "MODEL_CARD.md", "requirements.txt"}
    assert names <= json.loads((result.folder / "manifest.json").read_text())["files"].keys()
    assert names <= {path.name for path in result.folder.iterdir()}


def test_the_card_says_how_good_and_of_what(exported):
    result, _, _ = exported
    written = (result.folder / "MODEL_CARD.md").read_text()
    assert f"{result.metrics['test_acc']:.4f} (95 % interval" in written
    assert "fingerprint" in written and "Limits" in written
    assert "the default architecture" in written, "as one trial of one epoch learns nothing"
    assert "flip False" in written, "a mirrored digit is another one"
    assert "onnxruntime>=" in (result.folder / "requirements.txt").read_text()


def test_a_card_of_a_retraining_names_no_search(exported):
    result, proofs, _ = exported
    record = record_of(result.folder) | {"architecture": list(result.genotype)}
    metrics = {k: v for k, v in result.metrics.items() if k not in ("search_seconds", "rerank_seconds")}
    text = card(replace(result, metrics=metrics), record, proofs, [])
    assert "an architecture that was known, trained again from scratch (nas-engine" in text
    assert not any(words in text for words in ("found by", "| search |", "search 0 s"))
    assert "default architecture" in (result.folder / "model.py").read_text()
    assert origin(record) == "trained again from scratch"


def test_each_form_is_told_of_when_it_is_proven(exported, task, tmp_path, monkeypatch):
    result, _, _ = exported
    folder, pixels, begun, told = copied(result, tmp_path), pixels_of(task.test.x), [], []
    ran = verify._ran

    def watched(form, *given, **named):
        begun.append((form, len(told)))
        return ran(form, *given, **named)

    monkeypatch.setattr(verify, "_ran", watched)
    for found in prove(folder, ["source", "onnx"], pixels, task.test.y, logits(result, pixels)):
        told.append(found)
    assert begun == [("source", 0), ("onnx", 1)]


def test_names_cannot_break_out_of_the_card():
    hostile = "<script>alert(1)</script> | `x` [a](b)\n# title"
    assert "<script>" not in _text(hostile).replace("\\<script\\>", "")
    assert "\n" not in _text(hostile)


def copied(result, tmp_path):
    return shutil.copytree(result.folder, tmp_path / "copy")


def logits(result, pixels):
    with torch.no_grad():
        return Pixels(result.network, result.inputs)(pixels)


def test_another_weight_is_another_model(exported, task, tmp_path):
    result, _, _ = exported
    folder, pixels = copied(result, tmp_path), pixels_of(task.test.x)
    with torch.no_grad():
        changed = Pixels(result.network, result.inputs)
        next(changed.network.parameters()).mul_(1.01)
        wanted = changed(pixels)
    with pytest.raises(ConfigError, match=r"source: logits differ by .* so this form is not the model"):
        list(prove(folder, ["source"], pixels, task.test.y, wanted))


def test_a_form_that_imports_the_engine_is_refused(exported, task, tmp_path):
    result, _, _ = exported
    folder, pixels = copied(result, tmp_path), pixels_of(task.test.x[:8])
    source = folder / "model.py"
    source.write_text(source.read_text().replace("import torch\n", "import torch\nimport nas.types\n", 1))
    with pytest.raises(ConfigError, match="source imports the engine"):
        list(prove(folder, ["source"], pixels, task.test.y[:8], logits(result, pixels)))


def test_a_form_that_does_not_run_says_why(exported, task, tmp_path):
    result, _, _ = exported
    folder, pixels = copied(result, tmp_path), pixels_of(task.test.x[:8])
    (folder / "model.py").write_text("import no_such_package\n")
    with pytest.raises(ConfigError, match=r"ModuleNotFoundError.*no_such_package.*; install torch there"):
        list(prove(folder, ["source"], pixels, task.test.y[:8], logits(result, pixels)))


def test_other_images_are_not_what_was_scored(exported):
    result, _, _ = exported
    with pytest.raises(ConfigError, match="was scored on other images"):
        bundle(result, nas.load_task("digits", seed=0).reduced(100))


def test_a_form_that_mismatches_is_removed(exported, task, tmp_path, monkeypatch):
    result, _, _ = exported
    result = replace(result, folder=copied(result, tmp_path))
    monkeypatch.setattr("nas.export.bundle._written", lambda *_: (["source"], []))
    monkeypatch.setattr("nas.export.bundle.installed", lambda _: ["torch"])
    monkeypatch.setattr("nas.export.bundle.prove", failing(MismatchError("source: logits differ")))
    with pytest.raises(MismatchError, match="source: logits differ"):
        bundle(result, task)
    assert not [name for name in ("model.py", "MODEL_CARD.md") if (result.folder / name).exists()]
    assert check_manifest(result.folder) == []


def test_no_form_of_an_older_export_stays_and_the_card_says_so(exported, task, tmp_path, monkeypatch):
    result, _, _ = exported
    result = replace(result, folder=copied(result, tmp_path))
    monkeypatch.setattr("nas.export.bundle._written", lambda *_: ([], ["no model.py: why"]))
    bundle(result, task)
    assert not (result.folder / "model.onnx").exists() and check_manifest(result.folder) == []
    assert "No form could be written." in card_of(result) and "no model.py: why" in card_of(result)
    assert "from model import" not in card_of(result) and "| form |" not in card_of(result)


def test_damage_to_other_files_is_still_found_after_an_export(exported, tmp_path, task, monkeypatch):
    result, _, _ = exported
    result = replace(result, folder=copied(result, tmp_path))
    (result.folder / "cells.svg").write_text("damaged")
    monkeypatch.setattr("nas.export.bundle._written", lambda *_: ([], ["nothing"]))
    bundle(result, task)
    assert check_manifest(result.folder) == ["cells.svg: differs from what was recorded"]


def test_every_interpreter_proves_what_it_has_the_packages_for(exported, task, monkeypatch):
    result, proofs, _ = exported
    has = {"first": ["torch"], "second": ["onnxruntime"], "third": []}
    monkeypatch.setattr("nas.export.bundle._written", lambda *_: (["source", "program", "onnx"], []))
    monkeypatch.setattr("nas.export.bundle.installed", has.get)
    ran, told = [], []

    def run(folder, forms, *_, python, limit_s):
        ran.append((python, forms))
        assert limit_s >= 300
        return [p for p in proofs if p.form in forms]

    monkeypatch.setattr("nas.export.bundle.prove", run)
    assert bundle(result, task, pythons=["first", "second"], tell=told.append) == proofs
    assert ran == [("first", ["source", "program"]), ("second", ["onnx"])]
    assert told[0] == "first has no onnxruntime, so it leaves onnx"
    bundle(result, task, pythons=["second"])
    assert "model.py was not run: no torch where the forms were run" in card_of(result)
    with pytest.raises(ConfigError, match="third can run no form; install onnxruntime or torch there"):
        bundle(result, task, pythons=["third"])
    bundle(result, task, pythons=["first", "second"])  # as it was for the other tests


def card_of(result):
    return (result.folder / "MODEL_CARD.md").read_text()


def test_an_interpreter_is_asked_what_it_has(tmp_path):
    assert installed(sys.executable) == ["torch", "onnxruntime"]
    with pytest.raises(ConfigError, match="cannot be run"):
        installed(tmp_path / "none")
    with pytest.raises(ConfigError, match="no Python that runs"):
        installed("/bin/false")


def test_a_form_that_does_not_end_is_stopped(exported, task, tmp_path):
    result, _, _ = exported
    pixels = pixels_of(task.test.x[:8])
    (tmp_path / "model.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(ConfigError, match="source did not end within 1 s"):
        list(prove(tmp_path, ["source"], pixels, task.test.y[:8], logits(result, pixels), limit_s=1))


def found(folder, **settings):
    heard = Recorder()
    given = {**SMALL, "trials": 1, "top_k": 1, "seeds": None, "top_k_epochs": None, "export": True} | settings
    given = {name: value for name, value in given.items() if value is not None}
    return nas.search("toy", "digits", "random", out=folder, settings=given, progress=heard), heard.notes


def failing(error):
    def bundle(*_, **__):
        raise error

    return bundle


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


def test_a_missing_extra_leaves_out_onnx_and_says_how_to_install_it(exported, tmp_path, monkeypatch):
    result, _, _ = exported
    monkeypatch.setattr("nas.export.bundle._ONNX", ("no_such_package",))
    model = Pixels(result.network, result.inputs)
    forms, notes = _written(tmp_path, model, result, "title")
    assert forms == ["source", "program"]
    assert notes == ["no model.onnx: it needs no_such_package; pip install 'nas-engine[onnx]'"]


def test_code_that_cannot_be_traced_leaves_a_note(exported, tmp_path, monkeypatch):
    result, _, _ = exported
    monkeypatch.setattr("nas.export.bundle.exported", failing(KeyError("mine")))
    forms, notes = _written(tmp_path, Pixels(result.network, result.inputs), result, "title")
    assert forms == ["source"]
    assert notes[0].startswith("no model.pt2 and model.onnx: torch.export: KeyError")


def test_an_export_waits_for_nobody_in_the_folder(exported):
    result, _, _ = exported
    with FolderLock(result.folder):
        done = CliRunner().invoke(app, ["export", str(result.folder)])
    assert (done.exit_code, f"is in use by pid {os.getpid()}" in done.stderr) == (2, True)


def test_a_score_that_no_form_reaches_is_refused(exported, task, tmp_path, monkeypatch):
    result, proofs, _ = exported
    result = replace(result, folder=copied(result, tmp_path), metrics=dict(result.metrics))
    monkeypatch.setattr("nas.export.bundle.prove", lambda *_, **__: proofs)
    monkeypatch.setattr("nas.export.bundle._written", lambda *_: ([], []))
    monkeypatch.setitem(result.metrics, "test_acc", result.metrics["test_acc"] - 0.1)
    with pytest.raises(ConfigError, match="this is not the model that was scored"):
        bundle(result, task)


def test_tolerance_is_stated():
    assert verify.TOLERANCE <= 1e-4
