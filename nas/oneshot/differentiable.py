"""The differentiable search: a supernet and its alphas are trained and watched, an architecture selected."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nas import resumable
from nas.checkpoint import Checkpoints
from nas.oneshot import selection
from nas.oneshot.bilevel import BilevelLoop
from nas.oneshot.health import Examiner, Health
from nas.oneshot.identities import capped, keeps_cap
from nas.oneshot.method import Method
from nas.oneshot.paths import accuracies
from nas.oneshot.shrinking import deepened, inherit, record_fisher, shrink
from nas.oneshot.stages import Stage, ends
from nas.oneshot.supernet import Supernet
from nas.recipe import compressed
from nas.seeding import derive, isolated
from nas.space import Space
from nas.task import Task
from nas.train import evaluate, memory_errors
from nas.types import Genotype


@dataclass(frozen=True, eq=False)
class Epoch:
    """The search after one more epoch.

    epoch: counted from 1 to `epochs`; a search that goes back counts the same ones again.
    genotype: what the alphas prefer now.
    strengths: `[O]` for each decision, how much each option is preferred, in [0, 1].
    train_loss: mean of the weights' loss over the epoch.
    val_acc: accuracy of the whole mixture on the validation split, in [0, 1]; where one option runs at a
      time, that of the preferred architecture.
    seconds: time spent on training, looking and selecting not included.
    health: see there.
    events: what happened at its end, in words.
    """

    epoch: int
    epochs: int
    genotype: Genotype
    strengths: tuple[NDArray[np.float64], ...]
    train_loss: float
    val_acc: float
    seconds: float
    health: Health = field(default_factory=Health)
    events: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a search ends with.

    selected: architectures in the order in which they are preferred: by the method's selection, by the alphas
      where that is another one, and those preferred after earlier epochs, the latest first; each once.
    supernet: as it is at the end.
    """

    epochs: Sequence[Epoch]
    selected: Sequence[Genotype]
    supernet: Supernet


