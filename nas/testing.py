"""Conformance checks for plug-in authors: one call proves that a space or a searcher keeps its promises."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from nas.errors import ConfigError, ExhaustedError, NasError, SpaceError, foreign_code
from nas.oneshot.supernet import Supernet
from nas.searchers.searcher import Searcher
from nas.seeding import isolated, rng
from nas.space.choosers import Candidates, Chooser, FixedChooser, built
from nas.space.ops import candidates
from nas.space.space import Space
from nas.types import Genotype, Trial

TRACES, MIXTURES = 3, 5
_STATES: tuple[Literal["failed", "running", "done"], ...] = ("failed", "done", "running", "done", "done")


class SearcherError(NasError):
    """A searcher breaks one of the engine's promises."""

    exit_code = 3


# -- spaces -------------------------------------------------------------------------------------------


def check_space(
    space: Space, x: Tensor, *, samples: int = 20, seed: int = 0, supernet: bool | None = None
) -> None:
    """Builds and runs networks of `space` on `x`, and returns silently if every promise is kept.

    x: images `[B, C, H, W]` that every network must accept, at least two; everything runs on their device.
    samples: number of random architectures that are built, run and mutated.
    supernet: whether there must be one; by default it is checked where all decisions are mixable.

    Raises:
        SpaceError: naming the broken promise, the decision and option it is about, and what to do.
    """
    if len(x) < 2 or samples < 1:
        raise ConfigError(f"check_space: got {len(x)} images and {samples} samples, wanted at least 2 and 1")
    with blaming(space), isolated(seed, "check_space"):
        check_listing(space)
        draw = rng(seed, "check_space")
        genotypes = [space.default_genotype, *(space.sample(draw) for _ in range(samples))]
        for genotype in genotypes:
            _check_genotype(space, genotype, draw)
        _check_candidates(space, x)
        classes = {_check_network(space, genotype, x) for genotype in genotypes}
        if len(classes) > 1:
            raise SpaceError(f"networks give {sorted(classes)} logits, wanted one number of classes for all")
        if supernet or (supernet is None and all(d.mixable for d in space.decisions)):
            _check_supernet(space, genotypes[:MIXTURES], x)


