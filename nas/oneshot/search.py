"""A differentiable search: epochs of steps, what is measured after each, and the stages between them.

A stage ends with options that drop out; the next one goes on, perhaps with another form of supernet, or
starts anew. Where the guards see the curvature grow, the search goes back some epochs. After the last stage
the alphas choose, and a selection, if any, fixes decision after decision while the weights are tuned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor

from nas.data.task import Task
from nas.oneshot import darts_pt
from nas.oneshot.darts_step import darts_step
from nas.oneshot.diagnostics import (
    DifferentiableOutcome,
    Epoch,
    Examiner,
    Health,
    Strengths,
    between,
    lasting,
    monitoring_cost,
    supernet_score,
)
from nas.oneshot.discretize import by_alphas, skip_shares, without_zeros
from nas.oneshot.early_stopping import Growth, Guards
from nas.oneshot.methods import Method
from nas.oneshot.oles import Freezer
from nas.oneshot.progressive import deepened, fading, inherit, record_fisher, shrink
from nas.oneshot.supernet import Mixtures, Supernet, preserving, recompute_cells, without_gradients
from nas.seeding import derive, isolated, reseed
from nas.space.cost import step_work
from nas.space.space import Space
from nas.training import resumable
from nas.training.checkpoint import Checkpoints, pack, unpack
from nas.training.cuda_graph import GraphedStep
from nas.training.ddp import ALONE, Team
from nas.training.evaluate import Batch
from nas.training.loop import Batches, Loop
from nas.training.optimizer import gradients
from nas.training.recipe import Precision, compressed, precision
from nas.types import Genotype
from nas.user_code import memory_errors

Moment = tuple[int, int, Any]
"""Epochs and steps done, and what the steps of the stage then depend on."""


def search(
    space: Space,
    task: Task,
    method: Method,
    *,
    seed: int,
    prepare: Callable[[Supernet], None] | None = None,
    checkpoints: Checkpoints | None = None,
    left_s: Callable[[], float] | None = None,
    on_epoch: Callable[[Sequence[Epoch]], None] | None = None,
    stop: Callable[[], bool] | None = None,
    team: Team = ALONE,
) -> DifferentiableOutcome:
    """Searches a space by gradients, on the device of the task.

    prepare: changes the first supernet before it is trained, e.g. its alphas.
    checkpoints: where to resume from, exactly to the step, and where to save to.
    left_s: seconds left, asked after every step; when they are no more than looking took the last time, the
      step was the last one, and what the alphas prefer then is chosen. Where there is no time to validate on
      all images, some tell the score. Not for a team.
    on_epoch: called after each epoch with all epochs so far, those before a resumption included.
    stop: asked before every step; when true, a checkpoint is written and `Stopped` is raised.
    team: all of its ranks search together, see `nas.training.ddp`; rank 0 alone looks, selects and saves.
    """
    what = f"searching at batch {team.images(method.weights.batch)}"
    advice = "use a smaller batch or network, or let memory (`--memory 8GiB`) fit the search to the device"
    with isolated(seed, "search"), memory_errors(what, advice):
        work = Search(space, task, method, seed=seed, team=team, left_s=left_s)
        if prepare is not None:
            prepare(work.supernet)
        resumable.run(work, what="search", checkpoints=checkpoints, on_epoch=on_epoch, stop=stop, team=team)
        return _outcome(work)


class Search:
    """A search as a `Resumable`: what its steps move, where it is among its stages, the record of its epochs.

    supernet: of the present stage. loop: trains its weights, and counts the stage's steps. alpha_optimizer:
      moves its alphas by batches of `validation`; moves_alphas: whether the coming steps do, or train the
      weights only. freezer: which operations have stopped learning (OLES); None where none may.
    done: epochs done on the way to the end, without those that were gone back on; total: of these in all, the
      selection's training included.
    stage: the number of the present one; the selection's training comes after the last. ended: whether
      everything has been chosen.
    preferred: what the alphas chose at their end, strengths: as they were then.
    eigenvalues, moments: of the epochs since the alphas began to move, a stage began or the search went back;
      moments, by epoch, are those that it may go back to.
    cut: whether the time is over. looked_s: what looking after the last epoch took, in seconds; 0 while that
      is not known.
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
        """As of `search`."""
        self.space, self.task, self.method, self.seed, self.team = space, task, method, seed, team
        options = max(len(d.options) for d in space.decisions)
        self.stages = method.staging.stages(method.weights.epochs, options)
        self.ends = list(accumulate(stage.epochs for stage in self.stages))
        self.tuning = 0
        if method.selection is not None:
            self.tuning = max(1, round(method.selection.tune * method.weights.epochs))
        self.total = self.ends[-1] + self.tuning
        self.epochs: list[Epoch] = []
        self.preferred: Genotype = ()
        self.strengths: Strengths = ()
        self.ended = self.cut = False
        self.done, self.steps_before = 0, 0
        self.examiner, self.eigenvalues, self.moments = Examiner(), list[float](), dict[int, Moment]()
        self.left_s, self.looked_s = left_s, 0.0
        self.enter(0)
        self._settings = {**self.loop.settings(), "method": method.describe()}
        self.begin_epoch()

    # -- the losses of a step --------------------------------------------------------------------------

    def validation_loss(self, val: Batch, mixture: Mixtures | None = None) -> Tensor:
        """The problem's loss on a validation batch, under the mixture of the alphas or under a given one."""
        x, (y, _) = val
        with precision(x.device, self.loop.recipe.precision):
            logits = self._logits(x, mixture, derive(self.loop.seed, "alpha step", self.loop.step))
        return self.task.problem.loss(logits.float(), y)

    def training_loss(
        self, train: Batch, mixture: Mixtures | None = None, arithmetic: Precision | None = None
    ) -> Tensor:
        """The recipe's loss on a training batch, under the mixture of the alphas or under a given one."""
        return self.loop.loss(train, lambda x: self._logits(x, mixture, self.loop.seed_of_step), arithmetic)

    def _logits(self, x: Tensor, mixture: Mixtures | None, seed: int) -> Tensor:
        """All ranks draw the same mixture; what the network draws is a rank's own."""
        reseed(seed)
        weights = self.supernet.mixture_weights() if mixture is None else mixture
        shares = self.supernet.mixture(weights, full=mixture is not None)
        if self.team.size > 1:
            self.team.apart(seed)
        return self.supernet.mix(x, shares)

    def penalty(self) -> Tensor:
        """The regularisers at the coming step's alphas and mixture, a scalar."""
        reseed(derive(self.loop.seed, "alpha step", self.loop.step))
        supernet, regularizers = self.supernet, self.method.regularizers
        weights = alphas = supernet.logits()
        if any(regularizer.reads_mixture for regularizer in regularizers):
            weights = supernet.mixture_weights()[0]
        return torch.stack([r(alphas, weights, supernet.progress) for r in regularizers]).sum()

    def perturbed_mixture(self, train: Batch) -> Mixtures:
        """The mixture that the weights are trained under by a method that perturbs it (SDARTS)."""
        perturbation, supernet, loop = self.method.perturbation, self.supernet, self.loop
        assert perturbation is not None
        reseed(derive(loop.seed, "perturbation", loop.step))

        def loss(weights: Tensor) -> Tensor:
            return loop.average([self.training_loss(train, [weights, *edges])], loop.batch)[0]

        def gradient(weights: Tensor) -> Tensor:
            leaf = weights.detach().requires_grad_()
            with torch.enable_grad():
                found = gradients(self.training_loss(train, [leaf, *edges]), [leaf])
            return loop.average(found, loop.batch)[0]

        buffers, fixed = supernet.network.buffers(), without_gradients(loop.parameters.values())
        with torch.no_grad(), preserving(buffers), fixed:
            weights, *edges = supernet.mixture_weights()
            return [perturbation(weights, loss, gradient, supernet.progress), *edges]

    # -- steps and epochs ------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Steps done, with those of earlier stages."""
        return self.steps_before + self.loop.step

    @property
    def steps(self) -> int:
        """All steps, those of the selection's training included."""
        return self.step if self.ended else self.total * self.loop.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step was the last of its epoch, or there is no time for another one."""
        return self.cut or self.loop.at_epoch_end

    def advance(self) -> None:
        """Does one step."""
        loop = self.loop
        started, train = time.perf_counter(), loop.begin()
        val = self.validation.at(loop.step) if self.moves_alphas else None
        self.supernet.progress.fill_(1.0 if self.stage == len(self.stages) else loop.step / loop.steps)
        if self._graphed is None:
            darts_step(self, train, val)
        else:
            self._graphed((train, val))
        loop.end_step(started)
        if self.left_s is not None:
            looks_s = self.looked_s or loop.step_s * monitoring_cost(self.task, self.method, first=True)
            self.cut = self.left_s() <= looks_s

    def end_epoch(self) -> Sequence[Epoch]:
        """Looks at the search, records the epoch, and goes back or on where it is time."""
        loss, trained_s = self.loop.end_epoch()
        started = time.perf_counter()
        self.done += 1
        genotype = self.supernet.genotype()
        within_s = self.left_s() if self.cut and self.left_s is not None else math.inf
        seed = derive(self.seed, "validate", self.done)
        val_score = supernet_score(self, genotype, seed, within_s=within_s)
        if self.cut:  # there is no time to look, and nothing that could be done about it
            health = Health(skip_shares=skip_shares(self.space, genotype))
        else:
            before = self.epochs[-1].genotype if self.epochs else None
            curved = self.done % between(self.method) == 0
            health = self.examiner.examine(self, genotype, before, val_score, curved=curved)
        guards, (growth, moment) = self.method.guards, _look(self, health.eigenvalue)
        epoch = Epoch(
            epoch=self.done,
            epochs=self.total,
            genotype=genotype,
            strengths=tuple(self.supernet.strengths()),
            train_loss=loss,
            val_score=val_score,
            seconds=0.0,
            health=health,
            growth=growth,
        )
        if guards is None or moment is None:
            back, events = None, _go_on(self)
        else:
            back, events = _go_back(self, guards, growth, moment)
        trouble = self.examiner.trouble
        if trouble and all(trouble not in earlier.events for earlier in self.epochs):
            events = [trouble, *events]
        if self.cut and not self.ended:
            events = [*events, "the budget is spent", *_end_early(self)]
        self.looked_s = time.perf_counter() - started
        seconds = trained_s + self.looked_s
        self.epochs.append(replace(epoch, events=tuple(events), back=back, seconds=seconds))
        self.begin_epoch()
        return tuple(self.epochs)

    def begin_epoch(self) -> None:
        """Sets what depends on how far the present stage is."""
        learns = self.method.learns_alphas and any(len(options) > 1 for options in self.supernet.alive)
        if self.selects:
            self.supernet.drop_skips(0.0)
            self.moves_alphas = learns
            return
        stage, guards = self.stages[self.stage], self.method.guards
        at = self.done - (self.ends[self.stage] - stage.epochs)
        warmup = max(self.method.warmup, guards.warmup if guards is not None else 0.0)
        rest = min(stage.epochs - 1, round(warmup * stage.epochs))
        self.moves_alphas = learns and at >= rest
        self.supernet.drop_skips(stage.skip_dropout * fading(at, rest, stage.epochs))

    # -- stages ----------------------------------------------------------------------------------------

    @property
    def selects(self) -> bool:
        """Whether the stages are over and a selection is on its way."""
        return self.stage == len(self.stages)

    def enter(self, number: int, supernet: Supernet | None = None) -> None:
        """Begins a stage, or the selection's training, with a fresh supernet or with a given one."""
        method, task, self.stage = self.method, self.task, number
        stage, fresh = self.stages[min(number, len(self.stages) - 1)], method.staging.fresh
        if supernet is None:
            with isolated(self.seed, "supernet", number):
                space = deepened(self.space, stage.depth)
                supernet = Supernet(
                    space, relaxation=method.relaxation, parts=stage.parts, edge_norm=method.edge_norm
                )
        self.supernet = supernet.to(task.train.x.device).train()
        recipe = method.weights
        if self.selects and method.selection is not None:
            recipe = method.selection.recipe(recipe, self.tuning)
        elif fresh:
            recipe = compressed(recipe, stage.epochs)
        seed = derive(self.seed, "stage", number if fresh or self.selects else 0)
        self.loop = Loop(self.supernet.network, task, recipe, seed=seed, split=task.train, team=self.team)
        recompute_cells(self.supernet, enabled=method.checkpointing)
        self.validation = Batches(
            task.val, task, replace(recipe, mixup=0.0), seed=derive(seed, "validation"), team=self.team
        )
        self.freezer = None if method.freezing is None else Freezer(self.supernet, method.freezing)
        self.alpha_optimizer = method.update.begin(self.supernet.architecture())
        self.moves_alphas = method.learns_alphas
        self._graphed = _graphed(self)

    # -- saving ----------------------------------------------------------------------------------------

    def moment(self) -> Moment:
        """What the steps of the present stage depend on."""
        return (
            self.done,
            self.loop.step,
            {
                "loop": self.loop.state(),
                "alphas": [alpha.detach() for alpha in self.supernet.architecture()],
                "alive": self.supernet.alive,
                "alpha_optimizer": self.alpha_optimizer.state_dict()["state"],
                "freezer": self.freezer.state() if self.freezer is not None else {},
            },
        )

    def go_to(self, moment: Moment) -> None:
        """Goes to another moment of the present stage."""
        self.done, step, state = moment
        self.loop.restore(step, state["loop"])
        self.supernet.keep(state["alive"])
        with torch.no_grad():
            for alpha, saved in zip(self.supernet.architecture(), state["alphas"], strict=True):
                alpha.copy_(saved)
        # Whether moments are kept for a captured step is this device's business, not that of who saved them.
        groups = self.alpha_optimizer.state_dict()["param_groups"]
        self.alpha_optimizer.load_state_dict({"state": state["alpha_optimizer"], "param_groups": groups})
        if self.freezer is not None:
            self.freezer.restore(state["freezer"])
        self._graphed = _graphed(self)  # what was captured reads tensors that are no longer there

    def state(self) -> Mapping[str, Any]:
        """All that the rest depends on."""
        return {
            "stage": self.stage,
            "moment": self.moment(),
            "steps_before": self.steps_before,
            "ended": self.ended,
            "preferred": self.preferred,
            "strengths": [torch.from_numpy(row) for row in self.strengths],
            "direction": self.examiner.direction,
            "eigenvalues": self.eigenvalues,
            "moments": self.moments,
            "epochs": [epoch.packed() for epoch in self.epochs],
        }

    def restore(self, step: int, state: Mapping[str, Any]) -> None:  # noqa: ARG002 - the moment has it
        """Goes back to where `state` was taken, in whatever stage that was."""
        self.steps_before, self.ended = state["steps_before"], state["ended"]
        self.preferred = state["preferred"]
        self.strengths = tuple(row.numpy() for row in state["strengths"])
        self.examiner.direction = [tensor.to(self.task.train.x.device) for tensor in state["direction"]]
        self.eigenvalues, self.moments = list(state["eigenvalues"]), dict(state["moments"])
        self.epochs = [Epoch.unpacked(record) for record in state["epochs"]]
        if state["stage"] != self.stage:
            self.enter(state["stage"])
        self.go_to(state["moment"])
        self.begin_epoch()

    def settings(self) -> Mapping[str, Any]:
        """What must be the same for a checkpoint to be taken up again."""
        return self._settings

    def replicas(self) -> Iterable[Tensor]:
        """What every process of a team has the same of, to the bit."""
        return [*self.loop.parameters.values(), *self.supernet.architecture()]


