"""`nas export`: a finished run's model as source, program and ONNX, each proven to be the scored model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch

from nas.data.task import Task
from nas.errors import ConfigError, MismatchError, NasError, counted
from nas.export.formats import FILES, TEMPLATES, Pixels, write_forms
from nas.export.verify import PACKAGES, TOLERANCE, Proof, prove
from nas.files.atomic import write_text
from nas.files.folder import folder_lock, is_file, update_manifest
from nas.files.schemas import ComparedRecord, ExportedRecord, ScoredRecord, checked
from nas.results.result import Result
from nas.results.run_record import DEFAULT, compared_of, read_run
from nas.show.progress import Progress

SLACK = 0.005
"""How far the score of forms, in float32 on a CPU, may be from that of the model, perhaps in bfloat16."""
SLACK_IMAGES = 2
"""So many images may be classified otherwise where they are more than that."""
CARD = "MODEL_CARD.md"
_SHORTEST_LIMIT_S, _SLOWER = 300.0, 20.0


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
    scored_of(result)
    if record["task"]["fingerprint"] != task.fingerprint:
        raise ConfigError(
            f"export: {folder} was scored on other images than {task.name!r} now has; restore the data, or "
            "name the task with --task"
        )
    compared = compared_of(folder)
    model = Pixels(result.network, result.inputs)
    title = f"{record['space']['name']} on {record['task']['name']}, {origin(record, compared)}."
    forms, notes = write_forms(folder, model, result.inputs, title=title)
    for note in notes:
        tell(note)
    written = [*FILES.values(), CARD, "requirements.txt"]
    try:
        proofs = _proven(model, result, task, forms, pythons=pythons or [sys.executable], tell=tell)
    except MismatchError:
        for name in written:
            (folder / name).unlink(missing_ok=True)
        update_manifest(folder, written)
        raise
    unproven = [form for form in forms if form not in {proof.form for proof in proofs}]
    notes += [f"{FILES[form]} was not run: no {PACKAGES[form]} where the forms were run" for form in unproven]
    versions = {PACKAGES[p.form]: p.runtime.split()[1].split("+")[0] for p in proofs}
    needed = "".join(f"{name}>={version}\n" for name, version in sorted(versions.items()))
    write_text(folder / "requirements.txt", needed)
    augment = record["config"].get("augment")
    mirrors = task.flip if augment is None else "flip" in augment
    write_text(folder / CARD, card(result, record, proofs, notes, mirrors=mirrors, compared=compared))
    update_manifest(folder, written)
    return proofs


def scored_of(result: Result) -> ScoredRecord:
    """The numbers that an export tells of a run.

    Raises:
        ConfigError: when one is missing.
    """
    metrics, name = result.metrics, result.inputs.problem.test
    score = {f"score{end}": metrics.get(f"{name}{end}") for end in ("", "_low", "_high")}
    return checked(
        ScoredRecord, {**metrics, **score}, result.folder / "metrics.json", "table of a scored model"
    )


def record_of(folder: Path) -> dict[str, Any]:
    """The record of a run, with all that an export needs of it."""
    record = read_run(folder)
    checked(ExportedRecord, record, folder / "run.json", "record of a run that can be exported")
    return record


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
    problem, scored, targets = task.problem, scored_of(result).score, task.test.y.cpu()
    slack = max(SLACK, SLACK_IMAGES / len(targets)) * (1 if problem.is_share else abs(scored)) + 1e-6
    started = time.perf_counter()
    logits = model.logits(pixels)
    limit_s = max(_SHORTEST_LIMIT_S, _SLOWER * (time.perf_counter() - started))
    proofs = list[Proof]()
    for python in pythons:
        left = set(forms)
        for proof in prove(
            result.folder, forms, pixels, targets, logits, problem=problem, python=python, limit_s=limit_s
        ):
            if abs(proof.score - scored) > slack:
                raise MismatchError(
                    f"export: {proof.form} has {proof.words} {proof.score:.4g}, but {scored:.4g} was scored; "
                    "so this is not the model that was scored"
                )
            tell(str(proof))
            proofs.append(proof)
            left.remove(proof.form)
        missing = " and ".join(sorted({PACKAGES[form] for form in left}))
        if left and left == set(forms):
            raise ConfigError(f"export: {python} can run no form; install {missing} there")
        if left:
            tell(f"{python} has no {missing}, so it leaves {' and '.join(sorted(left))}")
    return proofs


# -- the card -------------------------------------------------------------------------------------------


def origin(record: Mapping[str, Any], compared: ComparedRecord | None = None) -> str:
    """Where the architecture of a run is from, as its run.json and its baselines.json say."""
    if record.get("architecture") is not None:
        return "trained again from scratch"
    if compared is not None and compared.found_by == DEFAULT:
        return "the default architecture of the space, beside a search"
    return f"found by {record['config']['method']}"


def card(
    result: Result,
    record: Mapping[str, Any],
    proofs: Sequence[Proof],
    notes: Sequence[str],
    *,
    mirrors: bool = True,
    compared: ComparedRecord | None = None,
) -> str:
    """MODEL_CARD.md: what a model is, how it was made and measured, and what it is not for.

    record: the run's run.json. notes: which forms are missing, and why. mirrors: whether the images could be
    mirrored in training. compared: the content of its baselines.json.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        finalize=_text,
        autoescape=False,  # nosec B701 - of HTML; `_text` does it for Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    recipe = record["plan"]["final"]
    return environment.get_template("model_card.md.jinja").render(
        record=record,
        config=record["config"],
        metrics=result.metrics,
        problem=result.inputs.problem,
        scored=scored_of(result),
        engine=record["environment"]["nas-engine"],
        known=record.get("architecture") is not None,
        is_default=compared is not None and compared.found_by == DEFAULT,
        has_source=not any(note.startswith("no model.py") for note in notes),
        shape=result.inputs.image_shape,
        classes=result.inputs.classes,
        proofs=proofs,
        notes=notes,
        recipe={**recipe, "flip": recipe.get("flip", False) and mirrors},
        statements=compared.statements if compared is not None else (),
        tolerance=TOLERANCE,
        number="{:,.0f}".format,
        counted=counted,
    )


def _text(value: object) -> str:
    """A value in Markdown that is nothing but its characters."""
    printable = "".join(c if c.isprintable() else "?" for c in str(value))
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in printable)


# -- at the end of a run --------------------------------------------------------------------------------


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
