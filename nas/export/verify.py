"""The proof that every form of a model is the model that was scored: each runs in a process of its own."""

from __future__ import annotations

import json
import subprocess  # nosec B404
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.data.problem import CLASSIFICATION, Problem
from nas.errors import ConfigError, MismatchError
from nas.export import verify_worker
from nas.files.atomic import temporary_folder

TOLERANCE = 1e-4
"""Largest difference of a logit, as a share of the largest logit."""
PACKAGES = {"source": "torch", "program": "torch", "onnx": "onnxruntime"}


@dataclass(frozen=True)
class Proof:
    """What one form did with the images that the model was scored on.

    difference: of logits from the scored model's, the largest, as a share of the largest logit.
    score: of the problem's metric, on those images; words: what that is called. changed: images whose answer
      differs from the scored model's.
    latency_ms: of a batch of 1 and of 32 images, medians. runtime: what ran it.
    """

    form: str
    difference: float
    score: float
    words: str
    changed: int
    latency_ms: Mapping[str, float]
    runtime: str

    def __str__(self) -> str:
        return (
            f"{self.form}: logits differ by at most {self.difference:.1e} of the largest, "
            f"{self.changed} answers differ, {self.words} {self.score:.4g}; "
            f"{self.latency_ms['1']:.2f} ms for 1 image, {self.latency_ms['32']:.2f} ms for 32 "
            f"({self.runtime})"
        )


def prove(
    folder: Path,
    forms: Sequence[str],
    pixels: NDArray[np.float32],
    targets: Tensor,
    logits: NDArray[np.float32],
    *,
    problem: Problem = CLASSIFICATION,
    python: Path | str = sys.executable,
    limit_s: float = 600.0,
) -> Iterator[Proof]:
    """Runs forms in clean processes, one after the other, and compares them with the scored model.

    pixels: `[N, C, H, W]` as the forms take them. targets: `[N]`. logits: `[N, outputs]`, the scored model's.
    problem: what makes scores and answers of both.
    python: an interpreter whose environment has what the forms need, and need have nothing else; a form whose
    package it lacks is passed over. limit_s: that each form may take.

    Raises:
        MismatchError: when a form imports the engine or does not do the same.
        ConfigError: when a form does not run.
    """
    with temporary_folder() as place:
        head = json.dumps({"shape": list(pixels.shape)}).encode()
        (place / "images").write_bytes(head + b"\n" + np.ascontiguousarray(pixels, np.float32).tobytes())
        for form in forms:
            worker = [verify_worker.__file__, form, str(folder.resolve()), "images", form]
            # -I keeps modules beside it out.
            done = _run([str(python), "-IB", *worker], place, limit_s, what=form)
            if done.returncode == verify_worker.NO_RUNTIME:
                continue
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise ConfigError(f"export: {form} of {folder} does not run in {python}: {last}")
            yield _compared(form, (place / form).read_bytes(), targets, torch.from_numpy(logits), problem)


def _run(program: list[str], place: Path, limit_s: float, *, what: str) -> subprocess.CompletedProcess[str]:
    """Runs an interpreter of the user's, without a shell."""
    try:
        return subprocess.run(  # nosec B603
            program, capture_output=True, text=True, cwd=place, check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"export: {what} did not end within {limit_s:.0f} s in {program[0]} and was stopped; is the "
            "machine busy with something else?"
        ) from error
    except OSError as error:
        raise ConfigError(f"export: {program[0]} cannot be run: {error.strerror}") from error


def _compared(form: str, outcome: bytes, targets: Tensor, wanted: Tensor, problem: Problem) -> Proof:
    head, data = outcome.split(b"\n", 1)
    record = json.loads(head)
    if record["engine"]:
        raise MismatchError(
            f"export: {form} imports the engine ({record['engine'][0]}), but must run without"
        )
    found = torch.from_numpy(np.frombuffer(data, np.float32).reshape(record["shape"]).copy())
    largest = float(wanted.abs().max())
    answers, before = problem.predict(found), problem.predict(wanted)
    differ = (answers - before).abs() > (TOLERANCE * largest if answers.is_floating_point() else 0)
    proof = Proof(
        form,
        difference=float((found - wanted).abs().max()) / largest,
        score=float(problem.score(found, targets).double().mean()),
        words=problem.words,
        changed=int(differ.sum()),
        latency_ms=record["latency_ms"],
        runtime=record["runtime"],
    )
    if not proof.difference <= TOLERANCE:
        raise MismatchError(f"export: {proof}; wanted at most {TOLERANCE:.0e}, so this form is not the model")
    return proof