# -- steps as CUDA graphs ---------------------------------------------------------------------------------


def _graphed(work: Search) -> GraphedStep[tuple[Batch, Batch | None]] | None:
    """A step that is replayed as a graph, on CUDA where the recipe allows that."""
    if work.loop.device.type != "cuda" or not work.loop.recipe.graph or work.team.size > 1:
        return None
    return GraphedStep(
        lambda batches: darts_step(work, *batches), moved=partial(_moved, work), reads=partial(_reads, work)
    )


def _moved(work: Search) -> list[Tensor]:
    """All tensors that a step changes."""
    moments = [value for state in work.alpha_optimizer.state.values() for value in state.values()]
    return [*work.loop.moved(), *work.supernet.architecture(), *moments]


def _reads(work: Search) -> Hashable | None:
    """What a step reads of Python and may change; None where a CUDA graph cannot hold the coming one."""
    method, skips = work.method, any(mixed.skip_dropout is not None for mixed in work.supernet.mixed_ops)
    if method.relaxation.samples_one_path or method.checkpointing or method.freezing is not None:
        return None
    # Passes that must draw the same are seeded apart, which a graph cannot hold.
    alike = method.order == 2 or any(regularizer.reads_mixture for regularizer in method.regularizers)
    if alike and work.moves_alphas and (method.relaxation.draws or skips):
        return None
    return tuple(work.supernet.alive), skips, work.moves_alphas, work.loop.weight_decay


