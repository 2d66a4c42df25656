"""Answers of a classifier: the likeliest classes of each image, by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError, DataError
from nas.text import printable


@dataclass(frozen=True)
class Answer:
    """What a model says of one image.

    top: names of classes with their probabilities in [0, 1], the likeliest first.
    """

    name: str
    top: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        first, probability = self.top[0]
        return {
            "name": self.name,
            "class": first,
            "probability": probability,
            "top": [{"class": name, "probability": p} for name, p in self.top],
        }

    def __str__(self) -> str:
        return f"{self.name}: " + ", ".join(f"{name} {p:.1%}" for name, p in self.top)


def answers(
    names: Sequence[str], logits: NDArray[np.float32], classes: Sequence[str], *, top: int
) -> list[Answer]:
    """One answer for each row of `logits` [N, classes]; `top` is at least 1.

    Raises:
        ConfigError: when the model has another number of classes.
        DataError: when a logit is not finite.
    """
    found = []
    if logits.shape[1:] != (len(classes),):
        raise ConfigError(
            f"the model answers {list(logits.shape)} numbers, but its run names {len(classes)} classes; "
            "restore the run's folder from a copy"
        )
    if not np.isfinite(logits).all():
        raise DataError(
            f"{names[0]}: the model's answer is not finite; its pixels are far from those of the training"
        )
    for name, row in zip(names, probabilities(logits), strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        found.append(Answer(name, tuple((classes[i], float(f"{row[i]:.6f}")) for i in best)))
    return found


def as_csv(found: Sequence[Answer]) -> str:
    """The answers as lines of a CSV file: name, class, probability, then class_2, probability_2 and so on."""
    most = max((len(answer.top) for answer in found), default=1)
    ends = ["", *(f"_{place}" for place in range(2, most + 1))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *(f"{column}{end}" for end in ends for column in ("class", "probability"))])
    for answer in found:
        cells = (cell for name, probability in answer.top for cell in (printable(name), f"{probability:.6f}"))
        writer.writerow([printable(answer.name), *cells])
    return text.getvalue()


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax of each row."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    exponentials = np.exp(shifted)
    shares: NDArray[np.float64] = exponentials / exponentials.sum(1, keepdims=True)
    return shares


def numbered(name: str, count: int) -> list[str]:
    """Names of the images of one file: its own, or with their place where it holds several."""
    return [name] if count == 1 else [f"{name}[{i}]" for i in range(count)]


def refused(name: str, reason: str) -> Mapping[str, str]:
    """What is said of a file that cannot be answered, as JSON."""
    return {"name": name, "error": reason}
