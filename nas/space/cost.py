"""What a network costs, counted without running it: parameters, multiply-accumulates and memory.

Networks run on the meta device, where tensors have shapes and no values. Two passes see every operator: one
image through the network as it is deployed, and a batch of two as it is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from nas.errors import FAULTS, SpaceError, Stopped, TrialError, describe, staying
from nas.space.space import Space, remembered
from nas.types import Genotype
from nas.user_code import reason_of

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]
See = Callable[[OpOverload, Args, Kwargs, object], None]
"""Told of an operator, what it was given, and what it gave."""


class Seeing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside `with Seeing(see):`, calls `see` after each operator.

    instead: what is run in place of some operators.
    """

    def __init__(
        self, see: See | None = None, instead: Mapping[OpOverload, Callable[..., object]] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see, self._instead = see, instead or {}

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        run: Callable[..., object] = self._instead.get(func, func)
        output = run(*args, **(kwargs or {}))
        if self._see is not None:
            self._see(func, args, kwargs or {}, output)
        return output


def tensors(tree: object) -> list[Tensor]:
    """All tensors in nested lists, tuples and mappings."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> int:
    """What is equal for tensors that share their memory, as long as one of them lives."""
    return int(tensor.untyped_storage()._cdata)


@dataclass(frozen=True, slots=True)
class Cost:
    """Counted without running anything; bytes are those of float32 maps.

    params: number of trainable parameters that a prediction uses; those of an auxiliary head, which training
      alone needs, are left out as in published sizes.
    macs: multiply-accumulates of convolutions, linear layers and attention for one image, in eval mode.
    activation_bytes: what one training image makes autograd keep for the backward pass.
    peak_bytes: the largest sum of maps alive at once while one image passes in eval mode, the image included
      and weights not. A map lives from the operator that makes it to the last one that reads it, as in a
      runtime that frees at once. Views and in-place operators such as `ReLU(inplace=True)` take nothing new;
      an index map of a max-pooling counts, a kernel's private workspace does not.
    """

    params: int
    macs: int
    activation_bytes: int
    peak_bytes: int


def count_params(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def cost(space: Space, genotype: Genotype, image_shape: Sequence[int]) -> Cost:
    """Counts one architecture on the meta device for images `[C, H, W]`; a second time it is remembered.

    Raises:
        TrialError: with reason `build` when it cannot be built or rejects such images, `unsupported` when an
          operator has no form without values.
    """
    return _counted(space, genotype, tuple(image_shape))


_WITHOUT_VALUES = (
    "; costs are counted on maps without values: a network may not decide by them nor read "
    "them (.item()), and makes new tensors on the device of its input"
)


@remembered
@staying()
def _counted(space: Space, genotype: Genotype, image_shape: tuple[int, ...]) -> Cost:
    try:
        network = space.network(genotype, meta=True)
        params, macs, peak = _deployed(network, torch.zeros(1, *image_shape, device="meta"))
        # Batch-norm refuses to train on a single value.
        saved = _trained(network, torch.zeros(2, *image_shape, device="meta")) // 2
        return Cost(params, macs, saved, peak)
    except SpaceError as error:
        raise TrialError("build", str(error)) from error
    except FAULTS as error:  # a network is the user's code and may raise anything
        unfit = isinstance(error, RuntimeError | ValueError | TypeError)  # by layers, of maps
        reason = "unsupported" if reason_of(error) == "unsupported" else "build" if unfit else "error"
        hint = _WITHOUT_VALUES if "meta" in str(error) else ""
        raise TrialError(reason, f"images of {image_shape} fail: {describe(error)}{hint}") from error


def _deployed(network: nn.Module, x: Tensor) -> tuple[int, int, int]:
    """Parameters, multiply-accumulates and peak bytes of one pass over `x` in eval mode."""
    seen = _Counting(x)
    with Seeing(seen.see, _BY_SHAPE), torch.no_grad():
        output = network.eval()(x)
    params = sum(p.numel() for p in network.parameters() if p.requires_grad and storage_of(p) in seen.read)
    return params, seen.macs, seen.peak_bytes(output)


def _trained(network: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps of one training pass over `x`, weights and statistics not included."""
    own = {storage_of(tensor) for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, Tensor] = {}  # by storage, because a linear layer keeps a view of its weight

    def keep(tensor: Tensor) -> Tensor:
        if storage_of(tensor) not in own:
            saved[storage_of(tensor)] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with Seeing(instead=_BY_SHAPE), hooks:
        network.train()(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _batch_norm(x: Tensor, *settings: object) -> tuple[Tensor, Tensor, Tensor]:
    training = settings[4]
    statistics = x.new_empty(x.shape[1] if training else 0)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


_BY_SHAPE: Mapping[OpOverload, Callable[..., object]] = {
    torch.ops.aten.relu.default: torch.empty_like,
    torch.ops.aten.native_batch_norm.default: _batch_norm,
}
"""Of these operators torch finds the shapes by a decomposition in Python, which takes milliseconds."""


class _Counting:
    """Counts the operators' work and records when each buffer is first and last in use.

    x: the image, which is there before the first operator.
    macs: multiply-accumulates so far. read: storages of all that operators took.
    """

    def __init__(self, x: Tensor) -> None:
        self.macs = 0
        self.read: set[int] = set()
        self._step = 0
        self._buffers: dict[int, Tensor] = {}
        self._born: dict[int, int] = {}
        self._used: dict[int, int] = {}
        self._make(x)

    def see(self, operator: OpOverload, args: Args, kwargs: Kwargs, output: object) -> None:
        self._step += 1
        taken = tensors((args, kwargs))
        self._use(taken)
        known = {storage_of(tensor) for tensor in taken}
        self.read |= known
        for tensor in tensors(output):
            if storage_of(tensor) not in known:
                self._make(tensor)
        if (packet := operator.overloadpacket) in flop_registry:
            self.macs += flop_registry[packet](*args, **kwargs, out_val=output) // 2

    def peak_bytes(self, output: object) -> int:
        """The largest sum of buffers alive at one operator; the network's output lives to the end."""
        self._use(tensors(output))
        change = np.zeros(self._step + 2, dtype=np.int64)
        for storage, tensor in self._buffers.items():
            nbytes = tensor.untyped_storage().nbytes()
            change[self._born[storage]] += nbytes
            change[self._used[storage] + 1] -= nbytes
        return int(change.cumsum().max())

    def _make(self, tensor: Tensor) -> None:
        storage = storage_of(tensor)
        self._buffers[storage] = tensor  # a buffer that is kept does not give its address to another
        self._born[storage] = self._used[storage] = self._step

    def _use(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            if (storage := storage_of(tensor)) in self._buffers:
                self._used[storage] = self._step


OPERATOR = 32_768
"""Bytes that are written in the time that an operator takes to begin."""


def step_work(training: Callable[[Callable[[], bool]], object]) -> float:
    """What the second step of a training computes: the bytes that its operators write, and their beginnings.

    It is counted, so that it does not depend on how busy the machine is.

    training: asks what it is given, before each step, whether to stop.
    """
    total, marks = 0, list[int]()

    def see(operator: OpOverload, args: Args, kwargs: Kwargs, output: object) -> None:  # noqa: ARG001 - a `See`
        nonlocal total
        total += OPERATOR + sum(tensor.nbytes for tensor in tensors(output))

    def stop() -> bool:
        marks.append(total)
        return len(marks) > 2

    try:
        with Seeing(see):
            training(stop)
    except Stopped:
        pass
    else:  # it had no more steps
        marks.append(total)
    return marks[-1] - marks[-2]
