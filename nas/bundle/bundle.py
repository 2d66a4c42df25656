"""`nas export`: a finished run's model as source, program and ONNX, each proven to be the scored model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from nas.bundle.card import card, requirements
from nas.bundle.forms import Pixels, exported, write_onnx, write_program, write_source
from nas.bundle.proof import Proof, pixels_of, prove
from nas.errors import ConfigError, SpaceError
from nas.files import write_manifest, write_text
from nas.result import Result
from nas.run_folder import read_run
from nas.task import Task

SLACK = 0.005
"""How far the accuracy of forms, in float32 on a CPU, may be from the scored one, perhaps in bfloat16."""
_ONNX = ("onnx", "onnxscript", "onnxruntime")


def bundle(
    result: Result,
    task: Task,
    *,
    python: Path | str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Proof]:
    """Writes every form into the run's folder, proves it, and writes MODEL_CARD.md and requirements.txt.

    task: that of the run, for its test images. python: the interpreter of a clean environment to prove the
    forms in; this one unless given. tell: is given a line for each form.

    Raises:
        ConfigError: when a form is not the scored model, or the task is not the run's.
    """
    folder, record = result.folder, read_run(result.folder)
    if record["task"]["fingerprint"] != task.fingerprint:
        raise ConfigError(
            f"export: {folder} was scored on other images than {task.name!r} now has; restore the data, or "
            "name the task with --task"
        )
    title = f"{record['space']['name']} on {record['task']['name']}, found by {record['config']['method']}."
    model = Pixels(result.network, result.inputs)
    forms, notes = _written(folder, model, result, title)
    for note in notes:
        tell(note)
    pixels, labels = pixels_of(task.test.x), task.test.y.cpu()
    given = {} if python is None else {"python": python}
    proofs = prove(folder, forms, pixels, labels, _logits(model, pixels), **given)
    for proof in proofs:
        _check_score(proof, result.metrics["test_acc"])
        tell(str(proof))
    write_text(folder / "MODEL_CARD.md", card(result, record, proofs, notes))
    write_text(folder / "requirements.txt", requirements(proofs))
    write_manifest(folder)
    return proofs


def _written(folder: Path, model: Pixels, result: Result, title: str) -> tuple[Sequence[str], list[str]]:
    """The forms that could be written, and why others could not."""
    forms, notes = list[str](), list[str]()
    try:
        write_source(folder / "model.py", result.network, result.inputs, title=title)
        forms.append("source")
    except SpaceError as error:
        notes.append(f"no model.py: {error}")
    try:
        program = exported(model, result.inputs.image_shape)
    except (RuntimeError, ValueError, TypeError) as error:
        return forms, [*notes, f"no model.pt2 and model.onnx: torch.export: {_first_line(error)}"]
    write_program(folder / "model.pt2", program)
    forms.append("program")
    if missing := [name for name in _ONNX if find_spec(name) is None]:
        return forms, [
            *notes,
            f"no model.onnx: it needs {', '.join(missing)}; pip install 'nas-engine[onnx]'",
        ]
    write_onnx(folder / "model.onnx", program)
    return [*forms, "onnx"], notes


def _logits(model: Pixels, pixels: Tensor) -> Tensor:
    with torch.no_grad(), warnings.catch_warnings():
        return torch.cat([model(x) for x in torch.split(pixels, 256)])


def _check_score(proof: Proof, scored: float) -> None:
    if abs(proof.accuracy - scored) > SLACK:
        raise ConfigError(
            f"export: {proof.form} has accuracy {proof.accuracy:.4f}, but {scored:.4f} was scored; "
            "so this is not the model that was scored"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
