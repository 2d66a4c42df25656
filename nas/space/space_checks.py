"""What can be said of a space without building a network: are its decisions and its projection sound?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from nas.errors import FAULTS, NasError, SpaceError, describe, staying
from nas.space.choosers import Candidates, Fixed, built
from nas.space.space import Space
from nas.types import Genotype

TRACES = 3


def check_listing(space: Space) -> None:
    """Checks what can be chosen; allocates nothing.

    Raises:
        SpaceError: when there is nothing to choose, or listings and projections fail.
    """
    with blaming(space):
        if not space.decisions:
            raise SpaceError("build asked the chooser nothing, so there is nothing to search; call choose.op")
        for decision in space.decisions:
            if len(decision.options) < 2:
                raise SpaceError(
                    f"decision {decision.name!r} has the single option {decision.options[0]!r}; "
                    "give it another one, or build the module without asking"
                )
        for _ in range(TRACES):
            _check_repeatable(space)
        _check_project(space)


@contextmanager
def blaming(space: Space, where: str = "") -> Iterator[None]:
    """Turns whatever a block raises into a SpaceError that says which space, and where in it."""
    who = f"space {space.name!r}"
    try:
        with staying():
            yield
    except NasError as error:
        text = str(error)
        if text.startswith(who):
            raise
        raise SpaceError(f"{who}{where}: {text}{_remedy(space, text)}") from error
    except FAULTS as error:
        raise SpaceError(f"{who}{where}: {describe(error)}{_remedy(space, str(error))}") from error


def _remedy(space: Space, text: str) -> str:
    """What is lacking in a function that makes a space and takes nothing from the task."""
    for words, name in (("channels", "in_channels"), ("gave logits", "classes")):
        if space.origin and name not in space.settings and words in text:
            return f"; let {space.origin} take an argument {name!r}, which the task gives"
    return ""


def _check_repeatable(space: Space) -> None:
    again = replace(space).decisions
    if differing := sorted({d.name for d in set(again) ^ set(space.decisions)}):
        raise SpaceError(
            f"listed twice, build asked different decisions: {differing[:3]} came up once only; "
            "build must depend on nothing but the chooser's answers"
        )
    if again != space.decisions:
        raise SpaceError("listed twice, build asked its decisions in another order; iterate over no set")


def _check_project(space: Space) -> None:
    reached = set()
    for i, decision in enumerate(space.decisions):
        for option in range(len(decision.options)):
            scores = [np.zeros(len(d.options)) for d in space.decisions]
            scores[i][option] = 1.0
            reached.add(space.nearest(scores))
    if len(reached) == 1 and space.count != 1:
        raise SpaceError(
            f"project ignores its scores: whatever is preferred, it gave {space.choices(*reached)}; "
            "return the valid genotype whose options score highest"
        )


def variants(space: Space) -> list[Genotype]:
    """Architectures that between them take every option of every value decision; else a single one.

    The first has the last option of everything, which is what listing the decisions sees first.
    """
    base = space.canonical(space.nearest([np.eye(len(d.options))[-1] for d in space.decisions]))
    found = {base: None}
    for i, decision in enumerate(space.decisions):
        for option in () if decision.mixable else range(len(decision.options)):
            scores = space.one_hot(base)
            scores[i] = 2.0 * np.eye(len(decision.options))[option]
            found[space.canonical(space.nearest(scores))] = None
    return list(found)


class Probing(Fixed):
    """The chooser that answers every decision with all its candidates at once, to be compared.

    choices: answers the decisions that are plain values.
    made: which decision and option gave a module, over all the builds to be compared.
    """

    def __init__(self, choices: Mapping[str, str], made: dict[nn.Module, str]) -> None:
        super().__init__(choices)
        self.made = made

    def op(self, name: str, candidates: Candidates) -> nn.Module:
        """A `Probe` of newly built candidates."""
        self._choice(name)
        ops = {str(option): built(name, option, make) for option, make in candidates.items()}
        for option, module in ops.items():
            who = f"decision {name!r}, option {option!r}"
            if module in self.made:
                raise SpaceError(
                    f"{who} gave the same module object as {self.made[module]} before; every call must build "
                    "a new one, or networks share weights"
                )
            self.made[module] = who
        return Probe(name, ops)


class Probe(nn.Module):
    """Runs every candidate of one decision on the same input; gives the mean of their outputs.

    decision: its name.
    ops: the built candidates by option name.
    """

    def __init__(self, decision: str, ops: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.decision, self.options = decision, tuple(ops)
        self.ops = nn.ModuleList(ops.values())

    def forward(self, *inputs: Tensor) -> Tensor:
        """Feature maps to one of the shape that all candidates must agree on."""
        outputs = [self._run(option, op, inputs) for option, op in zip(self.options, self.ops, strict=True)]
        found = [tuple(y.shape) for y in outputs]
        usual, _ = Counter(found).most_common(1)[0]
        for option, shape in zip(self.options, found, strict=True):
            if shape != usual:
                raise SpaceError(
                    f"decision {self.decision!r}, option {option!r}: input {shapes(*inputs)} gave {shape}, "
                    f"but option {self.options[found.index(usual)]!r} gave {usual}; "
                    "all options of a decision must agree"
                )
        return torch.stack(outputs).mean(0)

    def _run(self, option: str, op: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
        who = f"decision {self.decision!r}, option {option!r}"
        versions = [x._version for x in inputs]
        try:
            y: object = op(*inputs)
        except NasError:
            raise
        except FAULTS as error:
            raise SpaceError(f"{who}: input {shapes(*inputs)} failed: {describe(error)}") from error
        if not isinstance(y, Tensor):
            raise SpaceError(f"{who}: input {shapes(*inputs)} gave {type(y).__name__}, wanted a tensor")
        if [x._version for x in inputs] != versions:
            raise SpaceError(
                f"{who} changes its input in place, but other operations read the same feature map; "
                "begin with nn.ReLU(), not nn.ReLU(inplace=True)"
            )
        return y


def shapes(*tensors: Tensor) -> str:
    """The shapes of tensors in words: `(4, 16, 8, 8), (4, 16)`."""
    return ", ".join(str(tuple(x.shape)) for x in tensors)
