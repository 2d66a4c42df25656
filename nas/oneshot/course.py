"""The course of a differentiable search: its stages, what happens between them, and the way back.

A stage ends with options that drop out; the next one goes on, perhaps with another form of supernet, or
starts anew. Where the guards see the curvature grow, the search goes back some epochs. After the last stage
the alphas choose, and a selection, if any, fixes decision after decision while the weights are tuned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nas.oneshot import selection
from nas.oneshot.bilevel import BilevelLoop
from nas.oneshot.choosing import by_alphas
from nas.oneshot.guards import Growth, Guards
from nas.oneshot.health import Examiner
from nas.oneshot.identities import barred, keeps_cap
from nas.oneshot.method import Method
from nas.oneshot.record import Strengths
from nas.oneshot.shrinking import deepened, inherit, record_fisher, shrink
from nas.oneshot.stages import Stage, ends, fading
from nas.oneshot.supernet import Supernet
from nas.oneshot.watch import Moment, Watch
from nas.seeding import derive, isolated
from nas.space import Space
from nas.task import Task
from nas.training.recipe import Recipe, compressed
from nas.training.team import Team
from nas.types import Genotype


class Course:
    """Where a search is among its stages, with the loop that trains the present one.

    done: epochs done on the way to the end, without those that were gone back on; epochs: of these in all.
    stage: the number of the present one; the selection's training comes after the last. ended: whether
      everything has been chosen.
    preferred: what the alphas chose at their end, strengths: as they were then. healthy: what they preferred
      where the search last went back to.
    examiner: measures the health of the present stage.
    """

    def __init__(self, space: Space, task: Task, method: Method, *, seed: int, team: Team) -> None:
        self.space, self.task, self.method, self.seed, self.team = space, task, method, seed, team
        options = max(len(d.options) for d in space.decisions)
        self.stages = method.staging.stages(method.weights.epochs, options)
        self.ends = ends(self.stages)
        self.tuning = 0
        if method.selection is not None:
            self.tuning = max(1, round(method.selection.tune * method.weights.epochs))
        self.preferred: Genotype = ()
        self.strengths: Strengths = ()
        self.healthy: Genotype = ()
        self.ended = False
        self.done = self.stage = 0
        self.examiner = Examiner()
        self._before = 0
        self._watch = Watch(method.guards or Guards())
        self.loop = self._loop_of_stage()

    @property
    def supernet(self) -> Supernet:
        """That of the present stage."""
        return self.loop.supernet

    @property
    def epochs(self) -> int:
        """All epochs, the selection's training included."""
        return self.ends[-1] + self.tuning

    @property
    def step(self) -> int:
        """Steps done, with those of earlier stages."""
        return self._before + self.loop.loop.step

    def state(self) -> dict[str, Any]:
        """All that the rest depends on."""
        return {
            "search": self.loop.state(),
            "loop_step": self.loop.loop.step,
            "stage": self.stage,
            "done": self.done,
            "before": self._before,
            "ended": self.ended,
            "preferred": list(self.preferred),
            "strengths": [torch.from_numpy(row) for row in self.strengths],
            "healthy": list(self.healthy),
            "direction": list(self.examiner.direction),
            "watch": self._watch.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to where `state` was taken, in whatever stage that was."""
        elsewhere = state["stage"] != self.stage
        self.stage, self.done, self._before = state["stage"], state["done"], state["before"]
        self.ended, self.preferred = state["ended"], tuple(state["preferred"])
        self.strengths = tuple(row.numpy() for row in state["strengths"])
        self.healthy = tuple(state["healthy"])
        device = self.task.train.x.device
        self.examiner.direction = [tensor.to(device) for tensor in state["direction"]]
        self._watch.restore(state["watch"])
        if elsewhere:
            self.loop = self._loop_of_stage()
        self.loop.restore(state["loop_step"], state["search"])

    # -- from one epoch to the next --------------------------------------------------------------------

    def begin_epoch(self) -> None:
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
        self.supernet.drop_skips(stage.skip_dropout * fading(at, rest, stage.epochs))

    def look(self, eigenvalue: float) -> tuple[Growth, Moment | None]:
        """How the curvature has grown while the alphas move; where to go back to when it is too much."""
        stage = self._in_stage
        if stage is None or not self.loop.alphas_move:
            return Growth(), None
        length = stage.epochs if self.method.staging.fresh else self.ends[-1]
        guarded = self.method.guards is not None
        now = (lambda: (self.done, self.loop.loop.step, self.loop.state())) if guarded else None
        return self._watch.look(self.done, length, abs(eigenvalue), now)

    def go_back(self, growth: Growth, moment: Moment) -> tuple[int, list[str]]:
        """To which epoch, and what is done about the growth."""
        guards, decay = self._watch.guards, self.loop.loop.weight_decay
        back, step, state = moment
        self.done = back
        self.loop.restore(step, state)
        before = self.supernet.genotype()
        if keeps_cap(self.space, before, guards.skip_cap):
            self.healthy = before
        grown = growth.mean / growth.level * guards.ratio
        what = f"the eigenvalue grew by {grown:.2f}: back to epoch {back}"
        stronger = guards.stronger(decay)
        if stronger is not None:
            self.loop.loop.weight_decay = stronger
            return back, [f"{what}, weight decay {decay:.2g} -> {stronger:.2g}"]
        left_out = self.ends[self.stage] - self.done
        self.loop.loop.step += left_out * self.loop.loop.steps_per_epoch
        self.done += left_out
        return back, [f"{what}, where the stage ends", *self.go_on()]

    def go_on(self) -> list[str]:
        """Enters the next stage, selects, or ends, where it is time."""
        if self._in_stage is None:
            tuned = self.done - self.ends[-1]
            events = self._select(tuned)
            self.ended = tuned == self.tuning
            return events
        if self.done < self.ends[self.stage]:
            return []
        if self.stage + 1 < len(self.stages):
            return self._next_stage()
        self._choose()
        if self.method.selection is None:
            self.ended = True
            return []
        self.stage += 1
        old = self.loop
        self._before += old.loop.step
        self.loop = self._loop_of_stage(old.supernet)
        self.loop.take_over(old)
        return self._select(0)

    def end_early(self) -> list[str]:
        """Chooses at once what the rest of the search would have chosen bit by bit."""
        self.ended = True
        if not self.preferred:
            self._choose()
        if self.method.selection is None:
            return []
        order, alive = selection.order(self.supernet, self.seed), self.supernet.alive
        return self._fix([i for i in order if len(alive[i]) > 1])

    # -- stages and choices ----------------------------------------------------------------------------

    @property
    def _in_stage(self) -> Stage | None:
        """The present stage; None while the selection's training goes on."""
        return self.stages[self.stage] if self.stage < len(self.stages) else None

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
            self.examiner.direction = []
            self.loop = self._loop_of_stage()
            self.loop.loop.weight_decay = old.loop.weight_decay
            self.supernet.keep(alive)
        elif now is not None and stage.parts != now.parts:
            self.loop = self._loop_of_stage()
            self.loop.take_over(old)
            inherit(self.supernet, old.supernet)
            self.loop.loop.step = old.loop.step
        self._watch.forget()
        return [f"stage {self.stage + 1} of {len(self.stages)}: {text}" for text in events]

    def _select(self, tuned: int) -> list[str]:
        """Fixes the decisions whose turn it is after so many epochs of tuning."""
        order = selection.order(self.supernet, self.seed)
        return self._fix([d for i, d in enumerate(order) if i * self.tuning // len(order) == tuned])

    def _fix(self, due: Sequence[int]) -> list[str]:
        """Fixes decisions, one after the other, by what removing an option costs; says to what."""
        settings, cap, events = self.method.selection, self.method.identities, []
        assert settings is not None
        for i in due:
            banned = barred(self.space, self.supernet.alive, i, cap) if cap is not None else ()
            option = selection.select(self.supernet, self.task, settings, i, barred=banned)
            decision = self.space.decisions[i]
            events.append(f"{decision.name} is {decision.options[option]}")
        return events

    def _choose(self) -> None:
        """Lets the alphas choose."""
        undecided = any(len(options) > 1 for options in self.supernet.alive)
        if self.method.staging.by == "fisher" and undecided:
            record_fisher(self.supernet, self.task)
        self.preferred = by_alphas(
            self.supernet,
            self.task,
            self.method.identities,
            judged=self.method.guards is not None,
            healthy=self.healthy,
            seed=derive(self.seed, "cap", self.done),
            images=self.loop.images_at_once,
        )
        self.strengths = tuple(self.supernet.strengths())

    # -- loops -----------------------------------------------------------------------------------------

    def _loop_of_stage(self, supernet: Supernet | None = None) -> BilevelLoop:
        """The loop of the present stage with a fresh supernet, or with a given one."""
        over, anew = self._in_stage is None, self.method.staging.fresh
        if supernet is None:
            supernet = self._supernet(self._in_stage or self.stages[-1])
        supernet.train()
        return BilevelLoop(
            supernet,
            self.task,
            dataclasses.replace(self.method, weights=self._recipe()),
            seed=derive(self.seed, "stage", self.stage if anew or over else 0),
            over=over,
            team=self.team,
        )

    def _recipe(self) -> Recipe:
        """Of the weights in the present stage."""
        weights, stage, settings = self.method.weights, self._in_stage, self.method.selection
        if stage is not None:
            return compressed(weights, stage.epochs) if self.method.staging.fresh else weights
        assert settings is not None
        lr = weights.lr * settings.lr_share
        return dataclasses.replace(
            weights,
            epochs=self.tuning,
            lr=lr,
            lr_min=min(lr, weights.lr_min),
            warmup_epochs=0.0,
            restarts=(),
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
