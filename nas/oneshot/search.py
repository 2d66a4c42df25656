"""A differentiable search: epochs of steps, what is looked at after each, and the stages between them.

A stage ends with options that drop out; the next one goes on, perhaps with another form of supernet, or
starts anew. Where the guards see the curvature grow, the search goes back some epochs. After the last stage
the alphas choose, and a selection, if any, fixes decision after decision while the weights are tuned.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nas.data.task import Task, first_of
from nas.oneshot import darts_pt
from nas.oneshot.bilevel import Bilevel
from nas.oneshot.darts_step import stepping
from nas.oneshot.diagnostics import (
    ITERATIONS,
    Epoch,
    Examiner,
    Health,
    Outcome,
    Strengths,
    continued,
    lasting,
    preferred_accuracy,
)
from nas.oneshot.discretize import by_alphas, keeps_cap, skip_shares
from nas.oneshot.early_stopping import Growth, Guards, Moment, Watch
from nas.oneshot.methods import Method
from nas.oneshot.progressive import inherit, record_fisher, shrink, supernet_of
from nas.oneshot.stages import Stage, ends, fading
from nas.oneshot.supernet import Supernet
from nas.seeding import derive, isolated
from nas.space.space import Space
from nas.training import resumable
from nas.training.checkpoint import Checkpoints
from nas.training.checks import CHECK_STEPS
from nas.training.ddp import ALONE, Team
from nas.training.evaluate import FORWARD, evaluate
from nas.training.pace import Pace
from nas.training.recipe import Recipe, compressed
from nas.types import Genotype
from nas.user_code import memory_errors

LOOKS, CURVATURE = 3.0, 1.2
"""Steps that looking at a search takes about as long as, and those of an iteration of the eigenvalue."""
PASSES = 2
"""Of as many images, to train the weights and the alphas, are a step."""


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
      step was the last one, and what the alphas prefer then is chosen. Where there is no time to validate on
      all images, some tell the accuracy. Not for a team.
    on_epoch: called after each epoch with all epochs so far, those before a resumption included.
    stop: asked before every step; when true, a checkpoint is written and `Stopped` is raised.
    team: all of its ranks search together, see `nas.training.ddp`; rank 0 alone looks, selects and saves.
    """
    what = f"searching at batch {team.images(method.weights.batch)}"
    advice = "use a smaller batch or network, or let memory (`--memory 8GiB`) fit the search to the device"
    with isolated(seed, "search"), memory_errors(what, advice):
        work = Search(space, task, method, seed=seed, team=team, left_s=left_s)
        if prepare is not None:
            prepare(work.bilevel.supernet)
        resumable.run(
            work,
            what="search",
            checkpoints=checkpoints,
            checkpoint_seconds=checkpoint_seconds,
            on_epoch=on_epoch,
            stop=stop,
            team=team,
        )
        return _outcome(work)