# -- the end of an epoch ----------------------------------------------------------------------------------


def _look(work: Search, eigenvalue: float) -> tuple[Growth, Moment | None]:
    """How the curvature has grown while the alphas move; where to go back to when it is too much."""
    every = between(work.method)
    if work.selects or not work.moves_alphas or work.done % every:
        return Growth(), None
    length = (work.stages[work.stage].epochs if work.method.staging.fresh else work.ends[-1]) // every
    guards = work.method.guards
    work.eigenvalues.append(abs(eigenvalue))
    growth = (guards or Guards()).growth(work.eigenvalues, length)
    if guards is None:
        return growth, None
    work.moments[work.done] = cast(Moment, unpack(*pack(work.moment())))  # copied to the CPU
    back = work.done - every * guards.reach(length)
    found = work.moments[back] if growth.alarming else None
    work.moments = {at: kept for at, kept in work.moments.items() if at > back}
    return growth, found


def _go_back(work: Search, guards: Guards, growth: Growth, moment: Moment) -> tuple[int, list[str]]:
    """To which epoch, and what is done about the growth."""
    decay = work.loop.weight_decay
    work.go_to(moment)
    _forget(work)
    back = work.done
    grown = growth.mean / growth.level * guards.ratio
    what = f"the eigenvalue grew by {grown:.2f}: back to epoch {back}"
    stronger = guards.stronger(decay)
    if stronger is not None:
        work.loop.weight_decay = stronger
        return back, [f"{what}, weight decay {decay:.2g} -> {stronger:.2g}"]
    left_out = work.ends[work.stage] - back
    work.loop.step += left_out * work.loop.steps_per_epoch
    work.done += left_out
    return back, [f"{what}, where the stage ends", *_go_on(work)]


