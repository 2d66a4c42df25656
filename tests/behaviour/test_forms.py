"""The bundle of a run: forms of the model that work without the engine, and are the model that was scored."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from using import nas_command, rewrite_manifest

import nas

pytest.importorskip("onnxruntime", reason="the ONNX form needs the extra onnx")

ELSEWHERE = """
import pathlib, sys
for module in sys.argv[1].split(","):
    sys.modules[module] = None  # cannot be imported
import numpy as np

folder, given = pathlib.Path(sys.argv[2]), np.load(sys.argv[3])
if sys.argv[4] == "onnx":
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    answers = {"onnx": session.run(["logits"], {"pixels": given})[0]}
else:
    import torch

    sys.path.insert(0, str(folder))
    from model import build

    pixels = torch.from_numpy(given)
    program = torch.export.load(folder / "model.pt2").module()
    with torch.no_grad():
        answers = {"source": build()(pixels).numpy(), "program": program(pixels).numpy()}
np.savez(sys.argv[5], **answers)
"""


def _answers(folder, images, form, without, place):
    """The logits of forms of the model, run in a process that cannot import these modules."""
    np.save(place / "images.npy", images)
    (place / "elsewhere.py").write_text(ELSEWHERE)
    command = [sys.executable, "-I", place / "elsewhere.py", without, folder, place / "images.npy", form]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command), str(place / "answers.npz")],
        capture_output=True,
        check=False,
        text=True,
        cwd=place,
        env=environment | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(place / "answers.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.mark.parametrize(
    ("form", "without"), [("torch", "nas,spaces,onnxruntime"), ("onnx", "nas,spaces,torch")]
)
def test_every_form_gives_the_logits_of_the_recorded_model_without_the_engine(runs, tmp_path, form, without):
    folder, task = runs("evolution"), nas.load_task("digits")
    result = nas.load_result(folder)
    with torch.no_grad():
        wanted = result.network(task.normalise(task.test.x)).numpy()
    pixels = task.test.x.numpy().astype(np.float32) / 255
    found = _answers(folder, pixels, form, without, tmp_path)
    assert set(found) == ({"source", "program"} if form == "torch" else {"onnx"})
    for logits in found.values():
        assert np.abs(logits - wanted).max() <= 1e-3 * np.abs(wanted).max()
        assert np.array_equal(logits.argmax(1), result.predict(task.test.x.numpy()[:, 0]))


def test_the_bundle_is_listed_and_described(runs):
    folder = runs("evolution")
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert {"model.py", "model.pt2", "model.onnx", "MODEL_CARD.md", "requirements.txt"} <= set(listed)
    card = (folder / "MODEL_CARD.md").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"{metrics['test_acc']:.4f}" in card
    assert f"{int(metrics['params']):,}" in card
    assert "torch" in (folder / "requirements.txt").read_text()
    assert "import nas" not in (folder / "model.py").read_text()


def test_weights_that_are_not_those_that_were_scored_are_not_exported(copied):
    """Somebody exchanged the weights and the checksum, too: the accuracy gives them away."""
    folder = copied("evolution")
    tensors = load_file(folder / "model.safetensors")
    last = [name for name, tensor in tensors.items() if tensor.dim() == 2][-1]
    tensors[last] = -tensors[last]
    save_file(tensors, folder / "model.safetensors", {"space": "toy"})
    assert "model.safetensors" in nas_command("check", folder).err
    rewrite_manifest(folder)
    said = nas_command("export", folder)
    assert said.code == 2
    assert "accuracy" in said.err
    assert not (folder / "model.onnx").exists()
    assert not (folder / "model.pt2").exists()
