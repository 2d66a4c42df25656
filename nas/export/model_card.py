"""MODEL_CARD.md: what a model is, how it was made and measured, and what it is not for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from nas.errors import counted
from nas.export.verify import PACKAGES, TOLERANCE, Proof
from nas.files.schemas import ComparedRecord
from nas.results.result import Result
from nas.results.run_record import DEFAULT

FILES = {
    "source": "model.py, with model.safetensors (eager)",
    "program": "model.pt2 (torch.export)",
    "onnx": "model.onnx (input pixels, output logits)",
}
RIVALS = {
    "first_val_acc": "the same of the search's first choice, chosen before",
    "random_val_acc": "the same of random search at equal cost",
    "largest_val_acc": "the same of the largest of its architectures",
    "default_val_acc": "the same of the space's default architecture",
}
COSTS = {
    "search_seconds": "search",
    "rerank_seconds": "training the best again",
    "retrain_seconds": "last training",
}


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
    """The card as Markdown, from its template.

    record: the run's run.json. notes: which forms are missing, and why. mirrors: whether the images could be
    mirrored in training. compared: the content of its baselines.json.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
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
        engine=record["environment"]["nas-engine"],
        known=record.get("architecture") is not None,
        is_default=compared is not None and compared.found_by == DEFAULT,
        has_source=not any(note.startswith("no model.py") for note in notes),
        shape=result.inputs.image_shape,
        classes=result.inputs.classes,
        proofs=proofs,
        notes=notes,
        files=FILES,
        rivals=RIVALS,
        cost={words: result.metrics[name] for name, words in COSTS.items() if name in result.metrics},
        recipe={**recipe, "flip": recipe.get("flip", False) and mirrors},
        statements=compared.statements if compared is not None else (),
        tolerance=TOLERANCE,
        number="{:,.0f}".format,
        counted=counted,
    )


def requirements(proofs: Iterable[Proof]) -> str:
    """requirements.txt: what ran the forms."""
    versions = {PACKAGES[p.form]: p.runtime.split()[1].split("+")[0] for p in proofs}
    return "".join(f"{name}>={version}\n" for name, version in sorted(versions.items()))


def _text(value: object) -> str:
    """A value in Markdown that is nothing but its characters."""
    printable = "".join(c if c.isprintable() else "?" for c in str(value))
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in printable)