def search(
    space: Space,
    task: Task,
    method: Method,
    *,
    seed: int,
    prepare: Callable[[Supernet], None] | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = 60.0,
    budget_s: float | None = None,
    on_epoch: Callable[[Sequence[Epoch]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Searches a space by gradients, on the device of the task.

    prepare: changes the first supernet before it is trained, e.g. its alphas.
    checkpoints: where to resume from, exactly to the step, and where to save to.
    budget_s: seconds of training after which the epoch in progress is the last one.
    on_epoch: called after each epoch with all epochs so far, those before a resumption included.
    stop: asked before every step; when true, a checkpoint is written and `Stopped` is raised.
    """
    with isolated(seed, "search"), memory_errors(f"searching at batch {method.weights.batch}"):
        work = _Search(space, task, method, seed=seed, budget_s=budget_s, prepare=prepare)
        resumable.run(
            work,
            what="search",
            checkpoints=checkpoints,
            checkpoint_seconds=checkpoint_seconds,
            on_epoch=on_epoch,
            stop=stop,
        )
        return work.outcome()


class _Search:
    """All stages of a search and the selection after them, with the record of the epochs, as a `Resumable`.

    done: epochs done on the way to the end, without those that were gone back on.
    preferred: what the alphas chose at their end. healthy: what they preferred where the search last went
      back to.
    stage: the number of the present one; the selection's training comes after the last.
    """

    def __init__(
        self,
        space: Space,
        task: Task,
        method: Method,
        *,
        seed: int,
        budget_s: float | None,
        prepare: Callable[[Supernet], None] | None,
    ) -> None:
        self.space, self.task, self.method, self.seed, self.budget_s = space, task, method, seed, budget_s
        options = max(len(d.options) for d in space.decisions)
        self.stages = method.staging.stages(method.weights.epochs, options)
        self.ends = ends(self.stages)
        self.tuning = 0
        if method.selection is not None:
            self.tuning = max(1, round(method.selection.tune * method.weights.epochs))
        self.epochs: list[Epoch] = []
        self.preferred: Genotype = ()
        self.healthy: Genotype = ()
        self.ended = False
        self.done = self.stage = 0
        self._before = 0
        self._examiner = Examiner()
        self._eigenvalues: list[float] = []
        self._snapshots: dict[int, Any] = {}
        self.loop = self._first_loop()
        if prepare is not None:
            prepare(self.supernet)
        self._settings = {**self.loop.loop.settings(), "method": method.describe()}
        self._begin_epoch()

    # -- a Resumable -----------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        return self._before + self.loop.loop.step

    @property
    def steps(self) -> int:
        if self.ended:
            return self.step
        return (self.ends[-1] + self.tuning) * self.loop.loop.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        return self.loop.loop.at_epoch_end

    def advance(self) -> None:
        self.loop.advance()

    def end_epoch(self) -> Sequence[Epoch]:
        loss, seconds = self.loop.loop.end_epoch()
        self.done += 1
        supernet, genotype = self.supernet, self.supernet.genotype()
        val_acc = self._validate(genotype)
        before = self.epochs[-1].genotype if self.epochs else None
        health = self._examiner.examine(self.loop, genotype, before, val_acc)
        epoch = Epoch(
            epoch=self.done,
            epochs=self.ends[-1] + self.tuning,
            genotype=genotype,
            strengths=tuple(supernet.strengths()),
            train_loss=loss,
            val_acc=val_acc,
            seconds=seconds,
            health=health,
        )
        spent = seconds + sum(e.seconds for e in self.epochs)
        events = self._guard(health) or self._go_on()
        if self.budget_s is not None and spent >= self.budget_s and not self.ended:
            self._end()
            events = [*events, "the budget is spent"]
        self.epochs.append(dataclasses.replace(epoch, events=tuple(events)))
        self._begin_epoch()
        return tuple(self.epochs)

    def state(self) -> Mapping[str, Any]:
        return {
            "search": self.loop.state(),
            "loop_step": self.loop.loop.step,
            "stage": self.stage,
            "done": self.done,
            "before": self._before,
            "ended": self.ended,
            "preferred": list(self.preferred),
            "healthy": list(self.healthy),
            "eigenvalues": list(self._eigenvalues),
            "direction": list(self._examiner.direction),
            "snapshots": dict(self._snapshots),
            "epochs": [_packed(epoch) for epoch in self.epochs],
        }

    def restore(self, step: int, state: Mapping[str, Any]) -> None:  # noqa: ARG002 - the state has both parts
        self.stage, self.done, self._before = state["stage"], state["done"], state["before"]
        self.ended, self.preferred = state["ended"], tuple(state["preferred"])
        self.healthy = tuple(state["healthy"])
        self._eigenvalues = list(state["eigenvalues"])
        device = self.task.train.x.device
        self._examiner.direction = [tensor.to(device) for tensor in state["direction"]]
        self._snapshots = dict(state["snapshots"])
        self.epochs = [_unpacked(record) for record in state["epochs"]]
        self.loop = self._loop_of_stage()
        self.loop.restore(state["loop_step"], state["search"])
        self._begin_epoch()

    def settings(self) -> Mapping[str, Any]:
        return self._settings

    # -- what happens between epochs -------------------------------------------------------------------

    @property
    def supernet(self) -> Supernet:
        return self.loop.supernet

    @property
    def _in_stage(self) -> Stage | None:
        """The present stage; None while the selection's training goes on."""
        return self.stages[self.stage] if self.stage < len(self.stages) else None

    def _begin_epoch(self) -> None:
        """Sets what depends on how far the present stage is."""
        stage = self._in_stage
        if stage is None:
            self.supernet.drop_skips(0.0)
            self.loop.alphas_move = self.method.learns_alphas
            return
        at = self.done - (self.ends[self.stage] - stage.epochs)
        guards = self.method.guards
        warmup = max(self.method.warmup, guards.warmup if guards is not None else 0.0)
        rest = min(stage.epochs - 1, round(warmup * stage.epochs))
        self.loop.alphas_move = self.method.learns_alphas and at >= rest
        self.supernet.drop_skips(stage.skip_dropout * (1 - at / stage.epochs))

    def _validate(self, genotype: Genotype) -> float:
        if self.supernet.relaxation.one_at_a_time:
            seed = derive(self.seed, "validate", self.done)
            return accuracies(self.supernet, [genotype], self.task, seed=seed)[0]
        return evaluate(self.supernet, self.task, self.task.val)[1]

    def _guard(self, health: Health) -> list[str]:
        """Goes back when the curvature has grown too much; says so, or nothing."""
        guards, stage = self.method.guards, self._in_stage
        if guards is None or stage is None or not self.loop.alphas_move:
            return []
        self._eigenvalues.append(abs(health.eigenvalue))
        self._snapshots[self.done] = copy.deepcopy((self.loop.loop.step, self.loop.state()))
        length = stage.epochs if self.method.staging.fresh else self.ends[-1]
        alarm = guards.alarm(self._eigenvalues, length)
        if alarm is None or self.done - alarm.back not in self._snapshots:
            oldest = self.done - 2 * max(3, round(guards.delay * length))
            self._snapshots = {at: kept for at, kept in self._snapshots.items() if at > oldest}
            return []
        decay = self.loop.loop.weight_decay
        stronger = guards.stronger(decay)
        self.done -= alarm.back
        step, state = self._snapshots[self.done]
        self.loop.restore(step, copy.deepcopy(state))
        before = self.supernet.genotype()
        if keeps_cap(self.space, before, guards.skip_cap):
            self.healthy = before
        self._eigenvalues = []  # what was measured under less weight decay says nothing about what comes
        self._snapshots = {at: kept for at, kept in self._snapshots.items() if at <= self.done}
        what = f"the eigenvalue grew by {alarm.ratio:.2f}: back to epoch {self.done}"
        if stronger is None:
            self._end()
            return [f"{what}, where the search ends"]
        self.loop.loop.weight_decay = stronger
        return [f"{what}, weight decay {decay:.2g} -> {stronger:.2g}"]

    def _go_on(self) -> list[str]:
        """Enters the next stage, selects, or ends, where it is time."""
        if self._in_stage is None:
            tuned = self.done - self.ends[-1]
            events = self._select(tuned)
            if tuned == self.tuning:
                self._end()
            return events
        if self.done < self.ends[self.stage]:
            return []
        if self.stage + 1 < len(self.stages):
            return self._next_stage()
        self.preferred = self._by_alphas()
        if self.method.selection is None:
            self._end()
            return []
        self.stage += 1
        old = self.loop
        self._before += old.loop.step
        self.loop = self._loop_of_stage(old.supernet)
        return self._select(0)

    def _next_stage(self) -> list[str]:
        if self.method.staging.by == "fisher":
            record_fisher(self.supernet, self.task)
        old, now = self.loop, self._in_stage
        self.stage += 1
        stage = self.stages[self.stage]
        events = shrink(self.supernet, stage)
        alive = self.supernet.alive
        if self.method.staging.fresh:
            self._before += old.loop.step
            self._eigenvalues, self._examiner.direction = [], []
            self.loop = self._loop_of_stage()
            self.supernet.keep(alive)
        elif now is not None and stage.parts != now.parts:
            self.loop = self._loop_of_stage()
            inherit(self.supernet, old.supernet)
            self.loop.loop.step = old.loop.step
        self._snapshots = {}
        return [f"stage {self.stage + 1} of {len(self.stages)}: {text}" for text in events]

    def _select(self, tuned: int) -> list[str]:
        """Fixes the decisions whose turn it is after so many epochs of tuning."""
        settings = self.method.selection
        assert settings is not None
        order, decisions = selection.order(self.supernet, self.seed), self.space.decisions
        due = [d for i, d in enumerate(order) if i * self.tuning // len(order) == tuned]
        chosen = [(d, selection.select(self.supernet, self.task, settings, d)) for d in due]
        return [f"{decisions[d].name} is {decisions[d].options[option]}" for d, option in chosen]

    def _end(self) -> None:
        self.ended = True
        if not self.preferred:
            self.preferred = self._by_alphas()

    def _by_alphas(self) -> Genotype:
        """What the alphas prefer, if it has not too many identities.

        Else, by accuracy on the shared weights, what they preferred before the last alarm, or what they
        prefer now with the best operations in place of identities.
        """
        guards, strengths = self.method.guards, self.supernet.strengths()
        if guards is None:
            return self.space.nearest(strengths)
        now = self.space.nearest(strengths)
        if keeps_cap(self.space, now, guards.skip_cap):
            return now

        def judge(genotypes: Sequence[Genotype]) -> list[float]:
            seed = derive(self.seed, "cap", self.done)
            return accuracies(self.supernet, genotypes, self.task, seed=seed)

        choices = [
            capped(self.space, strengths, guards.skip_cap, judge),
            *([self.healthy] if self.healthy else []),
        ]
        worth = judge(choices)
        return choices[worth.index(max(worth))]

    def outcome(self) -> Outcome:
        """The end of the search; asked when there are no more steps."""
        selected = []
        settings = self.method.selection
        if settings is not None and all(len(options) == 1 for options in self.supernet.alive):
            scored = selection.connections(self.supernet, self.task, settings)
            selected.append(self.space.nearest(scored))
        selected += [self.preferred or self._by_alphas(), *(e.genotype for e in reversed(self.epochs))]
        return Outcome(tuple(self.epochs), list(dict.fromkeys(selected)), self.supernet)

    # -- loops -----------------------------------------------------------------------------------------

    def _first_loop(self) -> BilevelLoop:
        return self._loop_of_stage()

    def _loop_of_stage(self, supernet: Supernet | None = None) -> BilevelLoop:
        """The loop of the present stage with a fresh supernet, or with a given one."""
        method, stage = self.method, self._in_stage
        if stage is None:
            settings = method.selection
            assert settings is not None
            lr = method.weights.lr * settings.lr_share
            recipe = dataclasses.replace(
                method.weights, epochs=self.tuning, lr=lr, lr_min=lr, warmup_epochs=0.0, restarts=()
            )
            stage = self.stages[-1]
        else:
            recipe = compressed(method.weights, stage.epochs) if method.staging.fresh else method.weights
        if supernet is None:
            supernet = self._supernet(stage)
        supernet.train()
        return BilevelLoop(
            supernet,
            self.task,
            dataclasses.replace(method, weights=recipe),
            seed=derive(
                self.seed, "stage", self.stage if method.staging.fresh or self._in_stage is None else 0
            ),
        )

    def _supernet(self, stage: Stage) -> Supernet:
        with isolated(self.seed, "supernet", self.stage):
            supernet = Supernet(
                deepened(self.space, stage.depth),
                relaxation=self.method.relaxation,
                parts=stage.parts,
                edge_norm=self.method.edge_norm,
            )
        return supernet.to(self.task.train.x.device)


def _packed(epoch: Epoch) -> dict[str, Any]:
    """An epoch as plain values and tensors."""
    return {
        **vars(epoch),
        "genotype": list(epoch.genotype),
        "strengths": [torch.from_numpy(row) for row in epoch.strengths],
        "health": dataclasses.asdict(epoch.health),
        "events": list(epoch.events),
    }


def _unpacked(record: Mapping[str, Any]) -> Epoch:
    changed = {
        "genotype": tuple(record["genotype"]),
        "strengths": tuple(row.numpy() for row in record["strengths"]),
        "health": Health(**record["health"]),
        "events": tuple(record["events"]),
    }
    return Epoch(**{**record, **changed})
