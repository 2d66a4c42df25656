"""`nas export`: a finished run's model as source, program and ONNX, each proven to be the scored model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from nas.data.task import Task
from nas.errors import ConfigError, MismatchError, NasError, SpaceError, TrialError
from nas.export.formats import Pixels, exported, write_onnx, write_program, write_source
from nas.export.model_card import card, origin, requirements
from nas.export.verify import PACKAGES, Proof, installed, prove
from nas.files.atomic import write_text
from nas.files.folder import folder_lock, is_file, update_manifest
from nas.files.schemas import ExportedRecord, ScoredRecord, checked
from nas.results.result import Result
from nas.results.run_record import compared_of, read_run
from nas.show.progress import Progress
from nas.user_code import user_errors

SLACK = 0.005
"""How far the accuracy of forms, in float32 on a CPU, may be from the scored one, perhaps in bfloat16."""
SLACK_IMAGES = 2
"""So many images may be classified otherwise where they are more than that."""
CARD = "MODEL_CARD.md"
FILES = {"source": "model.py", "program": "model.pt2", "onnx": "model.onnx"}
_SHORTEST_LIMIT_S, _SLOWER = 300.0, 20.0
_ONNX = ("onnx", "onnxscript", "onnxruntime")


def bundle(
    result: Result,
    task: Task,
    *,
    pythons: Sequence[Path | str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> list[Proof]:
    """Writes every form into the run's folder, proves it, and writes MODEL_CARD.md and requirements.txt.

    The folder's lock must be held.

    task: that of the run, for its test images. pythons: interpreters of clean environments to prove the
    forms in, each those that it has the packages for; this one unless given. tell: is given a line for each
    form.

    Raises:
        MismatchError: when a form is not the scored model; then all forms are removed.
        ConfigError: when a form does not run, or the task is not the run's.
    """
    folder, record = result.folder, record_of(result.folder)
    checked(ScoredRecord, dict(result.metrics), folder / "metrics.json", "table of a scored model")
    if record["task"]["fingerprint"] != task.fingerprint:
        raise ConfigError(
            f"export: {folder} was scored on other images than {task.name!r} now has; restore the data, or "
            "name the task with --task"
        )
    compared = compared_of(folder)
    model = Pixels(result.network, result.inputs)
    title = f"{record['space']['name']} on {record['task']['name']}, {origin(record, compared)}."
    forms, notes = _written(folder, model, result, title)
    for note in notes:
        tell(note)
    for form in FILES.keys() - set(forms):  # an older export's would be unproven
        (folder / FILES[form]).unlink(missing_ok=True)
    try:
        proofs = _proven(model, result, task, forms, pythons=pythons or [sys.executable], tell=tell)
    except MismatchError:
        for name in (*FILES.values(), CARD):
            (folder / name).unlink(missing_ok=True)
        update_manifest(folder, [*FILES.values(), CARD])
        raise
    unproven = [form for form in forms if form not in {proof.form for proof in proofs}]
    notes += [f"{FILES[form]} was not run: no {PACKAGES[form]} where the forms were run" for form in unproven]
    write_text(folder / "requirements.txt", requirements(proofs))
    augment = record["config"].get("augment")
    mirrors = task.flip if augment is None else "flip" in augment
    write_text(folder / CARD, card(result, record, proofs, notes, mirrors=mirrors, compared=compared))
    update_manifest(folder, [*FILES.values(), "requirements.txt", CARD])
    return proofs


def record_of(folder: Path) -> dict[str, Any]:
    """The record of a run, with all that an export needs of it."""
    record = read_run(folder)
    checked(ExportedRecord, record, folder / "run.json", "record of a run that can be exported")
    return record


def _written(folder: Path, model: Pixels, result: Result, title: str) -> tuple[Sequence[str], list[str]]:
    """The forms that could be written, and why others could not."""
    forms, notes = list[str](), list[str]()
    try:
        with user_errors():
            write_source(folder / "model.py", result.network, result.inputs, title=title)
        forms.append("source")
    except (SpaceError, TrialError) as error:
        notes.append(f"no model.py: {error}")
    try:
        with user_errors():
            program = exported(model, result.inputs.image_shape)
    except (SpaceError, TrialError) as error:
        return forms, [*notes, f"no model.pt2 and model.onnx: torch.export: {_first_line(error)}"]
    write_program(folder / "model.pt2", program)
    forms.append("program")
    if missing := [name for name in _ONNX if find_spec(name) is None]:
        hint = "pip install 'nas-engine[onnx]'"
        return forms, [*notes, f"no model.onnx: it needs {', '.join(missing)}; {hint}"]
    try:
        with user_errors():
            write_onnx(folder / "model.onnx", program)
    except TrialError as error:
        return forms, [*notes, f"no model.onnx: torch.onnx.export: {_first_line(error)}"]
    return [*forms, "onnx"], notes


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _proven(
    model: Pixels,
    result: Result,
    task: Task,
    forms: Sequence[str],
    *,
    pythons: Sequence[Path | str],
    tell: Callable[[str], None],
) -> list[Proof]:
    """What every form did on the test images, in each interpreter that has the package for it."""
    images = task.test.x.cpu()
    pixels = (images.float() / 255 if images.dtype == torch.uint8 else images.float()).numpy()
    labels, scored = task.test.y.cpu().numpy(), result.metrics["test_acc"]
    started = time.perf_counter()
    logits = model.logits(pixels)
    limit_s = max(_SHORTEST_LIMIT_S, _SLOWER * (time.perf_counter() - started))
    proofs = list[Proof]()
    for python in pythons:
        able = _able(forms, python, tell)
        for proof in prove(result.folder, able, pixels, labels, logits, python=python, limit_s=limit_s):
            if abs(proof.accuracy - scored) > max(SLACK, SLACK_IMAGES / len(labels)) + 1e-6:
                raise MismatchError(
                    f"export: {proof.form} has accuracy {proof.accuracy:.4f}, but {scored:.4f} was scored; "
                    "so this is not the model that was scored"
                )
            tell(str(proof))
            proofs.append(proof)
    return proofs


def _able(forms: Sequence[str], python: Path | str, tell: Callable[[str], None]) -> list[str]:
    """The forms that an interpreter has the package for."""
    has = installed(python)
    if left := [form for form in forms if PACKAGES[form] not in has]:
        missing = sorted({PACKAGES[form] for form in left})
        tell(f"{python} has no {' and no '.join(missing)}, so it leaves {' and '.join(left)}")
    if forms and len(left) == len(forms):
        raise ConfigError(
            f"export: {python} can run no form; install {' or '.join(sorted({PACKAGES[f] for f in forms}))} "
            "there"
        )
    return [form for form in forms if form not in left]


def is_bundled(folder: Path) -> bool:
    """Whether a run has a bundle: its card is written last."""
    return is_file(folder / CARD)


def bundle_at_end(result: Result, task: Task, progress: Progress) -> None:
    """Writes and proves the bundle of a run that has just finished, or notes why there is none.

    Raises:
        MismatchError: when a form is not the scored model; the run is finished and whole all the same.
    """
    progress.note("export: writing model.py, model.pt2 and model.onnx, and proving each (--no-export: not)")
    try:
        with folder_lock(result.folder):
            bundle(result, task, tell=lambda line: progress.note(f"export: {line}"))
    except MismatchError as error:
        raise MismatchError(
            f"{error}. The run in {result.folder} is finished and whole; with --no-export its command "
            "leaves it as it is"
        ) from error
    except NasError as error:
        progress.note(
            f"WARNING: no bundle: {error}. The run is finished and whole; nas export {result.folder} tries "
            "again"
        )
