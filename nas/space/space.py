"""A search space is one function that builds a network by asking a `Chooser` at each open decision.

Run with different choosers, the same function lists its decisions, builds one stand-alone network, or
builds the weight-sharing supernet. Asking twice under one name is one decision: that is how cells share
their wiring.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nas.errors import SpaceError, foreign_code, shown, unknown
from nas.space.choosers import Chooser, FixedChooser, Tracer, traced
from nas.types import Decision, Genotype

P = ParamSpec("P")
T = TypeVar("T")
Scores = Sequence[NDArray[np.float64]]
"""One row `[O]` per decision; a larger score is preferred."""
TRIES = 200
"""To mutate, before that is given up."""
ENUMERABLE = 20_000
"""Combinations of options of which the valid ones are counted."""
MAX_TEXT = 5000
"""Characters of a genotype's text."""


def remembered(function: Callable[Concatenate[Space, P], T]) -> Callable[Concatenate[Space, P], T]:
    """Lets a costly pure function of a space and hashable values keep its answers, in the space itself."""

    @wraps(function)
    def answer(space: Space, /, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (function.__module__, function.__qualname__, *args, *kwargs.items())
        if key not in space.memo:
            space.memo[key] = function(space, *args, **kwargs)
        return cast(T, space.memo[key])

    return answer


def _is_whole(option: object) -> bool:
    return isinstance(option, int | np.integer) and not isinstance(option, bool)


def argmax(decisions: Sequence[Decision], scores: Scores) -> Genotype:  # noqa: ARG001 - a projection's signature
    """The default projection: every decision is free, so take its best option."""
    return tuple(int(np.argmax(row)) for row in scores)


@dataclass(frozen=True, slots=True)
class Size:
    """How many different architectures a space holds.

    exact: whether `count` is their number, or else that of all combinations of options, which is no smaller.
    """

    count: int
    exact: bool

    def __str__(self) -> str:
        # No float may hold it: 2,000 decisions between two are 1e602.
        words = f"{self.count:,}" if self.count < 10**9 else f"{Decimal(self.count).normalize():.3g}"
        return words if self.exact else f"at most {words}"


@dataclass(frozen=True)
class Notation:
    """How the field writes the architectures of one space, `parse` being the inverse of `write`."""

    write: Callable[[Genotype], str]
    parse: Callable[[str], Genotype]

    def read(self, text: str) -> Genotype:
        """The genotype of a text; SpaceError for one that is too long to be one, before it is parsed."""
        if len(text) > MAX_TEXT:
            raise SpaceError(
                f"got {shown(text)}, {len(text):,} characters, but a genotype's text has at most {MAX_TEXT:,}"
            )
        return self.parse(text)


@dataclass(frozen=True)
class Space:
    """A finite set of architectures.

    name: what a user types and the history records.
    build: wires a network, asking a `Chooser` at each open decision.
    project: maps any scores to the nearest valid genotype. It alone says what is valid, and so serves
      sampling, mutation and the discretisation of a supernet alike.
    count: number of valid genotypes, where the author knows it in closed form.
    full_size: settings of the network that is trained in the end, where it is larger than the searched one.
    notation: the field's own way to write a genotype, if there is one.
    conditional: whether some decision may go unasked, so that several genotypes mean one architecture; found
      out by building unless the author knows.
    default: a known good architecture, as option numbers or as `choices` in words. A job tries it first,
      holds what it finds against it, and delivers it where nothing is better.
    origin, settings: where `nas.load` found the space and what it passed; empty for a space made by hand.
    """

    name: str
    build: Callable[[Chooser], nn.Module]
    project: Callable[[Sequence[Decision], Scores], Genotype] = argmax
    count: int | None = None
    full_size: Mapping[str, object] = field(default_factory=dict)
    notation: Notation | None = None
    conditional: bool | None = None
    default: Genotype | Mapping[str, str] | None = None
    origin: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)

    # -- what can be chosen ---------------------------------------------------------------------------

    @cached_property
    def trace(self) -> Tracer:
        """What `build` asked when run on the meta device, where no tensor takes memory."""
        return traced(lambda chooser: self._build(chooser, meta=True), once=self.conditional is False)

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """Every decision `build` can ask for, in the order it first asks; under all last values first."""
        return tuple(self.trace.decisions.values())

    @property
    def is_conditional(self) -> bool:
        """Whether some decision may go unasked, so that several genotypes mean one architecture."""
        if self.conditional is not None:
            return self.conditional
        return bool(self.trace.nested) or not all(d.mixable for d in self.decisions)

    @property
    def is_free(self) -> bool:
        """Whether every combination of options is an architecture of its own."""
        return self.project is argmax and not self.is_conditional

    @cached_property
    def size(self) -> Size:
        """Number of different architectures: exact where they are free, or few enough to be counted."""
        product = math.prod(len(d.options) for d in self.decisions)
        if self.count is not None:
            return Size(self.count, exact=True)
        if self.is_free:
            return Size(product, exact=True)
        if product <= ENUMERABLE:
            return Size(sum(1 for _ in self.enumerate()), exact=True)
        return Size(product, exact=False)

    def enumerate(self) -> Iterator[Genotype]:
        """Every architecture once, in canonical form and lexical order."""
        for genotype in itertools.product(*(range(len(d.options)) for d in self.decisions)):
            valid = self.project is argmax or self.nearest(self.one_hot(genotype)) == genotype
            if valid and self.canonical(genotype) == genotype:
                yield genotype

    @cached_property
    def default_genotype(self) -> Genotype:
        """The default; where the author names none, the valid architecture nearest to all last options.

        Raises:
            SpaceError: when the default is no valid architecture of the space.
        """
        if self.default is None:
            return self.canonical(self.nearest([np.eye(len(d.options))[-1] for d in self.decisions]))
        named = self.genotype(self.default) if isinstance(self.default, Mapping) else tuple(self.default)
        if self.nearest(self.one_hot(named)) != named:
            raise SpaceError(
                f"space {self.name!r}: its default {self.choices(named)} is not valid by its own project"
            )
        return self.canonical(named)

    # -- genotypes ------------------------------------------------------------------------------------

    def nearest(self, scores: Scores) -> Genotype:
        """`project`, checked: the valid genotype that the scores `[O]` of each decision prefer."""
        with foreign_code(f"space {self.name!r}: project failed"):
            got = self.project(self.decisions, scores)
            genotype = tuple(int(option) for option in got)
        if len(genotype) != len(self.decisions) or not all(
            0 <= option < len(d.options) for d, option in zip(self.decisions, genotype, strict=True)
        ):
            raise SpaceError(
                f"space {self.name!r}: project returned {got!r}, wanted one option index for each of "
                f"{len(self.decisions)} decisions"
            )
        return genotype

    def sample(self, rng: np.random.Generator) -> Genotype:
        """A random architecture: the projection of independent uniform scores."""
        return self.canonical(self.nearest(self._noise(rng)))

    def mutate(self, genotype: Genotype, rng: np.random.Generator) -> Genotype:
        """Another architecture: one random decision is forced to another option, the rest is repaired.

        Raises:
            SpaceError: if nothing else was reached in a bounded number of tries.
        """
        parent = self.canonical(genotype)
        open_decisions = [i for i, d in enumerate(self.decisions) if len(d.options) > 1]
        for _ in range(TRIES if open_decisions else 0):
            i = int(rng.choice(open_decisions))
            noise = self._noise(rng)
            scores = [row + extra for row, extra in zip(self.one_hot(parent), noise, strict=True)]
            noise[i][parent[i]] = -1.0
            scores[i] = noise[i] + 2.0 * (noise[i] == noise[i].max())
            child = self.canonical(self.nearest(scores))
            if child != parent:
                return child
        raise SpaceError(
            f"space {self.name!r}: no mutation of {self.choices(parent)} in {TRIES} tries; "
            "does project ignore its scores, or has the space a single architecture?"
        )

    def cross(self, mother: Genotype, father: Genotype, rng: np.random.Generator) -> Genotype:
        """A child that takes each decision from one of two parents at random.

        Where `project` has to repair it, it prefers what the other parent has.
        """
        pairs = zip(self.one_hot(mother), self.one_hot(father), strict=True)
        ordered = [pair[::-1] if rng.random() < 0.5 else pair for pair in pairs]
        noise = self._noise(rng)
        scores = [one + 0.5 * other + 0.25 * n for (one, other), n in zip(ordered, noise, strict=True)]
        return self.canonical(self.nearest(scores))

    def neighbours(self, genotype: Genotype) -> list[Genotype]:
        """Every architecture one forced decision away, each once, in a fixed order.

        Where forcing one decision makes `project` give up another (two inputs per node), every such way is
        listed.
        """
        return list(self._neighbours(self.canonical(genotype)))

    @remembered
    def _neighbours(self, parent: Genotype) -> list[Genotype]:
        found: set[Genotype] = set()
        for i, decision in enumerate(self.decisions):
            for option in set(range(len(decision.options))) - {parent[i]}:
                scores = self.one_hot(parent)
                scores[i] = 2.0 * np.eye(len(decision.options))[option]
                child = self.nearest(scores)
                found.add(self.canonical(child))
                if sum(a != b for a, b in zip(child, parent, strict=True)) > 1:
                    for j in set(range(len(parent))) - {i}:
                        weakened = [*scores[:j], 0.5 * scores[j], *scores[j + 1 :]]
                        found.add(self.canonical(self.nearest(weakened)))
        return sorted(found - {parent})

    def canonical(self, genotype: Genotype) -> Genotype:
        """The one genotype that stands for all with the same architecture: unasked decisions at option 0."""
        if not self.is_conditional:
            return genotype
        asked, named = self._asked(genotype), zip(self.decisions, genotype, strict=True)
        return tuple(option if decision.name in asked else 0 for decision, option in named)

    def asked(self, genotype: Genotype) -> dict[str, str]:
        """The choices that `build` asks for; the others, such as blocks beyond the depth, mean nothing."""
        asked = self._asked(genotype) if self.is_conditional else None
        choices = self.choices(genotype).items()
        return {name: option for name, option in choices if asked is None or name in asked}

    @remembered
    def _asked(self, genotype: Genotype) -> set[str]:
        chooser = FixedChooser(self.choices(genotype), outline=True, nested=frozenset(self.trace.nested))
        self._build(chooser, meta=True)
        return chooser.asked

    def one_hot(self, genotype: Genotype) -> list[NDArray[np.float64]]:
        """One row `[O]` per decision, 1.0 at the chosen option."""
        self.check(genotype)
        return [np.eye(len(d.options))[i] for d, i in zip(self.decisions, genotype, strict=True)]

    def choices(self, genotype: Genotype) -> dict[str, str]:
        """The genotype in words: decision name to option name, of all decisions (see `asked`)."""
        self.check(genotype)
        return {d.name: d.options[i] for d, i in zip(self.decisions, genotype, strict=True)}

    def genotype(self, choices: Mapping[str, str]) -> Genotype:
        """The genotype of an architecture given as decision name to option name; the inverse of `choices`.

        Raises:
            SpaceError: when a decision or an option is unknown, or a decision is not chosen.
        """
        names = {d.name for d in self.decisions}
        for name in choices:
            if name not in names:
                raise SpaceError(f"space {self.name!r}: {unknown('decision', str(name), names)}")
        for d in self.decisions:
            if choices.get(d.name) not in d.options:
                option = str(choices[d.name]) if d.name in choices else "nothing"
                raise SpaceError(f"decision {d.name!r}: {unknown('option', option, d.options)}")
        return tuple(d.options.index(choices[d.name]) for d in self.decisions)

    def check(self, genotype: Genotype) -> None:
        """Raises SpaceError unless `genotype` has one option index in range for every decision."""
        if len(genotype) != len(self.decisions):
            raise SpaceError(
                f"space {self.name!r} has {len(self.decisions)} decisions, got a genotype of {len(genotype)}"
            )
        for d, option in zip(self.decisions, genotype, strict=True):
            if not _is_whole(option) or not 0 <= option < len(d.options):
                raise SpaceError(
                    f"decision {d.name!r} got option {shown(option)}, but its {len(d.options)} options are 0 "
                    f"to {len(d.options) - 1}, whole numbers"
                )

    # -- networks -------------------------------------------------------------------------------------

    def network(self, genotype: Genotype, *, meta: bool = False) -> nn.Module:
        """The stand-alone network of one architecture, freshly initialised from torch's global stream.

        meta: build on the meta device, with shapes but no values, to count or to load weights into.
        """
        return self._build(FixedChooser(self.choices(genotype)), meta=meta)

    def supernet(self, chooser: Chooser) -> nn.Module:
        """The network with every decision answered by `chooser`; refuses decisions that are no modules."""
        self.check_supernet()
        return self._build(chooser)

    def check_supernet(self) -> None:
        """Raises SpaceError when there is no supernet, since some decisions choose no modules."""
        values = [d.name for d in self.decisions if not d.mixable]
        if values:
            more = f" and {len(values) - 4} more" if len(values) > 4 else ""
            raise SpaceError(
                f"space {self.name!r} has no supernet: it asks for values, which cannot be mixed "
                f"({', '.join(values[:4])}{more}); use a method by trials, e.g. evolution, with --evaluator "
                "trained, or fix these values in the space"
            )

    @cached_property
    def outline(self) -> nn.Module:
        """The network's wiring on the meta device with an empty `Slot` for each operation."""
        return self._build(Tracer(), meta=True)

    def _build(self, chooser: Chooser, *, meta: bool = False) -> nn.Module:
        device = torch.device("meta" if meta else torch.get_default_device())
        with foreign_code(f"space {self.name!r}: build failed"), device:
            network = self.build(chooser)
        if not isinstance(network, nn.Module):
            raise SpaceError(
                f"space {self.name!r}: build returned {type(network).__name__}, wanted an nn.Module"
            )
        return network

    @cached_property
    def memo(self) -> dict[tuple[object, ...], Any]:
        """What `remembered` functions have answered, by their name and arguments."""
        return {}

    def _noise(self, rng: np.random.Generator) -> list[NDArray[np.float64]]:
        return [rng.random(len(d.options)) for d in self.decisions]