def check_listing(space: Space) -> None:
    """Checks the decisions and the projection; builds no network and allocates nothing.

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
            again = replace(space).decisions
            if differing := sorted({d.name for d in set(again) ^ set(space.decisions)}):
                raise SpaceError(
                    f"listed twice, build asked different decisions: {differing[:3]} came up once only; "
                    "build must depend on nothing but the chooser's answers"
                )
            if again != space.decisions:
                raise SpaceError(
                    "listed twice, build asked its decisions in another order; iterate over no set"
                )
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


@contextmanager
def blaming(space: Space, where: str = "") -> Iterator[None]:
    """Turns whatever a block raises into a SpaceError that says which space, and where in it."""
    who = f"space {space.name!r}"
    try:
        with foreign_code(f"{who}{where}"):
            yield
    except NasError as error:
        text = str(error)
        own = text if text.startswith(who) else f"{who}{where}: {text}"
        for words, name in (("channels", "in_channels"), ("gave outputs", "classes")):
            if space.origin and name not in space.settings and words in text:
                own += f"; let {space.origin} take an argument {name!r}, which the task gives"
        raise SpaceError(own) from error


def variants(space: Space) -> list[Genotype]:
    """Architectures that between them take every option of every value decision; else a single one.

    The first has the last option of everything, which is what listing the decisions sees first.
    """
    base = space.canonical(space.nearest([np.eye(len(d.options))[-1] for d in space.decisions]))
    found = {base: None}
    for i, decision in enumerate(space.decisions):
        if not decision.mixable:
            found |= dict.fromkeys(options_of(space, base, i))
    return list(found)


def options_of(space: Space, genotype: Genotype, decision: int) -> list[Genotype]:
    """What an architecture becomes with each option of a decision, in their order; no two alike."""
    found, scores = dict[Genotype, None](), space.one_hot(genotype)
    for row in np.eye(len(scores[decision])):
        scores[decision] = 2.0 * row
        found[space.canonical(space.nearest(scores))] = None
    return list(found)


class Probing(FixedChooser):
    """The chooser that answers every decision with all its candidates at once, to be compared.

    choices: answers the decisions that are plain values.
    made: which decision and option gave a module, over all the builds to be compared.
    """

    def __init__(self, choices: Mapping[str, str], made: dict[nn.Module, str]) -> None:
        super().__init__(choices)
        self.made = made

    def op(self, name: str, candidates: Candidates) -> nn.Module:
        """A `Probe` of newly built candidates."""
        self._choice(name, candidates)
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
        with foreign_code(f"{who}: input {shapes(*inputs)} failed"):
            y: object = op(*inputs)
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


def _check_genotype(space: Space, genotype: Genotype, draw: np.random.Generator) -> None:
    if not _is_plain(genotype):
        raise SpaceError(f"sample gave {genotype!r}, wanted a tuple of plain ints")
    choices = space.choices(genotype)
    canonical = space.canonical(genotype)
    if canonical != genotype:
        raise SpaceError(f"canonical is not idempotent: it took {choices} to {space.choices(canonical)}")
    again = space.canonical(space.nearest(space.one_hot(genotype)))
    if again != genotype:
        raise SpaceError(
            f"project is not idempotent: it took its own {choices} to {space.choices(again)}; "
            "a valid genotype must be its own projection"
        )
    if space.count != 1 and space.mutate(genotype, draw) == genotype:
        raise SpaceError(f"mutate returned its parent {choices}; wanted another architecture")


def _check_candidates(space: Space, x: Tensor) -> None:
    """Runs all options of every decision at once, under every option of the decisions that are values."""
    first, *others = (space.choices(genotype) for genotype in variants(space))
    made: dict[nn.Module, str] = {}
    network = space.build(Probing(first, made)).to(x.device)
    with torch.device("meta"):
        space.build(Probing(first, made))
    with blaming(space, f", images {shapes(x)}{_values(space, first)}"):
        logits = _logits(network(x), x)
    _backward(logits)
    blind = bool((logits == logits[:1]).all()) and not bool((x == x[:1]).all())
    if blind or not any(p.grad is not None and bool(p.grad.any()) for p in network.parameters()):
        raise SpaceError(
            "no gradient reaches any parameter that sees the images, even with all options at once; "
            "are all operations zeros?"
        )
    for choices in others:
        with blaming(space, _values(space, choices)):
            _logits(space.build(Probing(choices, {})).to(x.device)(x), x)


def _values(space: Space, choices: Mapping[str, str]) -> str:
    """The plain values in words, where there are any."""
    values = {d.name: choices[d.name] for d in space.decisions if not d.mixable}
    return f", values {values}" if values else ""


def _check_network(space: Space, genotype: Genotype, x: Tensor) -> int:
    """Builds one architecture twice and trains it for a moment; returns its number of classes."""
    with blaming(space, f", architecture {space.choices(genotype)}"):
        network, again = space.network(genotype), space.network(genotype, meta=True)
        layouts = ({(n, t.shape) for n, t in built.state_dict().items()} for built in (network, again))
        if differing := sorted(set.symmetric_difference(*layouts)):
            raise SpaceError(f"built twice, it differs in {differing[:3]}; build must be a pure function")
        others = {id(p) for p in again.parameters()}
        if shared := [name for name, p in network.named_parameters() if id(p) in others]:
            raise SpaceError(f"built twice, both share {shared[:3]}; make every module inside build")
        logits = _logits(network.to(x.device)(x), x)
        if not logits.isfinite().all():
            raise SpaceError(f"images {shapes(x)} gave logits that are not finite; add a normalisation")
        _backward(logits)
        return logits.shape[1]


def _logits(output: object, x: Tensor) -> Tensor:
    """The logits of a network's output, which in training may be a pair with those of an auxiliary head."""
    logits = output[0] if isinstance(output, tuple) else output
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        got = shapes(logits) if isinstance(logits, Tensor) else type(logits).__name__
        raise SpaceError(f"images {shapes(x)} gave {got}, wanted logits ({len(x)}, classes)")
    return logits


def _backward(logits: Tensor) -> None:
    if logits.requires_grad:
        # The plain sum of what a batch-norm gives is constant: it would have no gradient.
        (logits * torch.randn_like(logits)).sum().backward()  # type: ignore[no-untyped-call]


