"""The answers a space's build function gets: what may be asked, and the choosers that need no supernet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from nas.errors import FAULTS, SpaceError
from nas.types import Decision

T = TypeVar("T")
Candidates = Mapping[str, Callable[[], nn.Module]]
"""Unbuilt modules by option name."""
Role = Literal["zero", "identity", "op"]
MAX_QUESTIONS = 20_000
"""Asked of one network; cells that share their decisions ask the same ones again."""
MAX_RUNS = 400
"""Of a build that is listed: so many values are tried; of more, each is the last one of its decision."""
Primitive = Callable[[int, int, int], nn.Module]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A primitive that is not built yet, with its channels, so that a supernet can build it on fewer of them.

    make: `(c_in, c_out, stride) -> Module`.
    """

    make: Primitive
    c_in: int
    c_out: int
    stride: int = 1

    def __call__(self) -> nn.Module:
        """Builds it."""
        return self.make(self.c_in, self.c_out, self.stride)


class Zero(nn.Module):
    """No connection: a map of zeros, through which no gradient flows."""

    def __init__(self, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.c_out, self.stride = c_out, stride

    def forward(self, x: Tensor) -> Tensor:
        """`[B, c_in, H, W]` to zeros `[B, c_out, ceil(H / stride), ceil(W / stride)]`, or `[B, c_in, L]`."""
        zeros = torch.zeros_like(x[:, :1])
        # A signal's second "side" is its one channel. No shape is looked at, so that this can be traced.
        for _ in range(2):
            zeros = zeros[..., :: self.stride].transpose(-1, -2)
        return zeros.repeat_interleave(self.c_out, 1)


class Chooser(Protocol):
    """What a space's build function may ask."""

    def op(self, name: str, candidates: Candidates) -> nn.Module:
        """Returns one candidate module, or a mixture of all of them."""

    def value(self, name: str, options: Sequence[T]) -> T:
        """Returns one plain value: a depth, a width, a kernel size."""


class Slot(nn.Module):
    """Stands in an outline where a decision's operation will be; it computes nothing.

    decision: name of the decision.
    roles: what each option is: no connection at all, the identity, or an operation proper.
    """

    def __init__(self, decision: str, roles: Mapping[str, Role]) -> None:
        super().__init__()
        self.decision, self.roles = decision, dict(roles)

    def forward(self, *_: Tensor) -> Tensor:
        """Always refuses: an outline has shapes in name only."""
        raise SpaceError(f"build ran the network while it was being listed (decision {self.decision!r})")


class Tracer:
    """Lists the decisions: answers each with a `Slot` or a value, the last one unless told otherwise.

    decisions: everything asked so far by name, in order.
    roles: per decision made of modules, the role of each option.
    nested: decisions whose candidates ask further decisions while they are built.
    answers: positions of the values to give. others: what else to answer, one value other than here at a
      time, so that all is reached that is asked after a value which is not the last one.
    """

    def __init__(self, before: Tracer | None = None, answers: Mapping[str, int] | None = None) -> None:
        self.decisions: dict[str, Decision] = {} if before is None else dict(before.decisions)
        self.roles: dict[str, dict[str, Role]] = {} if before is None else dict(before.roles)
        self.nested: set[str] = set() if before is None else set(before.nested)
        self.answers = answers or {}
        self.others: list[dict[str, int]] = []
        self._questions = 0
        self._built: set[str] = set()

    def op(self, name: str, candidates: Candidates) -> nn.Module:
        """Records the decision and, the first time, builds every candidate to learn what it is.

        In every later run it builds once those that ask further decisions.
        """
        if not isinstance(candidates, Mapping):
            raise SpaceError(
                f"decision {name!r}: the options of op are a {type(candidates).__name__}, wanted a mapping "
                "from names to functions without arguments that build a module; plain values are for value"
            )
        first = name not in self.decisions
        self._record(Decision(name, tuple(candidates)))
        if first or (name in self.nested and name not in self._built):
            self._built.add(name)
            before = self._questions
            self.roles[name] = {
                option: role(built(name, option, make)) for option, make in candidates.items()
            }
            # Not the number of decisions: a candidate may ask one that is known from elsewhere.
            if self._questions > before:
                self.nested.add(name)
        return Slot(name, self.roles.get(name, {}))

    def value(self, name: str, options: Sequence[T]) -> T:
        """Records the decision and answers it."""
        first = name not in self.decisions
        self._record(Decision(name, labels(name, options), mixable=False))
        if first:
            self.others += [{**self.answers, name: option} for option in range(len(options) - 1)]
        return options[self.answers.get(name, -1)]

    def _record(self, decision: Decision) -> None:
        names: tuple[object, ...] = (decision.name, *decision.options)
        if not all(isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable() for name in names):
            raise SpaceError(
                f"decision {decision.name!r}: got options {decision.options!r}; names must be "
                "printable text of 1 to 200 characters"
            )
        if not decision.options:
            raise SpaceError(f"decision {decision.name!r} has no options")
        self._questions += 1
        first = self.decisions.setdefault(decision.name, decision)
        if first != decision:
            raise SpaceError(
                f"decision {decision.name!r} was first asked with options {first.options}, "
                f"now with {decision.options}; one name must mean one decision"
            )
        if self._questions > MAX_QUESTIONS:
            raise SpaceError(
                f"build asked more than {MAX_QUESTIONS} times, the last time for {decision.name!r}; give "
                "it a depth limit, or fewer cells"
            )


def traced(build: Callable[[Chooser], object], *, once: bool = False) -> Tracer:
    """Every decision that `build` asks for, as it is run under one answer after the other.

    A run that fails, as under values that a projection excludes, lists nothing.

    once: whether all is asked whatever is answered.
    """
    tracer = Tracer()
    build(tracer)
    waiting = deque([] if once else tracer.others)
    for _ in range(MAX_RUNS):
        if not waiting:
            break
        other = Tracer(tracer, waiting.popleft())
        try:
            build(other)
        except FAULTS:  # whatever it is, it is told when somebody asks for this
            continue
        waiting.extend(other.others)
        tracer = other
    return tracer


class FixedChooser:
    """Answers from one architecture, and keeps which decisions were asked.

    choices: option name by decision name.
    outline: answer operations with an empty `Slot`, except those named in `nested`.
    """

    def __init__(
        self, choices: Mapping[str, str], *, outline: bool = False, nested: frozenset[str] = frozenset()
    ) -> None:
        self.choices, self.outline, self.nested = choices, outline, nested
        self.asked: set[str] = set()

    def op(self, name: str, candidates: Candidates) -> nn.Module:
        """The chosen candidate, newly built."""
        option = self._choice(name, candidates)
        if self.outline and name not in self.nested:
            return Slot(name, {})
        return built(name, option, candidates[option])

    def value(self, name: str, options: Sequence[T]) -> T:
        """The chosen value."""
        table = dict(zip(labels(name, options), options, strict=True))
        return table[self._choice(name, table)]

    def _choice(self, name: str, offered: Collection[str]) -> str:
        if name not in self.choices:
            raise SpaceError(
                f"decision {name!r} is only asked after some choices together, so listing the space missed "
                "it; put the options that lead to it last, or ask it always"
            )
        self.asked.add(name)
        option = self.choices[name]
        if option not in offered:
            raise SpaceError(
                f"decision {name!r} offered {tuple(offered)} this time, but {option!r} was among its "
                "options when the space was listed; one name must mean one decision"
            )
        return option


def built(name: str, option: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Builds one candidate and checks that it is a module."""
    if isinstance(make, nn.Module):
        raise SpaceError(
            f"decision {name!r}, option {option!r} is a module that is built already "
            f"({type(make).__name__}), but every network needs its own; give a function that builds "
            "it: lambda: ..., or functools.partial"
        )
    module = make()
    if not isinstance(module, nn.Module):
        raise SpaceError(
            f"decision {name!r}, option {option!r}: building it gave {type(module).__name__}, wanted an "
            "nn.Module; options map names to functions without arguments that build a module"
        )
    return module


def role(module: nn.Module) -> Role:
    """What a built candidate is in a graph."""
    if isinstance(module, Zero):
        return "zero"
    return "identity" if isinstance(module, nn.Identity) else "op"


def labels(name: str, options: Sequence[object]) -> tuple[str, ...]:
    """The names of plain values; they must differ."""
    if isinstance(options, str | Mapping) or not hasattr(options, "__getitem__"):
        raise SpaceError(
            f"decision {name!r}: the options of value are of type {type(options).__name__}, wanted a list of "
            "plain values, e.g. [2, 3, 4]; what maps names to modules is for op"
        )
    texts = tuple(map(str, options))
    if len(set(texts)) < len(texts):
        raise SpaceError(f"decision {name!r}: two options have the same name in {texts}")
    return texts
