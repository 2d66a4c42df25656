"""Conformance checks for plug-in authors: one call proves that a space or a searcher keeps its promises."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from nas.errors import FAULTS, ConfigError, ExhaustedError, NasError, SpaceError, describe
from nas.oneshot.supernet import Supernet
from nas.searchers.searcher import Searcher
from nas.seeding import isolated, rng
from nas.space.choosers import Chooser
from nas.space.ops import candidates
from nas.space.space import Space
from nas.space.space_checks import Probing, blaming, check_listing, shapes, variants
from nas.types import Genotype, Trial

MIXTURES = 5
_STATES: tuple[Literal["failed", "running", "done"], ...] = ("failed", "done", "running", "done", "done")


class SearcherError(NasError):
    """A searcher breaks one of the engine's promises."""

    exit_code = 3


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


# -- spaces -------------------------------------------------------------------------------------------


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
        if differing := sorted(_layout(network) ^ _layout(again)):
            raise SpaceError(f"built twice, it differs in {differing[:3]}; build must be a pure function")
        others = {id(p) for p in again.parameters()}
        if shared := [name for name, p in network.named_parameters() if id(p) in others]:
            raise SpaceError(f"built twice, both share {shared[:3]}; make every module inside build")
        logits = _logits(network.to(x.device)(x), x)
        if not logits.isfinite().all():
            raise SpaceError(f"images {shapes(x)} gave logits that are not finite; add a normalisation")
        _backward(logits)
        return logits.shape[1]


def _layout(network: nn.Module) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}


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
    who = _who(searcher)
    history: list[Trial] = []
    for number in range(trials):
        try:
            genotype = _ask(searcher, space, history, rng(seed, "check_searcher", number))
        except ExhaustedError as error:
            if _is_new_left(space, number):
                raise SearcherError(
                    f"{who} gave up after {number} of {space.size} architectures of space {space.name!r}; "
                    "propose the others before raising ExhaustedError"
                ) from error
            return
        if any(genotype == trial.genotype for trial in history):
            again = f"{who} proposed {space.choices(genotype)} again in trial {number}"
            raise SearcherError(
                f"{again}, though there are new ones; draw with nas.searchers.searcher.unseen"
                if _is_new_left(space, number)
                else f"{again}, as all {space.size} have been tried; raise nas.errors.ExhaustedError then"
            )
        history.append(_trial(number, genotype, seed))


def _is_new_left(space: Space, tried: int) -> bool:
    return not space.size.exact or tried < space.size.count


def _trial(number: int, genotype: Genotype, seed: int) -> Trial:
    state = _STATES[number % len(_STATES)]
    score = float(rng(seed, "score", number).random())
    metrics = _Scores(val_acc=score) if state == "done" else {}
    return Trial(number, genotype, 1, state, metrics, reason="nan: loss" if state == "failed" else "")


def _ask(searcher: Searcher, space: Space, history: list[Trial], draw: np.random.Generator) -> Genotype:
    who, before = f"{_who(searcher)}, trial {len(history)},", copy.deepcopy(history)
    twin = copy.deepcopy(draw)
    first = _proposal(searcher, space, history, draw)
    if history != before:
        raise SearcherError(f"{who} changed the history, but may only read it")
    second = _proposal(searcher, space, history, twin)
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


def _proposal(
    searcher: Searcher, space: Space, history: Sequence[Trial], draw: np.random.Generator
) -> Genotype:
    try:
        genotype = searcher.ask(space, history, draw)
        space.check(genotype)
    except ExhaustedError:
        raise
    except FAULTS as error:
        states = dict(Counter(trial.state for trial in history))
        raise SearcherError(
            f"{_who(searcher)} failed with {states or 'no'} trials in the history: {describe(error)}"
        ) from error
    if not _is_plain(genotype):
        raise SearcherError(f"{_who(searcher)} proposed {genotype!r}, wanted a tuple of plain ints")
    return genotype


def _is_plain(genotype: object) -> bool:
    return isinstance(genotype, tuple) and all(type(option) is int for option in genotype)


def _who(searcher: Searcher) -> str:
    return f"searcher {type(searcher).__name__}"
