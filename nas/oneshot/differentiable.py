"""The differentiable search: a supernet and its alphas are trained and watched, an architecture selected."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from nas.oneshot import selection
from nas.oneshot.course import Course
from nas.oneshot.health import ITERATIONS, Health, continued, preferred_accuracy
from nas.oneshot.identities import skip_shares
from nas.oneshot.method import Method
from nas.oneshot.record import Epoch, Outcome, lasting
from nas.oneshot.supernet import Supernet
from nas.seeding import derive, isolated
from nas.space import Space
from nas.task import Split, Task, first_of
from nas.training import resumable
from nas.training.accuracy import FORWARD
from nas.training.checkpoint import Checkpoints
from nas.training.pace import Pace
from nas.training.team import ALONE, Team
from nas.types import Genotype
from nas.user_code import memory_errors

LOOKS, CURVATURE = 3.0, 1.2
"""Steps that looking at a search takes about as long as, and those of an iteration of the eigenvalue."""
PASSES = 2
"""Of as many images, to train the weights and the alphas, are a step."""


def looks(task: Task, method: Method, *, first: bool) -> float:
    """Steps that all which is done after an epoch takes about as long as, before it was timed."""
    batch = method.weights.batch
    later = min(ITERATIONS, continued(len(task.train) // batch))
    iterations = (ITERATIONS if first else later) if method.learns_alphas else 0
    return LOOKS + CURVATURE * iterations + FORWARD / PASSES * len(task.val) / batch


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
    team: all of its ranks search together, see `nas.training.team`; rank 0 alone looks, selects and saves.
    """
    what = f"searching at batch {team.images(method.weights.batch)}"
    advice = "use a smaller batch or network, or let memory (`--memory 8GiB`) fit the search to the device"
    with isolated(seed, "search"), memory_errors(what, advice):
        course = Course(space, task, method, seed=seed, team=team)
        if prepare is not None:
            prepare(course.supernet)
        work = _Search(course, left_s)
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
    """The course of a search with the record of its epochs, as a `Resumable`.

    cut: whether the time is over. step_s: what a step took of late; 0 while that is not known. looked_s: what
      looking after the last epoch took; 0 before the first.
    """

    def __init__(self, course: Course, left_s: Callable[[], float] | None) -> None:
        self.course, self.left_s = course, left_s
        self.epochs: list[Epoch] = []
        self.cut, self.step_s, self.looked_s = False, 0.0, 0.0
        self._pace = Pace()
        self._settings = {**course.loop.loop.settings(), "method": course.method.describe()}
        course.begin_epoch()

    @property
    def step(self) -> int:
        return self.course.step

    @property
    def steps(self) -> int:
        course = self.course
        return course.step if course.ended else course.epochs * course.loop.loop.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        return self.cut or self.course.loop.loop.at_epoch_end

    def advance(self) -> None:
        started, loop = time.perf_counter(), self.course.loop
        loop.advance()
        if loop.replays:
            self._pace.handed_over(loop.loop.step, waited=loop.loop.has_waited)
        elif not loop.captures:  # what is yet to be captured takes far longer than the steps after it
            self._pace.took(time.perf_counter() - started)
        if self.left_s is not None:
            self.step_s = self._pace.step_s
            looks_s = self.looked_s or self.step_s * looks(self.course.task, self.course.method, first=True)
            self.cut = self.left_s() <= looks_s

    def end_epoch(self) -> Sequence[Epoch]:
        course = self.course
        loss, trained = course.loop.loop.end_epoch()
        if course.loop.replays:
            self._pace.handed_over(course.loop.loop.step, waited=True)
        self._pace.forget()
        started = time.perf_counter()
        course.done += 1
        supernet, genotype = course.supernet, course.supernet.genotype()
        val_acc = self._validate(genotype)
        health = self._examine(genotype, val_acc)
        growth, moment = course.look(health.eigenvalue)
        epoch = Epoch(
            epoch=course.done,
            epochs=course.epochs,
            genotype=genotype,
            strengths=tuple(supernet.strengths()),
            train_loss=loss,
            val_acc=val_acc,
            seconds=trained + time.perf_counter() - started,
            health=health,
            growth=growth,
        )
        back, events = (None, course.go_on()) if moment is None else course.go_back(growth, moment)
        trouble = course.examiner.trouble
        if trouble and all(trouble not in earlier.events for earlier in self.epochs):
            events = [trouble, *events]
        if self.cut and not course.ended:
            events = [*events, "the budget is spent", *course.end_early()]
        self.looked_s = time.perf_counter() - started
        seconds = trained + self.looked_s
        self.epochs.append(dataclasses.replace(epoch, events=tuple(events), back=back, seconds=seconds))
        course.begin_epoch()
        return tuple(self.epochs)

    def state(self) -> Mapping[str, Any]:
        return {**self.course.state(), "epochs": [epoch.packed() for epoch in self.epochs]}

    def restore(self, step: int, state: Mapping[str, Any]) -> None:  # noqa: ARG002 - the state has both parts
        self.course.restore(state)
        self.epochs = [Epoch.unpacked(record) for record in state["epochs"]]
        self.course.begin_epoch()

    def settings(self) -> Mapping[str, Any]:
        return self._settings

    def replicas(self) -> Iterable[Tensor]:
        return [*self.course.loop.loop.parameters.values(), *self.course.supernet.architecture()]

    def outcome(self) -> Outcome:
        """The end of the search; asked when there are no more steps."""
        course, selected = self.course, list[Genotype]()
        settings, supernet = course.method.selection, course.supernet
        if settings is not None and all(len(options) == 1 for options in supernet.alive):
            with isolated(course.seed, "connections"):  # the same when a search that is over is asked again
                scored = selection.connections(supernet, course.task, settings, course.strengths)
            selected.append(course.space.nearest(scored))
        selected += [course.preferred, *(e.genotype for e in reversed(lasting(self.epochs)))]
        return Outcome(tuple(self.epochs), list(dict.fromkeys(selected)), course.strengths, supernet)

    def _validate(self, genotype: Genotype) -> float:
        course, loop = self.course, self.course.loop
        if course.supernet.relaxation.one_at_a_time:
            return preferred_accuracy(loop, genotype, derive(course.seed, "validate", course.done))
        return loop.evaluation.of(self._validated())[1]

    def _validated(self) -> Split:
        """The images to validate on: all, or where the time is over, as many as there is time for."""
        val, portion = self.course.task.val, self.course.loop.images_at_once
        if not self.cut or self.left_s is None:
            return val
        portion_s = max(1e-9, self.step_s * FORWARD / PASSES * portion / self.course.loop.loop.images)
        return first_of(val, portion * max(1, int(self.left_s() / portion_s)))

    def _examine(self, genotype: Genotype, val_acc: float) -> Health:
        course, before = self.course, self.epochs[-1].genotype if self.epochs else None
        if self.cut:  # there is no time to look, and nothing that could be done about it
            return Health(skip_shares=skip_shares(course.space, genotype))
        return course.examiner.examine(course.loop, genotype, before, val_acc)