def _go_on(work: Search) -> list[str]:
    """Enters the next stage, selects, or ends, where it is time; says what happened."""
    if work.selects:
        tuned = work.done - work.ends[-1]
        work.ended = tuned == work.tuning
        return _fix(work, tuned)
    if work.done < work.ends[work.stage]:
        return []
    if work.stage + 1 < len(work.stages):
        return _next_stage(work)
    _choose(work)
    if work.method.selection is None:
        work.ended = True
        return []
    loop, freezer = work.loop, work.freezer
    work.steps_before += loop.step
    work.enter(len(work.stages), work.supernet)
    _take_over(work, loop, freezer)
    return _fix(work, 0)


def _next_stage(work: Search) -> list[str]:
    if work.method.staging.by == "fisher":
        record_fisher(work.supernet, work.task)
    supernet, loop, freezer, now = work.supernet, work.loop, work.freezer, work.stages[work.stage]
    number, following = work.stage + 1, work.stages[work.stage + 1]
    events = shrink(supernet, following)
    if work.method.staging.fresh:
        work.steps_before += loop.step
        work.examiner.direction = []
        work.enter(number)
        _take_over(work, loop, None)
        work.supernet.keep(supernet.alive)
    elif following.parts != now.parts:
        work.enter(number)
        _take_over(work, loop, freezer)
        inherit(work.supernet, supernet)
        work.loop.step = loop.step
    work.stage = number
    _forget(work)
    return [f"stage {number + 1} of {len(work.stages)}: {text}" for text in events]


