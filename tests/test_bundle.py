"""A bundle: every form is the scored model, and one that is not is refused."""

import json
import shutil

import pytest
import torch
from jobs import SMALL

import nas
from nas.bundle import proof
from nas.bundle.bundle import bundle
from nas.bundle.card import _text
from nas.bundle.forms import Pixels
from nas.bundle.proof import pixels_of, prove
from nas.errors import ConfigError
from nas.files import check_manifest

pytest.importorskip("onnxruntime", reason="the ONNX form needs the extra `onnx`")
pytest.importorskip("onnxscript", reason="the ONNX form needs the extra `onnx`")


@pytest.fixture(scope="module")
def task():
    return nas.load_task("digits", seed=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, task):
    """A finished run with its bundle, and what was told of it."""
    folder, told = tmp_path_factory.mktemp("runs") / "run", []
    settings = {**SMALL, "trials": 1, "retrain": {"epochs": 2}}
    result = nas.search("toy", "digits", "random", out=folder, settings=settings)
    return result, bundle(result, task, tell=told.append), told


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
    assert names <= json.loads((result.folder / "manifest.json").read_text()).keys() | names
    assert names <= {path.name for path in result.folder.iterdir()}


def test_the_card_says_how_good_and_of_what(exported):
    result, _, _ = exported
    card = (result.folder / "MODEL_CARD.md").read_text()
    assert f"{result.metrics['test_acc']:.4f} (95 % interval" in card
    assert "fingerprint" in card and "Limits" in card
    assert "onnxruntime>=" in (result.folder / "requirements.txt").read_text()


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
        prove(folder, ["source"], pixels, task.test.y, wanted)


def test_a_form_that_imports_the_engine_is_refused(exported, task, tmp_path):
    result, _, _ = exported
    folder, pixels = copied(result, tmp_path), pixels_of(task.test.x[:8])
    source = folder / "model.py"
    source.write_text(source.read_text().replace("import torch\n", "import torch\nimport nas.types\n", 1))
    with pytest.raises(ConfigError, match="source imports the engine"):
        prove(folder, ["source"], pixels, task.test.y[:8], logits(result, pixels))


def test_a_form_that_does_not_run_says_why(exported, task, tmp_path):
    result, _, _ = exported
    folder, pixels = copied(result, tmp_path), pixels_of(task.test.x[:8])
    (folder / "model.py").write_text("import no_such_package\n")
    with pytest.raises(ConfigError, match=r"ModuleNotFoundError.*no_such_package.*; install torch there"):
        prove(folder, ["source"], pixels, task.test.y[:8], logits(result, pixels))


def test_other_images_are_not_what_was_scored(exported):
    result, _, _ = exported
    with pytest.raises(ConfigError, match="was scored on other images"):
        bundle(result, nas.load_task("digits", seed=0).reduced(100))


def test_a_score_that_no_form_reaches_is_refused(exported, task, tmp_path, monkeypatch):
    result, proofs, _ = exported
    monkeypatch.setattr("nas.bundle.bundle.prove", lambda *_, **__: proofs)
    monkeypatch.setattr("nas.bundle.bundle._written", lambda *_: ([], []))
    monkeypatch.setitem(result.metrics, "test_acc", result.metrics["test_acc"] - 0.1)
    with pytest.raises(ConfigError, match="this is not the model that was scored"):
        bundle(result, task)


def test_tolerance_is_stated():
    assert proof.TOLERANCE <= 1e-4
