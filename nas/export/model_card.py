"""MODEL_CARD.md: what a model is, how it was made and measured, and what it is not for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nas.export.verify import PACKAGES, TOLERANCE, Proof
from nas.files.schemas import ComparedRecord
from nas.results.result import Result
from nas.results.run_record import DEFAULT
from nas.text import counted

FILES = {
    "source": "model.py, with model.safetensors (eager)",
    "program": "model.pt2 (torch.export)",
    "onnx": "model.onnx (input `pixels`, output `logits`)",
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
    """Markdown.

    record: the run's run.json. notes: which forms are missing, and why. mirrors: whether the images could be
    mirrored in training. compared: the content of its baselines.json.
    """
    metrics, task, config = result.metrics, record["task"], record["config"]
    searched = record.get("architecture") is None
    recipe = record["plan"]["final"]
    recipe = {**recipe, "flip": recipe.get("flip", False) and mirrors}
    lines = [
        f"# {_text(record['space']['name'])} on {_text(task['name'])}",
        "",
        f"An image classifier of {metrics['params']:,.0f} parameters and {metrics['macs']:,.0f} "
        f"multiply-accumulates an image, {_made_by(record, compared)}.",
        "",
        *_use(result, notes),
        "## How good",
        "",
        *_table(
            ("measured", "value"),
            [
                (
                    "test accuracy, measured once",
                    f"{metrics['test_acc']:.4f} (95 % interval {metrics['test_acc_low']:.4f} to "
                    f"{metrics['test_acc_high']:.4f}, {counted(task['images']['test'], 'image')})",
                ),
                *_seeds(metrics),
                ("latency where it was trained, one image", f"{metrics['latency_ms']:.2f} ms"),
                ("kept for the backward pass of one training image", _bytes(metrics)),
            ],
        ),
        "",
        "## The same in every form",
        "",
        "Each form ran in a process of its own that imports nothing of the engine, on the test images of "
        f"the scored model; logits must agree within {TOLERANCE:.0e} of the largest. Latencies are medians "
        "on the CPU of the machine that exported it."
        if proofs else "No form could be written.",
        "",
        *_table(
            ("form", "file", "largest difference", "classes that differ", "accuracy", "1 image", "32 images",
             "by"),
            [
                (
                    p.form, FILES[p.form], f"{p.difference:.1e}", str(p.changed), f"{p.accuracy:.4f}",
                    f"{p.latency_ms['1']:.2f} ms", f"{p.latency_ms['32']:.2f} ms", p.runtime,
                )
                for p in proofs
            ],
        )[: None if proofs else 0],
        *[f"\n{note}" for note in notes],
        "",
        "## How it was made",
        "",
        *_table(
            ("what", "value"),
            [
                ("data", f"{_text(task['name'])}, fingerprint `{_text(task['fingerprint'])}`"),
                ("images", ", ".join(f"{name} {count:,}" for name, count in task["images"].items())),
                ("classes", _text(", ".join(result.inputs.classes))),
                *([("search", f"{counted(metrics.get('trials', 0), 'trial')}, "
                              f"{metrics.get('failed_trials', 0):,.0f} of them failed")] if searched else []),
                *[("comparison", _text(words)) for words in (compared.statements if compared else [])],
                ("last training", f"{counted(metrics['retrain_epochs'], 'epoch')}, seed {config['seed']}"),
                ("cost", _seconds(metrics)),
                ("recipe", ", ".join(f"{_text(k)} {_text(v)}" for k, v in recipe.items())),
                ("machine", _text(record["environment"].get("hardware", "not recorded"))),
            ],
        ),
        "",
        "## Limits",
        "",
        "It knows the classes above and answers with one of them for any image. Its accuracy holds for "
        "images like those of its data set; nothing was measured on others, on corrupted ones, or by groups.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _made_by(record: Mapping[str, Any], compared: ComparedRecord | None) -> str:
    engine = f"nas-engine {_text(record['environment']['nas-engine'])}"
    if record.get("architecture") is not None:
        return f"an architecture that was known, trained again from scratch ({engine})"
    method = _text(record["config"]["method"])
    if compared is not None and compared.found_by == DEFAULT:
        by = f"method `{method}`, {engine}"
        return f"the default architecture of its search space: a search ({by}) found none that is better"
    return f"found by neural architecture search (method `{method}`, {engine})"


def _use(result: Result, notes: Sequence[str]) -> list[str]:
    """How model.py is used, where it could be written."""
    if any(note.startswith("no model.py") for note in notes):
        return []
    shape = ", ".join(map(str, result.inputs.image_shape))
    return [
        "## Use",
        "",
        "```python",
        "from model import build, CLASSES  # torch alone",
        f"logits = build()(images)          # float32 [N, {shape}]",
        "```",
        "",
        "Bytes are divided by 255 first; floats are as they were in training. The model normalises them.",
        "",
    ]


def requirements(proofs: Iterable[Proof]) -> str:
    """requirements.txt: what ran the forms."""
    versions = {p.runtime.split()[0]: p.runtime.split()[1].split("+")[0] for p in proofs}
    names = {PACKAGES[p.form]: p.form for p in proofs}
    return "".join(f"{name}>={versions[name]}\n" for name in sorted(names))


def _seeds(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """What it was compared with, by trainings alike."""
    if "rerank_val_acc" not in metrics:
        return []
    seeds = f"mean of {counted(metrics.get('rerank_seeds', 1), 'seed')}"
    names = {
        "rerank_val_acc": f"validation accuracy of a short training, {seeds}, chosen as the highest",
        "first_val_acc": "the same of the search's first choice, chosen before",
        "random_val_acc": "the same of random search at equal cost",
        "largest_val_acc": "the same of the largest of its architectures",
        "default_val_acc": "the same of the space's default architecture",
    }
    rows = [(words, f"{metrics[name]:.4f}") for name, words in names.items() if name in metrics]
    if "random_p" in metrics:
        words = "chance of so large a difference to random search, if both were equally good (p)"
        rows.append((words, f"{metrics['random_p']:.2g}"))
    return rows


def _bytes(metrics: Mapping[str, float]) -> str:
    return f"{metrics['activation_bytes']:,.0f} bytes" if "activation_bytes" in metrics else "not measured"


def _seconds(metrics: Mapping[str, float]) -> str:
    names = {"search": "search", "rerank": "training the best again", "retrain": "last training"}
    times = {words: metrics.get(f"{name}_seconds") for name, words in names.items()}
    return ", ".join(f"{words} {time:,.0f} s" for words, time in times.items() if time is not None)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _text(value: object) -> str:
    """A name in Markdown that is nothing but a name."""
    printable = "".join(c if c.isprintable() else "?" for c in str(value))
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in printable)