def _forget(work: Search) -> None:
    """What was measured in another form, or under less weight decay, says nothing of what comes."""
    work.eigenvalues.clear()
    work.moments.clear()


def _take_over(work: Search, loop: Loop, freezer: Freezer | None) -> None:
    """Goes on with what the search has learned of its weights: their decay, and which are frozen."""
    work.loop.weight_decay = loop.weight_decay
    if work.freezer is not None and freezer is not None:
        work.freezer.restore(freezer.state())


# -- choosing ---------------------------------------------------------------------------------------------


def _choose(work: Search) -> None:
    """Lets the alphas choose."""
    supernet, method = work.supernet, work.method
    undecided = any(len(options) > 1 for options in supernet.alive)
    if method.staging.by == "fisher" and undecided:
        record_fisher(supernet, work.task)

    work.strengths = strengths = tuple(supernet.strengths())
    judge = None
    if method.guards is not None:
        strengths = tuple(without_zeros(supernet.space, strengths))
        judge = partial(darts_pt.worth, supernet, work.task)
    work.preferred = by_alphas(supernet.space, strengths, method.identities, judge=judge)


def _fix(work: Search, *epochs: int) -> list[str]:
    """Fixes the decisions whose turn it is after so many epochs of the selection's training; says to what."""
    settings, supernet, events = work.method.selection, work.supernet, list[str]()
    assert settings is not None
    turns = darts_pt.turns(supernet, work.seed, work.tuning)
    for i in (decision for epoch in epochs for decision in turns[epoch]):
        if len(supernet.alive[i]) > 1:
            decision = work.space.decisions[i]
            option = darts_pt.select(supernet, work.task, settings, i, cap=work.method.identities)
            events.append(f"{decision.name} is {decision.options[option]}")
    return events