def looks(task: Task, method: Method, *, first: bool) -> float:
    """Steps that all which is done after an epoch takes about as long as, before it was timed."""
    batch = method.weights.batch
    later = min(ITERATIONS, continued(len(task.train) // batch))
    iterations = (ITERATIONS if first else later) if method.learns_alphas else 0
    return LOOKS + CURVATURE * iterations + FORWARD / PASSES * len(task.val) / batch


class Search:
    """A search as a `Resumable`: where it is among its stages, what it moves, and the record of its epochs.

    bilevel: what the steps of the present stage move.
    done: epochs done on the way to the end, without those that were gone back on; total: of these in all, the
      selection's training included.
    stage: the number of the present one; the selection's training comes after the last. ended: whether
      everything has been chosen.
    preferred: what the alphas chose at their end, strengths: as they were then. healthy: what they preferred
      where the search last went back to.
    cut: whether the time is over. step_s: what a step took of late, looked_s: what looking after the last
      epoch took, in seconds; 0 while that is not known.
    """

    def __init__(
        self,
        space: Space,
        task: Task,
        method: Method,
        *,
        seed: int,
        team: Team = ALONE,
        left_s: Callable[[], float] | None = None,
    ) -> None:
        self.space, self.task, self.method, self.seed, self.team = space, task, method, seed, team
        options = max(len(d.options) for d in space.decisions)
        self.stages = method.staging.stages(method.weights.epochs, options)
        self.ends = ends(self.stages)
        self.tuning = 0
        if method.selection is not None:
            self.tuning = max(1, round(method.selection.tune * method.weights.epochs))
        self.total = self.ends[-1] + self.tuning
        self.epochs: list[Epoch] = []
        self.preferred: Genotype = ()
        self.strengths: Strengths = ()
        self.healthy: Genotype = ()
        self.ended = self.cut = False
        self.done = self.stage = 0
        self.examiner, self.watch = Examiner(), Watch(method.guards or Guards())
        self.left_s, self.step_s, self.looked_s = left_s, 0.0, 0.0
        self._pace = Pace()
        self._steps_before = 0
        self._enter()
        self._settings = {**self.bilevel.loop.settings(), "method": method.describe()}
        self._begin_epoch()

    # -- steps and epochs ------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Steps done, with those of earlier stages."""
        return self._steps_before + self.bilevel.loop.step

    @property
    def steps(self) -> int:
        """All steps, those of the selection's training included."""
        return self.step if self.ended else self.total * self.bilevel.loop.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step was the last of its epoch, or there is no time for another one."""
        return self.cut or self.bilevel.loop.at_epoch_end

    def advance(self) -> None:
        """Does one step."""
        started, loop = time.perf_counter(), self.bilevel.loop
        after_search = self.stage == len(self.stages)
        self.bilevel.supernet.progress.fill_(1.0 if after_search else loop.step / loop.steps)
        self._advance()
        if loop.device.type == "cuda":
            self._pace.handed_over(loop.step, waited=loop.step % CHECK_STEPS == 0)
        else:
            self._pace.took(time.perf_counter() - started)
        if self.left_s is not None:
            self.step_s = self._pace.step_s
            looks_s = self.looked_s or self.step_s * looks(self.task, self.method, first=True)
            self.cut = self.left_s() <= looks_s

    def end_epoch(self) -> Sequence[Epoch]:
        """Looks at the search, records the epoch, and goes back or on where it is time."""
        loss, trained_s = self.bilevel.loop.end_epoch()
        self._pace.forget()
        started = time.perf_counter()
        self.done += 1
        genotype = self.bilevel.supernet.genotype()
        val_acc = self._validate(genotype)
        if self.cut:  # there is no time to look, and nothing that could be done about it
            health = Health(skip_shares=skip_shares(self.space, genotype))
        else:
            before = self.epochs[-1].genotype if self.epochs else None
            health = self.examiner.examine(self.bilevel, genotype, before, val_acc)
        growth, moment = self._look(health.eigenvalue)
        epoch = Epoch(
            epoch=self.done,
            epochs=self.total,
            genotype=genotype,
            strengths=tuple(self.bilevel.supernet.strengths()),
            train_loss=loss,
            val_acc=val_acc,
            seconds=0.0,
            health=health,
            growth=growth,
        )
        back, events = (None, self._go_on()) if moment is None else self._go_back(growth, moment)
        trouble = self.examiner.trouble
        if trouble and all(trouble not in earlier.events for earlier in self.epochs):
            events = [trouble, *events]
        if self.cut and not self.ended:
            events = [*events, "the budget is spent", *self._end_early()]
        self.looked_s = time.perf_counter() - started
        seconds = trained_s + self.looked_s
        self.epochs.append(dataclasses.replace(epoch, events=tuple(events), back=back, seconds=seconds))
        self._begin_epoch()
        return tuple(self.epochs)

    # -- saving ----------------------------------------------------------------------------------------

    def state(self) -> Mapping[str, Any]:
        """All that the rest depends on."""
        return {
            "bilevel": self.bilevel.state(),
            "loop_step": self.bilevel.loop.step,
            "stage": self.stage,
            "done": self.done,
            "steps_before": self._steps_before,
            "ended": self.ended,
            "preferred": list(self.preferred),
            "strengths": [torch.from_numpy(row) for row in self.strengths],
            "healthy": list(self.healthy),
            "direction": list(self.examiner.direction),
            "watch": self.watch.state(),
            "epochs": [epoch.packed() for epoch in self.epochs],
        }

    def restore(self, step: int, state: Mapping[str, Any]) -> None:  # noqa: ARG002 - the state has both parts
        """Goes back to where `state` was taken, in whatever stage that was."""
        elsewhere = state["stage"] != self.stage
        self.stage, self.done, self._steps_before = state["stage"], state["done"], state["steps_before"]
        self.ended, self.preferred = state["ended"], tuple(state["preferred"])
        self.strengths = tuple(row.numpy() for row in state["strengths"])
        self.healthy = tuple(state["healthy"])
        device = self.task.train.x.device
        self.examiner.direction = [tensor.to(device) for tensor in state["direction"]]
        self.watch.restore(state["watch"])
        self.epochs = [Epoch.unpacked(record) for record in state["epochs"]]
        if elsewhere:
            self._enter()
        self.bilevel.restore(state["loop_step"], state["bilevel"])
        self._advance = stepping(self.bilevel)  # what was captured reads tensors that are no longer there
        self._begin_epoch()

    def settings(self) -> Mapping[str, Any]:
        """What must be the same for a checkpoint to be taken up again."""
        return self._settings

    def replicas(self) -> Iterable[Tensor]:
        """What every process of a team has the same of, to the bit."""
        return [*self.bilevel.loop.parameters.values(), *self.bilevel.supernet.architecture()]

    # -- looking ---------------------------------------------------------------------------------------

    def _validate(self, genotype: Genotype) -> float:
        """Accuracy of the mixture, or of the preferred architecture where one option runs at a time.

        On all validation images, or where the time is over, on as many as there is time for.
        """
        val, images = self.task.val, self.bilevel.images_at_once
        if self.bilevel.supernet.relaxation.one_at_a_time:
            return preferred_accuracy(self.bilevel, genotype, derive(self.seed, "validate", self.done))
        if self.cut and self.left_s is not None:
            portion_s = self.step_s * FORWARD / PASSES * images / self.bilevel.loop.images
            val = first_of(val, images * max(1, int(self.left_s() / max(1e-9, portion_s))))
        return evaluate(self.bilevel.supernet, self.task, val, batch=images)[1]

    def _look(self, eigenvalue: float) -> tuple[Growth, Moment | None]:
        """How the curvature has grown while the alphas move; where to go back to when it is too much."""
        stage = self._present
        if stage is None or not self.bilevel.moves_alphas:
            return Growth(), None
        length = stage.epochs if self.method.staging.fresh else self.ends[-1]

        def now() -> Moment:
            return self.done, self.bilevel.loop.step, self.bilevel.state()

        guarded = self.method.guards is not None
        return self.watch.look(self.done, length, abs(eigenvalue), now if guarded else None)

    def _go_back(self, growth: Growth, moment: Moment) -> tuple[int, list[str]]:
        """To which epoch, and what is done about the growth."""
        guards, decay = self.watch.guards, self.bilevel.loop.weight_decay
        back, step, state = moment
        self.done = back
        self.bilevel.restore(step, state)
        self._advance = stepping(self.bilevel)
        before = self.bilevel.supernet.genotype()
        if keeps_cap(self.space, before, guards.skip_cap):
            self.healthy = before
        grown = growth.mean / growth.level * guards.ratio
        what = f"the eigenvalue grew by {grown:.2f}: back to epoch {back}"
        stronger = guards.stronger(decay)
        if stronger is not None:
            self.bilevel.loop.weight_decay = stronger
            return back, [f"{what}, weight decay {decay:.2g} -> {stronger:.2g}"]
        left_out = self.ends[self.stage] - self.done
        self.bilevel.loop.step += left_out * self.bilevel.loop.steps_per_epoch
        self.done += left_out
        return back, [f"{what}, where the stage ends", *self._go_on()]

    # -- stages ----------------------------------------------------------------------------------------

    @property
    def _present(self) -> Stage | None:
        """The present stage; None while the selection's training goes on."""
        return self.stages[self.stage] if self.stage < len(self.stages) else None

    def _begin_epoch(self) -> None:
        """Sets what depends on how far the present stage is."""
        stage = self._present
        if stage is None:
            self.bilevel.supernet.drop_skips(0.0)
            self.bilevel.moves_alphas = self.method.learns_alphas
            return
        at = self.done - (self.ends[self.stage] - stage.epochs)
        guards = self.method.guards
        warmup = max(self.method.warmup, guards.warmup if guards is not None else 0.0)
        rest = min(stage.epochs - 1, round(warmup * stage.epochs))
        self.bilevel.moves_alphas = self.method.learns_alphas and at >= rest
        self.bilevel.supernet.drop_skips(stage.skip_dropout * fading(at, rest, stage.epochs))

    def _go_on(self) -> list[str]:
        """Enters the next stage, selects, or ends, where it is time; says what happened."""
        if self._present is None:
            tuned = self.done - self.ends[-1]
            events = self._fix(darts_pt.due(self.bilevel.supernet, self.seed, tuned, of=self.tuning))
            self.ended = tuned == self.tuning
            return events
        if self.done < self.ends[self.stage]:
            return []
        if self.stage + 1 < len(self.stages):
            return self._next_stage()
        _choose(self)
        if self.method.selection is None:
            self.ended = True
            return []
        old = self.bilevel
        self.stage += 1
        self._steps_before += old.loop.step
        self._enter(old.supernet)
        self.bilevel.take_over(old)
        return self._fix(darts_pt.due(self.bilevel.supernet, self.seed, 0, of=self.tuning))

    def _next_stage(self) -> list[str]:
        if self.method.staging.by == "fisher":
            record_fisher(self.bilevel.supernet, self.task)
        old, now = self.bilevel, self.stages[self.stage]
        self.stage += 1
        stage = self.stages[self.stage]
        events = shrink(self.bilevel.supernet, stage)
        alive = self.bilevel.supernet.alive
        if self.method.staging.fresh:
            self._steps_before += old.loop.step
            self.examiner.direction = []
            self._enter()
            self.bilevel.loop.weight_decay = old.loop.weight_decay
            self.bilevel.supernet.keep(alive)
        elif stage.parts != now.parts:
            self._enter()
            self.bilevel.take_over(old)
            inherit(self.bilevel.supernet, old.supernet)
            self.bilevel.loop.step = old.loop.step
        self.watch.forget()
        return [f"stage {self.stage + 1} of {len(self.stages)}: {text}" for text in events]

    def _enter(self, supernet: Supernet | None = None) -> None:
        """Begins the present stage with a fresh supernet, or with a given one."""
        stage, anew = self._present, self.method.staging.fresh
        if supernet is None:
            with isolated(self.seed, "supernet", self.stage):
                supernet = supernet_of(self.space, self.method, stage or self.stages[-1])
        supernet.to(self.task.train.x.device).train()
        weights = self.method.weights
        if stage is None:
            weights = _tuning(self.method, self.tuning)
        elif anew:
            weights = compressed(weights, stage.epochs)
        method = dataclasses.replace(self.method, weights=weights)
        seed = derive(self.seed, "stage", self.stage if anew or stage is None else 0)
        self.bilevel = Bilevel.begun(supernet, self.task, method, seed=seed, team=self.team)
        self._advance = stepping(self.bilevel)

    # -- choosing --------------------------------------------------------------------------------------

    def _end_early(self) -> list[str]:
        """Chooses at once what the rest of the search would have chosen bit by bit."""
        self.ended = True
        if not self.preferred:
            _choose(self)
        if self.method.selection is None:
            return []
        order, alive = darts_pt.order(self.bilevel.supernet, self.seed), self.bilevel.supernet.alive
        return self._fix([i for i in order if len(alive[i]) > 1])

    def _fix(self, due: Sequence[int]) -> list[str]:
        """Fixes decisions by what removing an option costs; says to what."""
        settings = self.method.selection
        assert settings is not None
        return darts_pt.fix(self.bilevel.supernet, self.task, settings, due, cap=self.method.identities)


def _outcome(work: Search) -> Outcome:
    """The end of a search that has no more steps."""
    settings, supernet, selected = work.method.selection, work.bilevel.supernet, list[Genotype]()
    if settings is not None and all(len(options) == 1 for options in supernet.alive):
        with isolated(work.seed, "connections"):  # the same when a search that is over is asked again
            scored = darts_pt.connections(supernet, work.task, settings, work.strengths)
        selected.append(work.space.nearest(scored))
    selected += [work.preferred, *(e.genotype for e in reversed(lasting(work.epochs)))]
    return Outcome(tuple(work.epochs), list(dict.fromkeys(selected)), work.strengths, supernet)


def _choose(work: Search) -> None:
    """Lets the alphas choose."""
    supernet, method = work.bilevel.supernet, work.method
    undecided = any(len(options) > 1 for options in supernet.alive)
    if method.staging.by == "fisher" and undecided:
        record_fisher(supernet, work.task)
    work.preferred = by_alphas(
        supernet,
        work.task,
        method.identities,
        judged=method.guards is not None,
        healthy=work.healthy,
        seed=derive(work.seed, "cap", work.done),
        images=work.bilevel.images_at_once,
    )
    work.strengths = tuple(supernet.strengths())


def _tuning(method: Method, epochs: int) -> Recipe:
    """Of the weights while a selection fixes decisions."""
    settings, weights = method.selection, method.weights
    assert settings is not None
    lr = weights.lr * settings.lr_share
    lr_min = min(lr, weights.lr_min)
    return dataclasses.replace(weights, epochs=epochs, lr=lr, lr_min=lr_min, warmup_epochs=0.0, restarts=())