def _check_supernet(space: Space, genotypes: Sequence[Genotype], x: Tensor) -> None:
    supernet = Supernet(space).to(x.device).eval()
    for genotype in genotypes:
        rows = zip(space.decisions, space.one_hot(genotype), strict=True)
        mixture = {d.name: torch.from_numpy(row).to(x) for d, row in rows}
        with torch.no_grad():
            mixed, alone = supernet.mix(x, mixture), supernet.extract(genotype)(x)
        error = (mixed - alone).abs().max().item()
        if not error <= 1e-4 * max(1.0, alone.abs().max().item()):
            raise SpaceError(
                f"the supernet and the network of {space.choices(genotype)} differ by {error:.3g}, wanted at "
                "most 1e-4; build must use the operations that the chooser returns as they are"
            )


# -- searchers ----------------------------------------------------------------------------------------


def check_searcher(searcher: Searcher, space: Space, *, trials: int = 30, seed: int = 0) -> None:
    """Asks `searcher` for `trials` architectures of `space`, and returns silently if it keeps every promise.

    The history that it sees begins empty and holds failed, running and finished trials; a second, tiny
    space is searched until nothing is left.

    Raises:
        SearcherError: naming the broken promise.
    """
    _search(searcher, space, trials=trials, seed=seed)
    tiny = Space("tiny", _build_tiny)
    _search(searcher, tiny, trials=tiny.size.count + 1, seed=seed)


class _Scores(dict[str, float]):
    """Metrics of every name: which one decides is a setting of the searcher."""

    def __missing__(self, name: str) -> float:
        return self["val_acc"]

    def __contains__(self, name: object) -> bool:
        return True

    def get(self, name: str, default: object = None) -> float:  # noqa: ARG002 - dict's own signature
        return self[name]


def _build_tiny(choose: Chooser) -> nn.Module:
    options = candidates(("skip_connect", "nor_conv_1x1"), 2, 2)
    return nn.Sequential(choose.op("first", options), choose.op("second", options))


def _search(searcher: Searcher, space: Space, *, trials: int, seed: int) -> None:
    who = f"searcher {type(searcher).__name__}"
    history: list[Trial] = []
    for number in range(trials):
        new_left = not space.size.exact or number < space.size.count
        try:
            genotype = _ask(searcher, space, history, seed, f"{who}, trial {number},")
        except ExhaustedError as error:
            if not new_left:
                return
            raise SearcherError(
                f"{who} gave up after {number} of {space.size} architectures of space {space.name!r}; "
                "propose the others before raising ExhaustedError"
            ) from error
        if any(genotype == trial.genotype for trial in history):
            again = f"{who} proposed {space.choices(genotype)} again in trial {number}"
            raise SearcherError(
                f"{again}, though there are new ones; draw with nas.searchers.searcher.unseen"
                if new_left
                else f"{again}, as all {space.size} have been tried; raise nas.errors.ExhaustedError then"
            )
        state = _STATES[number % len(_STATES)]
        score = float(rng(seed, "score", number).random())
        metrics = _Scores(val_acc=score) if state == "done" else {}
        reason = "nan: loss" if state == "failed" else ""
        history.append(Trial(number, genotype, 1, state, metrics, reason=reason))


def _ask(searcher: Searcher, space: Space, history: list[Trial], seed: int, who: str) -> Genotype:
    """What is proposed next, asked for twice."""
    before, proposals = copy.deepcopy(history), list[Genotype]()
    for _ in range(2):
        draw = rng(seed, "check_searcher", len(before))
        with foreign_code(f"{who} failed with {len(before) or 'no'} trials in the history", SearcherError):
            genotype = searcher.ask(space, history, draw)
        if not _is_plain(genotype):
            raise SearcherError(f"{who} proposed {genotype!r}, wanted a tuple of plain ints")
        try:
            space.check(genotype)
        except SpaceError as error:
            raise SearcherError(f"{who} proposed what is no genotype: {error}") from error
        if history != before:
            raise SearcherError(f"{who} changed the history, but may only read it")
        proposals.append(genotype)
    first, second = proposals
    if first != second:
        raise SearcherError(
            f"{who} answered {first}, then {second} to the same question; "
            "draw from the given rng alone and keep no state but the history"
        )
    if space.canonical(first) != first or space.canonical(space.nearest(space.one_hot(first))) != first:
        raise SearcherError(
            f"{who} proposed {space.choices(first)}, which is not canonical or not valid in space "
            f"{space.name!r}; return what space.sample, mutate, cross or neighbours gave"
        )
    return first


def _is_plain(genotype: object) -> bool:
    return isinstance(genotype, tuple) and all(type(option) is int for option in genotype)
