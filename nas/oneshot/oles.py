"""Operation-level early stopping (OLES): operations that no longer help validation stop learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.oneshot.supernet import Supernet
from nas.space.mixed_op import MixedOp
from nas.space.ops import FactorizedReduce
from nas.training.optimizer import flat, shares


@dataclass(frozen=True)
class Freezing:
    """OLES (Jiang et al., NeurIPS 2023): gradient matching of each operation, and when it is frozen.

    The match of an operation is the cosine between the gradients of training and validation loss with respect
    to its weights, averaged over `steps` steps. Below `threshold` its weights are trained no further; its
    alphas still are. Operations without weights, and skips that reduce, are never frozen.

    Deviations from the code: the cosine is that of all weights together, as in the paper, and not a mean over
    tensors and their columns; both gradients are taken at the same weights, where it compares that of a
    training step with that of the next validation step.
    """

    steps: int = 20
    threshold: float = 0.4

    def __post_init__(self) -> None:
        if self.steps < 1 or not -1 <= self.threshold <= 1:
            raise ConfigError(
                f"freezing: got {self.steps} steps and threshold {self.threshold}, wanted at least 1 and a "
                "cosine"
            )


class Freezer:
    """The operations of a supernet, how well their gradients match, and which are frozen.

    All of this is kept on the device, and nothing waits for it, so that one CUDA graph holds every step of a
    search: those in which operations are frozen, too.

    operations: the weights of each, by its path inside the supernet's network. weights: all of them.
    """

    def __init__(self, supernet: Supernet, settings: Freezing) -> None:
        self.settings = settings
        self.operations = operations(supernet)
        self.weights = [weight for weights in self.operations.values() for weight in weights]
        if not self.weights:
            raise ConfigError(
                f"freezing: no option of space {supernet.space.name!r} has weights that could stop learning; "
                "choose another method, or leave freezing out"
            )
        device, count = supernet.alphas[0].device, len(self.operations)
        owners = [i for i, weights in enumerate(self.operations.values()) for _ in weights]
        self._owners = torch.tensor(owners, dtype=torch.int64, device=device)
        self._validation = [torch.zeros_like(weight) for weight in self.weights]
        self._sums = torch.zeros(count, device=device)
        self._steps = torch.zeros((), dtype=torch.int64, device=device)
        self._frozen = torch.zeros(count, dtype=torch.bool, device=device)

    @property
    def frozen(self) -> list[str]:
        """Paths of the frozen operations; waits for the device."""
        return [path for path, frozen in zip(self.operations, self._frozen.tolist(), strict=True) if frozen]

    def note(self, validation: Sequence[Tensor]) -> None:
        """Keeps the gradients of the validation loss, one for each of `weights`, until the next `watch`."""
        torch._foreach_copy_(self._validation, [gradient.detach() for gradient in validation])

    def watch(self) -> None:
        """Takes in one step, whose training gradients are in place; a full window is judged and ends."""
        validation = dict(zip(self.weights, self._validation, strict=True))
        matches = [_cosine(weights, [validation[w] for w in weights]) for weights in self.operations.values()]
        self._sums.add_(torch.stack(matches))
        self._steps.add_(1)
        full = self._steps >= self.settings.steps
        self._frozen.logical_or_(full & (self._sums / self._steps < self.settings.threshold))
        self._sums.masked_fill_(full, 0)
        self._steps.masked_fill_(full, 0)

    def hold(self) -> None:
        """Makes the gradients of what is frozen zeros, so that it rests (`nas.training.optimizer`)."""
        learning = self._frozen.logical_not().index_select(0, self._owners).unbind()
        own = [(w.grad, one) for w, one in zip(self.weights, learning, strict=True) if w.grad is not None]
        if own:
            found = [gradient for gradient, _ in own]
            torch._foreach_mul_(found, shares(torch.stack([one for _, one in own]), found))

    def moved(self) -> Iterator[Tensor]:
        """All tensors that `note` and `watch` change."""
        yield from (*self._validation, self._sums, self._steps, self._frozen)

    def state(self) -> Mapping[str, Any]:
        """What the next step depends on."""
        return {"frozen": self.frozen, "steps": int(self._steps), "sums": self._sums}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state."""
        known = set(state["frozen"])
        self._frozen.copy_(torch.tensor([path in known for path in self.operations]))
        self._steps.fill_(state["steps"])
        self._sums.copy_(state["sums"])


def operations(supernet: Supernet) -> dict[str, list[nn.Parameter]]:
    """The weights of every candidate that may be frozen, by its path; each place of a decision for itself."""
    found = {}
    for place, mixed in supernet.network.named_modules():
        if isinstance(mixed, MixedOp):
            for i, op in enumerate(mixed.ops):
                if (weights := list(op.parameters())) and not isinstance(op, FactorizedReduce):
                    found[f"{place}.ops.{i}"] = weights
    return found


def _cosine(weights: Sequence[nn.Parameter], validation: Sequence[Tensor]) -> Tensor:
    """The cosine of training and validation gradient; 1, which freezes nothing, where there is none."""
    pairs = [(w.grad, theirs) for w, theirs in zip(weights, validation, strict=True) if w.grad is not None]
    if not pairs:
        return torch.ones((), device=weights[0].device)
    ours, theirs = flat([a for a, _ in pairs]), flat([b for _, b in pairs])
    norms = ours.norm() * theirs.norm()
    return torch.where(norms > 0, ours @ theirs / norms.clamp_min(1e-30), 1.0)
