"""Whether operations that run together give what each gives by itself: tried once, before they are used."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from subprocess import SubprocessError  # nosec B404
from typing import cast

import torch
from torch import Tensor, nn

from nas.devices import exact
from nas.oneshot.fused.groups import Known
from nas.oneshot.fused.kernels import native
from nas.oneshot.fused.plan import chain_of, outcome_of
from nas.oneshot.fused.stack import channels_last, type_of_maps
from nas.oneshot.fused.stages import Chain, Form, form_of
from nas.oneshot.gradients import gradients
from nas.seeding import torch_rng

TOLERANCE = {("cpu", torch.float64): 1e-9, ("cpu", torch.float32): 1e-3}
"""Largest relative difference, in the norm, of outputs and gradients."""
OTHERWISE = 1e-2
"""On other devices."""
ROUNDED = 0.5
"""Of maps in half precision: behind a batch-norm, rounding moves numbers from one side of a ReLU to the
other, and that the gradients of a kernel by up to a third; what is wrong is farther away."""
HALVES = (torch.float16, torch.bfloat16)

_TRIED: dict[Hashable, bool] = {}


def known(op: nn.Module, *, on: Tensor | None = None, kernels: bool = False) -> Known:
    """How an operation can be run together with others: as far as two of them then are what each is alone.

    Each kind is tried once on each device, on random maps; where one fails, a warning says so. Kernels are
    other programs for each type of maps: what is to compute in half precision is tried in both.

    on: a map of the kind that it gets, where it has neither weights nor statistics. kernels: whether they may
    run it.
    """
    chain, first = chain_of(op), next(itertools.chain(op.parameters(), op.buffers()), None)
    if chain is None or (first is not None and first.is_meta):
        return Known(chain)
    keys = [rule.key for _, rule in chain]
    if first is not None:
        key = ("batched", first.device.type, first.dtype, *keys)
        if not _tried(key, [op, op], first, _batched):
            return Known(None)
    form = form_of([layer for layer, _ in chain]) if kernels else None
    if form is None:
        return Known(chain)
    tried = _tried_by_kernels(keys, [op, op], first, on, partial(_by_kernels, form))
    return Known(chain, form if tried else None)


def prepared(op: nn.Module, *, on: Tensor) -> Known:
    """How a module that preprocesses an input of a cell runs: with a form where kernels do that, and rightly.

    Tried once for each kind on each device, like `known`. on: a map that it gets.
    """
    chain, first = chain_of(op), next(op.parameters(), None)
    form = form_of([layer for layer, _ in chain or ()])
    if chain is None or first is None or first.is_meta or not (isinstance(form, Chain) and form.dense):
        return Known(chain)
    keys = ["prepared", *(rule.key for _, rule in chain)]
    tried = _tried_by_kernels(keys, [op, op], first, on, partial(_by_preparing, form))
    return Known(chain, form if tried else None)


def joint(ops: Sequence[nn.Module], *, on: Tensor) -> bool:
    """Whether kernels run operations that differ in their convolutions' kernels in one launch, and rightly.

    Tried once for each such family on each device, like `known`. ops: one of each kind, all known. on: a map
    of the kind that they get, where they have no weights.
    """
    first = next(itertools.chain.from_iterable(op.parameters() for op in ops), None)
    keys = [tuple(rule.key for _, rule in chain_of(op) or ()) for op in ops]
    return _tried_by_kernels(keys, ops, first, on, _jointly)


Together = Callable[[Sequence[nn.Module], Tensor, Tensor], Tensor]
"""What operations of a kind make of a map together, each times its scale: `[G, B, C, H, W]`."""


def _batched(ops: Sequence[nn.Module], x: Tensor, scale: Tensor) -> Tensor:
    maps = outcome_of(ops, x).chunk(len(ops), dim=1)
    return torch.stack([weight * y for weight, y in zip(scale, maps, strict=True)])


def _by_kernels(form: Form, ops: Sequence[nn.Module], x: Tensor, scale: Tensor) -> Tensor:
    from nas.oneshot.fused.kernels.passage import alike, apart

    layers = list(zip(*([layer for layer, _ in chain_of(op) or ()] for op in ops), strict=True))
    return apart([alike(ops, layers, form)], x, scale)


def _by_preparing(form: Form, ops: Sequence[nn.Module], x: Tensor, scale: Tensor) -> Tensor:
    from nas.oneshot.fused.kernels.preparing import Preparation

    layers = [[layer for layer, _ in chain_of(op) or ()] for op in ops]
    states = Preparation.of(layers, [form] * len(ops), x.device).prepare([x] * len(ops))
    return torch.stack([weight * state for weight, state in zip(scale, states, strict=True)])


def _jointly(ops: Sequence[nn.Module], x: Tensor, scale: Tensor) -> Tensor:
    from nas.oneshot.fused.kernels.passage import alike, apart

    groups = []
    for edge, op in enumerate(ops):
        layers = [layer for layer, _ in chain_of(op) or ()]
        groups.append(alike([op], [[layer] for layer in layers], cast(Form, form_of(layers)), first=edge))
    return apart(groups, x, scale)


def _tried_by_kernels(
    keys: Sequence[Hashable],
    ops: Sequence[nn.Module],
    first: Tensor | None,
    on: Tensor | None,
    together: Together,
) -> bool:
    """Whether kernels are right on maps of all types that they would compute here, if there are any.

    first: any of the operations' tensors, if they have some.
    """
    likes = _likes(first, on)
    return bool(likes) and all(
        _tried(("kernels", like.device.type, like.dtype, *keys), ops, like, together) for like in likes
    )


def _likes(first: Tensor | None, on: Tensor | None) -> list[Tensor]:
    """Tensors that kernels are tried on maps like; none where they do not compute such maps."""
    like = first if first is not None else on
    if like is None or like.dtype not in (torch.float32, *HALVES):
        return []
    kinds = [torch.float32]
    if on is not None and (own := type_of_maps([on])) in HALVES:
        kinds.append(own)
    return [like.new_empty((), dtype=kind) for kind in kinds]


def _tried(key: tuple[Hashable, ...], ops: Sequence[nn.Module], like: Tensor, together: Together) -> bool:
    if key not in _TRIED:
        problem = _problem(ops, like, together)
        if problem is not None and key[0] == "kernels" and native.problem(like.device) is None:
            problem = _without_native(problem, ops, like, together)
        _TRIED[key] = problem is None
        if problem is not None:
            layers = " beside ".join(dict.fromkeys(_named(op) for op in ops))
            warnings.warn(
                f"execution: {layers} on {like.device} is not {key[0]} what it is alone ({problem}); "
                f"such operations do not run {key[0]}",
                stacklevel=2,
            )
    return _TRIED[key]


def _named(op: nn.Module) -> str:
    return ", ".join(type(layer).__name__ for layer, _ in chain_of(op) or ())


def _without_native(problem: str, ops: Sequence[nn.Module], like: Tensor, together: Together) -> str | None:
    """What differs without kernels in CUDA C++ too; where nothing does, they are left alone from then on."""
    with native.switched_off():
        remaining = _problem(ops, like, together)
    if remaining is None:
        native.refuse(problem)
    return remaining


def _problem(given: Sequence[nn.Module], like: Tensor, together: Together) -> str | None:
    """What differs between copies of operations apart and together."""
    generator = torch_rng(0, "trust")
    ops = [copy.deepcopy(op).train() for op in given]
    half = like.dtype in HALVES
    full = like.float() if half else like
    with torch.no_grad():
        for parameter in (p for op in ops[1:] for p in op.parameters()):
            parameter.add_(0.1 * _normal(parameter.shape, full, generator))
    x = channels_last(_normal((4, _channels(ops[0]), 6, 5), like, generator).to(full)).requires_grad_()
    scale = (1 + 0.5 * _normal((len(ops),), full, generator)).requires_grad_()
    inputs = [x, scale, *(p.requires_grad_() for o in ops for p in o.parameters())]
    try:
        with _apart_from_all(like.device):
            alone = torch.stack([weight * o(x) for o, weight in zip(ops, scale, strict=True)])
            along = _normal(alone.shape, full, generator)
            expected = [alone, *gradients((alone * along).sum(), inputs)]
            joint = together(ops, x.to(like), scale).to(full)
            found = [joint, *gradients((joint * along).sum(), inputs)]
    except torch.OutOfMemoryError:
        raise
    except _failures() as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    limit = ROUNDED if half else TOLERANCE.get((like.device.type, like.dtype), OTHERWISE)
    return _difference(expected, found, limit)


@cache
def _failures() -> tuple[type[Exception], ...]:
    """What PyTorch and Triton raise where something cannot be compiled or run."""
    found: list[type[Exception]] = [RuntimeError, AssertionError, OSError, SubprocessError]
    with suppress(ImportError):
        from triton import TritonError

        found.append(TritonError)
    return tuple(found)


@contextmanager
def _apart_from_all(device: torch.device) -> Iterator[None]:
    """Runs a block as if nothing ran around it: gradients on, no autocast, nothing kept for a checkpoint."""
    with (
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
        exact(),
    ):
        yield


@torch.no_grad()
def _difference(expected: Sequence[Tensor], found: Sequence[Tensor], limit: float) -> str | None:
    # A gradient that is nothing but rounding, as before a norm of one channel, is judged by the others' size.
    floor = 0.1 * max(a.norm().item() for a in expected)
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        error = ((a - b).norm() / a.norm().clamp_min(floor)).item()
        if not error <= limit:
            what = "output" if i == 0 else "gradient of the input" if i == 1 else "gradient of a weight"
            return f"the {what} differs by {error:.1e} of its norm"
    return None


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator).to(like)


def _channels(op: nn.Module) -> int:
    """Channels that an operation reads, by its first weights."""
    for module in op.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if isinstance(module, nn.BatchNorm2d):
            return module.num_features
    return 4
