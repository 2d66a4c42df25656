"""How a command runs a job that can be stopped and resumed, and shows what it found."""

from __future__ import annotations

import json
import math
import signal
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

import typer

from nas.cli.app import say
from nas.training.launch import follows

if TYPE_CHECKING:
    from nas.results.result import Result
    from nas.show.progress import Progress

RIVALS = {
    "random": "random search at equal cost",
    "largest": "largest of these",
    "default": "default architecture",
}
FILES = ("report.html", "MODEL_CARD.md", "network.png", "search.png", "front.png", "alphas.png", "health.png")
"""What a run may leave behind for people, beside its model and the pictures of its cells."""


@contextmanager
def stoppable(*, quiet: bool, plain: bool) -> Iterator[tuple[Progress, StopRequest]]:
    """Progress and signals of a command that can be stopped; of several ranks only rank 0 speaks.

    quiet, plain: as `nas.show.progress.reporter` takes them.
    """
    from nas.errors import Stopped
    from nas.show.progress import Silent, reporter

    teller: AbstractContextManager[Progress] = (
        nullcontext(Silent()) if follows() else reporter(plain=plain, quiet=quiet)
    )
    with StopRequest() as stop:
        try:
            with teller as progress:
                yield progress, stop
        except Stopped as stopped:
            if not follows():
                say(f"{stopped}; the same command goes on from here", err=True)
            raise typer.Exit(stop.exit_code) from stopped


def show(result: Result, *, as_json: bool) -> None:
    """The result in a few lines, or as JSON; of several ranks only rank 0 shows it."""
    if follows():
        return
    if not as_json:
        say("\n".join(_lines(result)))
        return
    answer = {
        "folder": str(result.folder),
        "choices": result.space.choices(result.genotype),
        "metrics": dict(result.metrics),
        "failures": result.failures,
    }
    say(json.dumps(answer))


def _lines(result: Result) -> Iterator[str]:
    m = defaultdict(lambda: math.nan, result.metrics)
    if result.space.notation:
        yield f"found        {result.space.notation.write(result.genotype)}"
    else:
        asked = result.space.asked(result.genotype)
        yield f"found        {', '.join(f'{name} {option}' for name, option in asked.items())}"
    yield (
        f"test         accuracy {m['test_acc']:.4f} (95 % interval {m['test_acc_low']:.4f} to "
        f"{m['test_acc_high']:.4f}), measured once"
    )
    yield (
        f"network      {m['params']:,.0f} parameters, {m['macs']:,.0f} multiply-accumulates, "
        f"{m['latency_ms']:.2f} ms an image"
    )
    rivals = [
        f"{words} {m[f'{name}_val_acc']:.4f}" + (f" (p = {m[f'{name}_p']:.2g})" if f"{name}_p" in m else "")
        for name, words in RIVALS.items()
        if f"{name}_val_acc" in m
    ]
    if rivals and "first_val_acc" in m:
        yield f"baselines    first choice {m['first_val_acc']:.4f} on validation, {', '.join(rivals)}"
    if troubles := _troubles(result):
        yield f"trials       {m['trials']:,.0f}, {troubles}"
    yield f"model        {result.folder / 'model.safetensors'}"
    if (result.folder / "cells.png").exists():
        yield f"pictures     {result.folder / 'cells.png'}"
    yield from (f"             {result.folder / name}" for name in FILES if (result.folder / name).exists())


def _troubles(result: Result) -> str:
    """Failed trials by reason and those that learned nothing, in words; empty where there are none."""
    failed = sum(result.failures.values())
    kinds = ", ".join(f"{number} {reason}" for reason, number in result.failures.items())
    idle = result.metrics.get("chance_trials", 0)
    parts = [
        *([f"{failed} failed ({kinds})"] if failed else []),
        *([f"{idle:.0f} no better than guessing"] if idle else []),
    ]
    return ", ".join(parts)


POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""The last two are what batch systems such as SLURM are asked to send some time before the end."""


class StopRequest:
    """While entered, SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 set `number` instead of killing the process.

    number: the first of them that came, or 0. Later on, SIGINT, or SIGTERM for the second time, raises
      KeyboardInterrupt where the program is; a batch system's warnings may be followed by SIGTERM.
    """

    def __init__(self) -> None:
        self.number = 0
        self._terminated = False
        self._before: dict[int, signal.Handlers | object] = {}

    def __call__(self) -> bool:
        """Whether the job was asked to stop."""
        return self.number != 0

    @property
    def exit_code(self) -> int:
        """What a shell or a batch system expects of a process that ends so: 130 after SIGINT, else 143."""
        return 128 + (signal.SIGINT if self.number in (0, signal.SIGINT) else signal.SIGTERM)

    def __enter__(self) -> Self:
        for number in POLITE:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a handler's signature
        insists = number == signal.SIGINT or (number == signal.SIGTERM and self._terminated)
        self._terminated |= number == signal.SIGTERM
        if self.number and insists:
            raise KeyboardInterrupt
        self.number = self.number or number
