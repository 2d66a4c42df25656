"""The differentiable search: a supernet and its alphas are trained and watched, an architecture selected."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nas.evaluation.guard import memory_errors
from nas.oneshot import selection
from nas.oneshot.bilevel import BilevelLoop
from nas.oneshot.choosing import by_alphas
from nas.oneshot.guards import Growth, Guards
from nas.oneshot.health import Examiner, Health, images_at_once, preferred_accuracy
from nas.oneshot.identities import barred, keeps_cap, skip_shares
from nas.oneshot.method import Method
from nas.oneshot.record import Epoch, Outcome, Strengths, lasting
from nas.oneshot.shrinking import deepened, inherit, record_fisher, shrink
from nas.oneshot.stages import Stage, ends
from nas.oneshot.supernet import Supernet
from nas.oneshot.watch import Moment, Watch
from nas.seeding import derive, isolated
from nas.space import Space
from nas.task import Task
from nas.training import resumable
from nas.training.accuracy import evaluate
from nas.training.checkpoint import Checkpoints
from nas.training.recipe import compressed
from nas.training.team import ALONE, Team
from nas.types import Genotype

LOOKS = 6
"""Steps that looking at a search after an epoch takes about as long as, before it was timed."""


def search(
    space: Space,
    task: Task,
    method: Method,
    *,
    seed: int,
    prepare: Callable[[Supernet], None] | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = 60.0,
    left_s: Callable[[], float] | None = None,
    on_epoch: Callable[[Sequence[Epoch]], None] | None = None,
    stop: Callable[[], bool] | None = None,
    team: Team = ALONE,
) -> Outcome:
    """Searches a space by gradients, on the device of the task.

    prepare: changes the first supernet before it is trained, e.g. its alphas.
    checkpoints: where to resume from, exactly to the step, and where to save to.
    left_s: seconds left, asked after every step; when they are no more than looking took the last time, the
      step was the last one, and what the alphas prefer then is chosen. Not for a team.
    on_epoch: called after each epoch with all epochs so far, those before a resumption included.
    stop: asked before every step; when true, a checkpoint is written and `Stopped` is raised.
    team: all of its ranks search together, see `nas.training.team`; rank 0 alone looks, selects and saves.
    """
    what = f"searching at batch {team.images(method.weights.batch)}"
    advice = "use a smaller batch or network, or let memory (`--memory 8GiB`) fit the search to the device"
    with isolated(seed, "search"), memory_errors(what, advice):
        work = _Search(space, task, method, seed=seed, left_s=left_s, prepare=prepare, team=team)
        resumable.run(
            work,
            what="search",
            checkpoints=checkpoints,
            checkpoint_seconds=checkpoint_seconds,
            on_epoch=on_epoch,
            stop=stop,
            team=team,
        )
        return work.outcome()


class _Search:
    """All stages of a search and the selection after them, with the record of the epochs, as a `Resumable`.

    done: epochs done on the way to the end, without those that were gone back on.
    preferred: what the alphas chose at their end, strengths: as they were then. healthy: what they preferred
      where the search last went back to.
    stage: the number of the present one; the selection's training comes after the last.
    """

    def __init__(
        self,
        space: Space,
        task: Task,
        method: Method,
        *,
        seed: int,
        left_s: Callable[[], float] | None,
        prepare: Callable[[Supernet], None] | None,
        team: Team,
    ) -> None:
        self.team = team
        self.space, self.task, self.method, self.seed, self.left_s = space, task, method, seed, left_s
        options = max(len(d.options) for d in space.decisions)
        self.stages = method.staging.stages(method.weights.epochs, options)
        self.ends = ends(self.stages)
        self.tuning = 0
        if method.selection is not None:
            self.tuning = max(1, round(method.selection.tune * method.weights.epochs))
        self.epochs: list[Epoch] = []
        self.preferred: Genotype = ()
        self.strengths: Strengths = ()
        self.healthy: Genotype = ()
        self.ended = self.cut = False
        self.looked_s = 0.0
        self.done = self.stage = 0
        self._before = 0
        self._examiner = Examiner()
        self._watch = Watch(method.guards or Guards())
        self.loop = self._loop_of_stage()
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
        return self.cut or self.loop.loop.at_epoch_end

    def advance(self) -> None:
        started = time.perf_counter()
        self.loop.advance()
        if self.left_s is not None:
            looks_s = self.looked_s or LOOKS * (time.perf_counter() - started)
            self.cut = self.left_s() <= looks_s

    def end_epoch(self) -> Sequence[Epoch]:
        loss, trained = self.loop.loop.end_epoch()
        started = time.perf_counter()
        self.done += 1
        supernet, genotype = self.supernet, self.supernet.genotype()
        val_acc = self._validate(genotype)
        before = self.epochs[-1].genotype if self.epochs else None
        if self.cut:  # there is no time to look, and nothing that could be done about it
            health = Health(skip_shares=skip_shares(self.space, genotype))
        else:
            health = self._examiner.examine(self.loop, genotype, before, val_acc)
        growth, moment = self._look(health.eigenvalue)
        epoch = Epoch(
            epoch=self.done,
            epochs=self.ends[-1] + self.tuning,
            genotype=genotype,
            strengths=tuple(supernet.strengths()),
            train_loss=loss,
            val_acc=val_acc,
            seconds=trained + time.perf_counter() - started,
            health=health,
            growth=growth,
        )
        back = None
        if moment is None:
            events = self._go_on()
        else:
            back, events = self._go_back(growth, moment)
        if self.cut and not self.ended:
            events = [*events, "the budget is spent", *self._end_early()]
        self.looked_s = time.perf_counter() - started
        seconds = trained + self.looked_s
        self.epochs.append(dataclasses.replace(epoch, events=tuple(events), back=back, seconds=seconds))
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
            "strengths": [torch.from_numpy(row) for row in self.strengths],
            "healthy": list(self.healthy),
            "direction": list(self._examiner.direction),
            "watch": self._watch.state(),
            "epochs": [epoch.packed() for epoch in self.epochs],
        }

    def restore(self, step: int, state: Mapping[str, Any]) -> None:  # noqa: ARG002 - the state has both parts
        elsewhere = state["stage"] != self.stage
        self.stage, self.done, self._before = state["stage"], state["done"], state["before"]
        self.ended, self.preferred = state["ended"], tuple(state["preferred"])
        self.strengths = tuple(row.numpy() for row in state["strengths"])
        self.healthy = tuple(state["healthy"])
        device = self.task.train.x.device
        self._examiner.direction = [tensor.to(device) for tensor in state["direction"]]
        self._watch.restore(state["watch"])
        self.epochs = [Epoch.unpacked(record) for record in state["epochs"]]
        if elsewhere:
            self.loop = self._loop_of_stage()
        self.loop.restore(state["loop_step"], state["search"])
        self._begin_epoch()

    def settings(self) -> Mapping[str, Any]:
        return self._settings

    def replicas(self) -> Iterable[Tensor]:
        return [*self.loop.loop.parameters.values(), *self.supernet.architecture()]

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
            return preferred_accuracy(self.loop, genotype, derive(self.seed, "validate", self.done))
        return evaluate(self.supernet, self.task, self.task.val, batch=images_at_once(self.loop))[1]

    def _look(self, eigenvalue: float) -> tuple[Growth, Moment | None]:
        """How the curvature has grown while the alphas move; where to go back to when it is too much."""
        stage = self._in_stage
        if stage is None or not self.loop.alphas_move:
            return Growth(), None
        length = stage.epochs if self.method.staging.fresh else self.ends[-1]
        guarded = self.method.guards is not None
        now = (lambda: (self.done, self.loop.loop.step, self.loop.state())) if guarded else None
        return self._watch.look(self.done, length, abs(eigenvalue), now)

    def _go_back(self, growth: Growth, moment: Moment) -> tuple[int, list[str]]:
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
        return back, [f"{what}, where the stage ends", *self._go_on()]

    def _go_on(self) -> list[str]:
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
            self._examiner.direction = []
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
        settings, guards, events = self.method.selection, self.method.guards, []
        assert settings is not None
        for i in due:
            banned = barred(self.space, self.supernet.alive, i, guards.skip_cap) if guards is not None else ()
            option = selection.select(self.supernet, self.task, settings, i, barred=banned)
            decision = self.space.decisions[i]
            events.append(f"{decision.name} is {decision.options[option]}")
        return events

    def _end_early(self) -> list[str]:
        """Chooses at once what the rest of the search would have chosen bit by bit."""
        self.ended = True
        if not self.preferred:
            self._choose()
        if self.method.selection is None:
            return []
        order, alive = selection.order(self.supernet, self.seed), self.supernet.alive
        return self._fix([i for i in order if len(alive[i]) > 1])

    def _choose(self) -> None:
        """Lets the alphas choose."""
        undecided = any(len(options) > 1 for options in self.supernet.alive)
        if self.method.staging.by == "fisher" and undecided:
            record_fisher(self.supernet, self.task)
        self.preferred = by_alphas(
            self.supernet,
            self.task,
            self.method.guards,
            healthy=self.healthy,
            seed=derive(self.seed, "cap", self.done),
            images=images_at_once(self.loop),
        )
        self.strengths = tuple(self.supernet.strengths())

    def outcome(self) -> Outcome:
        """The end of the search; asked when there are no more steps."""
        selected = []
        settings = self.method.selection
        if settings is not None and all(len(options) == 1 for options in self.supernet.alive):
            scored = selection.connections(self.supernet, self.task, settings, self.strengths)
            selected.append(self.space.nearest(scored))
        selected += [self.preferred, *(e.genotype for e in reversed(lasting(self.epochs)))]
        return Outcome(tuple(self.epochs), list(dict.fromkeys(selected)), self.strengths, self.supernet)

    # -- loops -----------------------------------------------------------------------------------------

    def _loop_of_stage(self, supernet: Supernet | None = None) -> BilevelLoop:
        """The loop of the present stage with a fresh supernet, or with a given one."""
        method, stage = self.method, self._in_stage
        if stage is None:
            settings = method.selection
            assert settings is not None
            lr = method.weights.lr * settings.lr_share
            low = min(lr, method.weights.lr_min)
            recipe = dataclasses.replace(
                method.weights, epochs=self.tuning, lr=lr, lr_min=low, warmup_epochs=0.0, restarts=()
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
            over=self._in_stage is None,
            team=self.team,
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
