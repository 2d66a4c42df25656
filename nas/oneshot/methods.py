"""The named differentiable methods: each a few parts put together, with the settings of its paper.

A method of one's own is made the same way: `Method("mine", relaxation=Dirichlet(),
regularizers=(BetaDecay(),))`. What depends on the benchmark and not on the method (epochs, batch, learning
rate of the weights) is in `nas.run.presets`.

Deviations of all: what is annealed (temperatures, radii, weights of penalties) follows the step, in the codes
the epoch; an epoch leaves out a last partial batch, so that all steps are alike and one graph can hold them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from nas.errors import ConfigError
from nas.oneshot.alpha_optimizer import Adam, ExponentiatedGradient, Update
from nas.oneshot.darts_pt import ByPerturbation
from nas.oneshot.early_stopping import Guards
from nas.oneshot.oles import Freezing
from nas.oneshot.progressive import Progressive, PruneOneByOne, SingleStage, StageSchedule
from nas.oneshot.regularizers import BetaDecay, L2Anchor, Regularizer, ZeroOne
from nas.oneshot.relaxations import (
    AdversarialPerturbation,
    Dirichlet,
    GumbelHard,
    GumbelSoft,
    Perturbation,
    RandomPerturbation,
    Relaxation,
    Sigmoid,
    Softmax,
    Uniform,
)
from nas.training.recipe import DARTS_SEARCH, Recipe


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
    weights: Recipe = DARTS_SEARCH
    relaxation: Relaxation = Softmax()  # noqa: RUF009 - a frozen value
    order: Literal[0, 1, 2] = 1
    update: Update = Adam()  # noqa: RUF009
    warmup: float = 0.0
    edge_norm: bool = False
    perturbation: Perturbation | None = None
    regularizers: tuple[Regularizer, ...] = ()
    staging: StageSchedule = SingleStage()  # noqa: RUF009
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
        if self.relaxation.samples_one_path and (self.perturbation is not None or self.update.on_simplex):
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
        if self.freezing is not None and (self.order == 2 or self.relaxation.samples_one_path):
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
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        kept = {k: _plain(v) for k, v in fields.items() if isinstance(v, int | float | str | tuple)}
        return {"part": type(value).__name__, **kept}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def darts() -> Method:
    """DARTS of first order (Liu et al., ICLR 2019): softmax, alphas by Adam 3e-4 on the validation loss."""
    return Method("darts")


def darts2() -> Method:
    """DARTS of second order: the validation loss after one unrolled step of the weights (equation 7)."""
    return Method("darts2", order=2)


def gdas(*, start: float = 10.0, end: float = 0.1) -> Method:
    """GDAS (Dong & Yang, CVPR 2019): one sampled operation an edge, temperature from `start` to `end`."""
    return Method("gdas", relaxation=GumbelHard(start, end))


def snas(*, start: float = 10.0, end: float = 1.0) -> Method:
    """SNAS (Xie et al., ICLR 2019): soft Gumbel samples.

    Deviations: weights and alphas have separate losses, as in DARTS; the paper's constraint on resources is
    the engine's `constraint`.
    """
    return Method("snas", relaxation=GumbelSoft(start, end))


def drnas(
    *,
    first_parts: int = 4,
    last_parts: int = 2,
    pull: float = 1e-3,
    alpha_lr: float = 6e-4,
    warmup: float = 0.4,
) -> Method:
    """DrNAS (Chen et al., ICLR 2021): mixtures drawn from a Dirichlet distribution, in two stages.

    The second has 3 of 5 options and computes on more channels; in each the alphas rest for `warmup` of its
    epochs (10 of 25 in the DARTS space, 10 of 50 in NAS-Bench-201). Deviations: stages are those for
    NAS-Bench-201; in the DARTS space the code keeps 7 and then 4 options and computes on 1/6 and then 1/4 of
    36 channels, in 20 cells, where supernets here have 16 channels, of which there is no sixth.
    """
    return Method(
        "drnas",
        relaxation=Dirichlet(),
        update=Adam(alpha_lr, weight_decay=0.0),
        regularizers=(L2Anchor(pull),),
        staging=Progressive(keep=(1.0, 0.6), parts=(first_parts, last_parts)),
        warmup=warmup,
    )


def pcdarts(*, parts: int = 4) -> Method:
    """PC-DARTS (Xu et al., ICLR 2020): 1/`parts` of the channels, weighed edges, alphas after 15 epochs."""
    return Method("pcdarts", update=Adam(6e-4), staging=SingleStage(parts), edge_norm=True, warmup=0.3)


def sdarts_rs(*, start: float = 0.03, end: float = 0.3) -> Method:
    """SDARTS-RS (Chen & Hsieh, ICML 2020): weights trained under randomly perturbed mixtures."""
    return Method("sdarts-rs", perturbation=RandomPerturbation(start, end))


def sdarts_adv(*, start: float = 0.03, end: float = 0.3, steps: int = 7) -> Method:
    """SDARTS-ADV (Chen & Hsieh, ICML 2020): weights trained under the worst mixture nearby."""
    return Method("sdarts-adv", perturbation=AdversarialPerturbation(start, end, steps))


def fairdarts(*, weight: float = 10.0) -> Method:
    """FairDARTS (Chu et al., ECCV 2020): independent gates and the zero-one loss.

    Deviations: the architecture is what the space's projection prefers, where the paper keeps gates above
    0.85, as many as two into a node; `none`, which the paper's space lacks, is out of the race.
    """
    return Method(
        "fairdarts",
        relaxation=Sigmoid(),
        update=Adam(3e-3, betas=(0.9, 0.999)),
        regularizers=(ZeroOne(weight),),
    )


def beta_darts(*, end: float = 25.0) -> Method:
    """β-DARTS (Ye et al., CVPR 2022): the Beta-Decay loss, its weight growing from 0 to `end`.

    The released code goes from 0 to 50 in 100 epochs; the default is for 50 epochs of the same growth.
    """
    return Method("beta-darts", regularizers=(BetaDecay(end),))


def gaea(*, parts: int = 4) -> Method:
    """GAEA PC-DARTS (Li et al., ICLR 2021): exponentiated gradients on the simplex, partial channels.

    The mixtures move from the first epoch on. Deviations: mixtures and edges' weights start almost equal and
    not exactly. In NAS-Bench-201, where the paper has all channels, the weights' cosine ends with the search
    and `none` competes, where the code plans 50 epochs, stops after 25, and leaves `none` out.
    """
    return Method("gaea", update=ExponentiatedGradient(0.1), staging=SingleStage(parts), edge_norm=parts > 1)


def oles(*, steps: int = 20, threshold: float = 0.4) -> Method:
    """OLES (Jiang et al., NeurIPS 2023): DARTS whose operations stop learning when they overfit."""
    return Method("oles", freezing=Freezing(steps, threshold))


def is_darts(*, every: float = 1 / 15) -> Method:
    """IS-DARTS (He et al., AAAI 2024): no alphas; options drop out one by one by their Fisher information.

    Deviations: an even mixture divides by the number of options that are left, the code by that of all;
    weights and information come from the training split, in the code from all training images; in the DARTS
    space a mixture's pools are normalised, as in the code of DARTS, and there not.
    """
    return Method("is-darts", relaxation=Uniform(), order=0, staging=PruneOneByOne(every))


def pdarts() -> Method:
    """P-DARTS (Chen et al., ICCV 2019): three stages, each deeper and with fewer options; dropout on skips.

    The depths are 5, 11 and 17 cells where the space has 8. Deviation: the cap of two identities holds in
    every kind of cell, in the code in the normal one, as the engine knows kinds by no name.
    """
    return Method(
        "pdarts",
        update=Adam(6e-4, clip=5.0),
        staging=Progressive(
            keep=(1.0, 5 / 8, 3 / 8), depth=(5 / 8, 11 / 8, 17 / 8), skip_dropout=(0.1, 0.4, 0.7), anew=True
        ),
        warmup=0.4,
        skip_cap=2,
    )


METHODS: Mapping[str, Callable[..., Method]] = MappingProxyType(
    {
        "darts": darts,
        "darts2": darts2,
        "gdas": gdas,
        "snas": snas,
        "drnas": drnas,
        "pcdarts": pcdarts,
        "sdarts-rs": sdarts_rs,
        "sdarts-adv": sdarts_adv,
        "fairdarts": fairdarts,
        "beta-darts": beta_darts,
        "gaea": gaea,
        "oles": oles,
        "is-darts": is_darts,
        "pdarts": pdarts,
    }
)
"""Every method by the name that a user types."""
