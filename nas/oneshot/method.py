"""A differentiable method is a set of parts; this is the set, and what may go together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nas.errors import ConfigError
from nas.oneshot.alpha_optimizer import Adam, Update
from nas.oneshot.darts_pt import ByPerturbation
from nas.oneshot.early_stopping import Guards
from nas.oneshot.oles import Freezing
from nas.oneshot.perturbations import Perturbation
from nas.oneshot.regularizers import Regularizer
from nas.oneshot.relaxations import Relaxation, Softmax
from nas.oneshot.stages import Staging, Whole
from nas.training.recipe import Recipe

# Liu et al. 2019, §3.1.1 and the released code: 50 epochs, batch 64, plain momentum, cosine per epoch.
PUBLISHED = Recipe(
    epochs=50,
    batch=64,
    lr=0.025,
    lr_min=0.001,
    weight_decay=3e-4,
    nesterov=False,
    schedule="epoch",
    clip=5.0,
)


@dataclass(frozen=True)
class Method:
    """A differentiable search; the defaults are DARTS of first order (Liu et al., ICLR 2019) as published.

    name: what it is called in records and messages.
    weights: recipe of the shared weights, whose epochs are the search's.
    relaxation: alphas to mixture weights.
    order: 1 takes the weights as they are in the alphas' gradient, 2 unrolls one step of theirs, 0 does not
      move the alphas by gradients at all.
    update: how the alphas move.
    warmup: share of every stage's epochs in which only the weights are trained.
    edge_norm: whether the edges into a node are weighed against each other.
    perturbation: of the mixture that the weights are trained under.
    regularizers: what is added to the alphas' loss.
    staging: when options drop out, and how the supernet changes then.
    freezing: when single operations stop learning.
    selection: how the final architecture is chosen; by the alphas unless given.
    skip_cap: at most so many identities in a cell of the final architecture, where there are no guards, whose
      own cap counts else; any number when None.
    guards: what is done against collapse; nothing when None.
    checkpointing: keep the inputs of cells only and compute the rest again in the backward pass.
    """

    name: str = "darts"
    weights: Recipe = PUBLISHED
    relaxation: Relaxation = Softmax()  # noqa: RUF009 - a frozen value
    order: Literal[0, 1, 2] = 1
    update: Update = Adam()  # noqa: RUF009
    warmup: float = 0.0
    edge_norm: bool = False
    perturbation: Perturbation | None = None
    regularizers: tuple[Regularizer, ...] = ()
    staging: Staging = Whole()  # noqa: RUF009
    freezing: Freezing | None = None
    selection: ByPerturbation | None = None
    skip_cap: int | None = None
    guards: Guards | None = None
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.order not in (0, 1, 2):
            raise ConfigError(f"{self.name}: order is {self.order!r}, but must be 0, 1 or 2")
        for name in ("ema", "auxiliary"):
            if getattr(self.weights, name):
                raise ConfigError(
                    f"{self.name}: {name} of the weights is {getattr(self.weights, name)}, but a supernet is "
                    "searched with its weights as they are and without auxiliary heads; set it to 0"
                )
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"{self.name}: warmup is {self.warmup}, but must be a share in [0, 1)")
        if self.skip_cap is not None and self.skip_cap < 0:
            raise ConfigError(f"{self.name}: skip_cap is {self.skip_cap}, but must be at least 0")
        if self.relaxation.one_at_a_time and (self.perturbation is not None or self.update.on_simplex):
            raise ConfigError(
                f"{self.name}: {type(self.relaxation).__name__} runs one option at a time, whose mixture can "
                "neither be perturbed nor moved on the simplex; choose another relaxation"
            )
        if self.update.on_simplex and type(self.relaxation) is not Softmax:
            raise ConfigError(
                f"{self.name}: an exponentiated gradient moves the softmax of the alphas, so the relaxation "
                f"must be Softmax, not {type(self.relaxation).__name__}"
            )
        if self.order == 0 and (self.regularizers or self.freezing is not None):
            raise ConfigError(
                f"{self.name}: order is 0, so that the alphas have no loss; remove regularizers and freezing"
            )
        if self.freezing is not None and (self.order == 2 or self.relaxation.one_at_a_time):
            raise ConfigError(
                f"{self.name}: freezing compares the training and validation gradients of all operations at "
                "the same weights, so it needs order 1 and a relaxation that runs all of them"
            )

    @property
    def identities(self) -> int | None:
        """At most so many identities in a cell of the final architecture; any number when None."""
        return self.skip_cap if self.guards is None else self.guards.skip_cap

    @property
    def learns_alphas(self) -> bool:
        """Whether gradients move the alphas."""
        return self.order > 0

    def describe(self) -> dict[str, Any]:
        """Plain values for JSON: every part by the name of its class with its settings."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def _plain(value: object) -> object:
    if isinstance(value, Recipe):
        return {name: _plain(item) for name, item in dataclasses.asdict(value).items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        kept = {k: _plain(v) for k, v in fields.items() if isinstance(v, int | float | str | tuple)}
        return {"part": type(value).__name__, **kept}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {"part": getattr(value, "__qualname__", type(value).__qualname__)}
