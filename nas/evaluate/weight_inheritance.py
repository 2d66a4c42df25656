"""Trials that begin with the weights of a smaller architecture, trained before."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.evaluate.trained import Hopeless, Trained
from nas.space.network_morphism import graft, is_addition, mismatch
from nas.training.checkpoint import Checkpoints
from nas.types import Genotype, Trial

_log = logging.getLogger("nas")

INHERITED = "inherited_from"
"""The metric that says with which trial's weights a trial began; -1 for none."""


@dataclass(frozen=True, eq=False)
class Grown:
    """Trains each architecture from the weights of the best earlier trial that it is one addition to.

    Where there is none, or its weights are lost, it begins as `trained` has it. Additions are those of
    `nas.space.network_morphism`. A trial that inherits has been trained for longer than its fidelity says,
    its parents' epochs included, so its accuracy flatters it beside that of one from scratch: compare the
    best afresh in the end.

    folder: where the weights of ended trials are kept, each in a folder of its own.
    keep: of how many of the best trials of each fidelity the weights stay, at least 1. Those of one more stay
      until the next trial begins, since a trial whose end was not recorded needs its parent again.

    What a trial begins with follows from the history before it, so a killed study ends as if it had not been.
    """

    trained: Trained
    folder: Path
    keep: int = 50

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"grown: keep is {self.keep}, but must be at least 1")

    def __call__(
        self,
        trial: Trial,
        rng: np.random.Generator,
        *,
        parent: Trial | None = None,
        hopeless: Hopeless | None = None,
    ) -> Mapping[str, float]:
        """The metrics of `trained`, and `inherited_from`: the number of a trial, or -1 for none."""
        weights = None if parent is None else self._load(parent)
        evaluate = replace(self.trained, judge=self._judge)
        if parent is None or weights is None:
            return {**evaluate(trial, rng, hopeless=hopeless), INHERITED: -1.0}
        evaluate = replace(evaluate, start=partial(self._start, parent.genotype, weights))
        return {**evaluate(trial, rng, hopeless=hopeless), INHERITED: float(parent.number)}

    def hints(self, trial: Trial, known: Sequence[Trial]) -> dict[str, Trial | None]:
        """The parent of a trial among those of the same fidelity; removes weights that nobody will need.

        The best has the highest `val_acc`, and of equal ones the lowest number.
        """
        own = [t for t in known if t.fidelity == trial.fidelity and INHERITED in t.metrics]
        ordered = sorted(own, key=lambda t: (-t.metrics["val_acc"], t.number))
        # Of those beside this one, each may have a parent that what ended since has pushed out.
        for beaten in ordered[self.keep + len(trial.beside) :]:
            shutil.rmtree(self._place(beaten), ignore_errors=True)
        space = self.trained.space
        best = (t for t in ordered[: self.keep] if is_addition(space, t.genotype, trial.genotype))
        return {"parent": next(best, None)}

    def _load(self, parent: Trial) -> Mapping[str, Tensor] | None:
        """A trial's weights, on the CPU; None, with a note in the log, when they are lost or do not fit."""
        try:
            saved = Checkpoints(self._place(parent), keep=1).load()
        except ConfigError as error:
            _log.warning("%s", error)
            saved = None
        weights: Mapping[str, Tensor] = {} if saved is None else saved[1].get("weights", {})
        network = self.trained.space.network(parent.genotype, meta=True)
        if mismatch(network.state_dict(), weights):
            _log.warning("%s holds no weights of trial %d to grow from", self._place(parent), parent.number)
            return None
        return weights

    def _start(
        self, parent: Genotype, weights: Mapping[str, Tensor], trial: Trial, network: nn.Module
    ) -> nn.Module:
        graft(self.trained.space, trial.genotype, network, parent=parent, weights=weights)
        return network

    def _judge(self, trial: Trial, network: nn.Module) -> None:
        """Keeps the weights."""
        if self.trained.judge is not None:
            self.trained.judge(trial, network)
        Checkpoints(self._place(trial), keep=1).save(trial.fidelity, {"weights": network.state_dict()})

    def _place(self, trial: Trial) -> Path:
        return self.folder / f"weights-{trial.number}"