def _end_early(work: Search) -> list[str]:
    """Chooses at once what the rest of the search would have chosen bit by bit."""
    work.ended = True
    if not work.preferred:
        _choose(work)
    return [] if work.method.selection is None else _fix(work, *range(work.tuning))


def _outcome(work: Search) -> DifferentiableOutcome:
    """The end of a search that has no more steps."""
    settings, supernet, selected = work.method.selection, work.supernet, list[Genotype]()
    if settings is not None and all(len(options) == 1 for options in supernet.alive):
        with isolated(work.seed, "connections"):  # the same when a search that is over is asked again
            scored = darts_pt.connections(supernet, work.task, settings, work.strengths)
        selected.append(work.space.nearest(scored))
    selected += [work.preferred, *(e.genotype for e in reversed(lasting(work.epochs)))]
    return DifferentiableOutcome(tuple(work.epochs), list(dict.fromkeys(selected)), work.strengths, supernet)


# -- what it costs ----------------------------------------------------------------------------------------


def search_work(space: Space, task: Task, method: Method, epochs: int) -> float:
    """The multiply-adds of the training of so many epochs of a search.

    The alphas rest for the warm-up; stages run on fewer options and more cells, in proportion.
    """

    def step(warmup: float) -> float:
        weights = replace(method.weights, graph=False)
        one = replace(method, guards=None, warmup=warmup, weights=weights)
        return step_work(lambda stop: search(space, task, one, seed=0, stop=stop))

    steps = epochs * max(1, len(task.train) // method.weights.batch)
    guarded = 0.0 if method.guards is None else method.guards.warmup
    rests = max(method.warmup, guarded) if method.learns_alphas else 0.0
    resting = step(0.99) if rests else 0.0
    stages = method.staging.stages(method.weights.epochs, max(len(d.options) for d in space.decisions))
    share = sum(s.epochs * s.keep * s.depth for s in stages) / sum(s.epochs for s in stages)
    return steps * share * (rests * resting + (1 - rests) * step(0.0))
