"""Latency: measured on this device, or looked up in a table that was measured before."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, FiniteFloat, Strict
from torch import Tensor, nn

from nas import devices
from nas.errors import ConfigError, TrialError, unknown
from nas.files.atomic import read_json, write_json
from nas.files.schemas import checked
from nas.seeding import isolated, rng, torch_rng
from nas.space.graph import architecture_hash
from nas.space.space import Space
from nas.types import Genotype

LATENCY = "latency_ms"
"""The metric of a trial: milliseconds for one image."""
RESAMPLES, FOLDS, BEST_OF = 1000, 5, 5
MAX_BYTES = 16 << 20
"""Of a table's file; an entry for each of 15,625 cells takes 2 MB."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Measured milliseconds per batch.

    low_ms, high_ms: bootstrap 95 % interval of the median.
    """

    p50_ms: float
    p95_ms: float
    low_ms: float
    high_ms: float

    @classmethod
    def of(cls, times: NDArray[np.float64]) -> Self:
        """The summary of repeated measurements `[R]` in milliseconds."""
        draws = np.random.default_rng(0).choice(times, (RESAMPLES, len(times)))
        low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
        p50, p95 = np.quantile(times, [0.5, 0.95])
        return cls(float(p50), float(p95), float(low), float(high))


# -- measured -----------------------------------------------------------------------------------------


def interleaved(
    networks: Sequence[nn.Module], x: Tensor, *, repeats: int = 50, warmup: int = 10, seed: int = 0
) -> NDArray[np.float64]:
    """Milliseconds `[N, repeats]` of one forward pass in eval mode on `x [B, C, H, W]`.

    Every network runs once a round, in an order shuffled anew, so that drifting clocks, a warming chip and
    other users of the machine hit all alike; the first `warmup` rounds are thrown away.
    """
    order = rng(seed, "latency")
    times = np.empty((len(networks), warmup + repeats))
    with devices.evaluating(*networks), torch.no_grad():
        for round_ in range(warmup + repeats):
            for i in order.permutation(len(networks)):
                times[i, round_] = _timed(networks[i], x)
    return times[:, warmup:]


def best(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least of every `BEST_OF` measurements in a row: `[N, R]` to `[N, R // BEST_OF]`.

    What delays a pass is mostly other work on the machine; a few in a row are rarely all delayed.
    """
    blocks = times.reshape(len(times), -1, BEST_OF)
    return np.asarray(blocks.min(axis=2))


def _timed(network: nn.Module, x: Tensor) -> float:
    devices.synchronise(x.device)
    start = time.perf_counter()
    network(x)
    devices.synchronise(x.device)
    return 1e3 * (time.perf_counter() - start)


# -- looked up ----------------------------------------------------------------------------------------

Ms = Annotated[FiniteFloat, Strict(), Field(ge=0)]


@dataclass(frozen=True)
class LatencyTable:
    """Latencies by architecture, or by option, to be added up.

    device: where they were measured, in words.
    entries: milliseconds. With `base`, by option, as `"normal/0->2=sep_conv_3x3"`; without, by architecture,
      named in the space's notation or by `nas.space.graph.architecture_hash`.
    base: what every network takes, whatever is chosen.
    error: mean absolute error of `predict` on networks held out of the fit, as a share of what they take.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # in a file, a misspelt part is noticed

    device: str
    entries: Annotated[dict[str, Ms], Field(min_length=1)]
    base: Ms | None = None
    error: Ms | None = None
    unit: Literal["ms"] = "ms"

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """The table in a JSON file `{"unit": "ms", "device": ..., "base": ..., "entries": {...}}`.

        Raises:
            ConfigError: when the file is too large, no JSON, or not such a table.
        """
        return checked(cls, read_json(path, max_bytes=MAX_BYTES), path, "latency table")

    def write(self, path: Path) -> None:
        """Writes what `read` reads."""
        write_json(path, asdict(self))

    def check(self, space: Space) -> None:
        """Raises ConfigError when an entry is for an option that `space` does not have."""
        options = {f"{d.name}={option}" for d in space.decisions for option in d.options}
        for name in self.entries if self.base is not None else ():
            if name not in options:
                raise ConfigError(
                    f"the latency table of {self.device} is not for space {space.name!r}: "
                    f"{unknown('option', name, options)}"
                )

    def predict(self, space: Space, genotype: Genotype) -> float:
        """Milliseconds of one architecture.

        Raises:
            TrialError: with reason `missing`, when the table does not have what is needed.
        """
        wanted = _options(space, genotype)
        if self.base is None:
            own = architecture_hash(space, genotype)
            written = own if space.notation is None else space.notation.write(genotype)
            wanted = [own if own in self.entries else written]
        for name in wanted:
            if name not in self.entries:
                raise TrialError("missing", f"the latency table of {self.device} has no entry {name}")
        return (self.base or 0.0) + sum(self.entries[name] for name in wanted)


def measure_table(
    space: Space,
    image_shape: Sequence[int],
    device: torch.device,
    *,
    samples: int = 100,
    blocks: int = 4,
    seed: int = 0,
) -> LatencyTable:
    """An additive table fitted to the latencies of random architectures on single images `[C, H, W]`.

    samples: how many, and as many more as it takes until every option occurs. All are in memory at once.
    blocks: of `BEST_OF` interleaved rounds. A latency is the median over blocks of a network's best, relative
      to the other networks', times what the median network takes.
    """
    draw = rng(seed, "table")
    genotypes = _covering(space, [space.sample(draw) for _ in range(samples)])
    x = torch.randn(1, *image_shape, generator=torch_rng(seed, "table", device=device), device=device)
    with isolated(seed, "table"):
        networks = [space.network(genotype).to(device) for genotype in genotypes]
    times = best(interleaved(networks, x, repeats=blocks * BEST_OF, seed=seed))
    typical = np.median(times, axis=0)
    ms = np.median(times / typical, axis=1) * np.median(typical)
    return fit_table(space, genotypes, ms, device=devices.describe(device), seed=seed)


def fit_table(
    space: Space, genotypes: Sequence[Genotype], ms: NDArray[np.float64], *, device: str, seed: int = 0
) -> LatencyTable:
    """The additive table nearest to measured latencies `[N]`: non-negative least squares of relative errors.

    Lawson & Hanson 1974, §23. `error` is that of five-fold cross-validation; the table itself is fitted to
    all. In a space with conditional decisions an unasked one counts as its first option.
    """
    if len(genotypes) < FOLDS:
        raise ConfigError(
            f"a latency table is fitted to {len(genotypes)} architectures, wanted {FOLDS} or more"
        )
    chosen = [_options(space, genotype) for genotype in genotypes]
    names = sorted({name for options in chosen for name in options})
    design = np.array([[1.0, *(name in options for name in names)] for options in chosen])
    fold = rng(seed, "folds").permutation(len(ms)) % FOLDS
    errors = np.empty(len(ms))
    for held in (fold == k for k in range(FOLDS)):
        errors[held] = np.abs(design[held] @ _fit(design[~held], ms[~held]) / ms[held] - 1)
    base, *weights = _fit(design, ms).tolist()
    return LatencyTable(device, dict(zip(names, weights, strict=True)), base, float(errors.mean()))


def _fit(design: NDArray[np.float64], ms: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.optimize import nnls

    # Timing errors grow with the time: divided by it, every network counts the same.
    weights: NDArray[np.float64] = nnls(design / ms[:, None], np.ones(len(ms)))[0]
    return weights


def _covering(space: Space, genotypes: Sequence[Genotype]) -> list[Genotype]:
    """The different ones among `genotypes`, then one for every option that none of them has."""
    found = dict.fromkeys(genotypes)
    for i, decision in enumerate(space.decisions):
        for option in range(len(decision.options)):
            if all(genotype[i] != option for genotype in found):
                scores = [np.zeros(len(d.options)) for d in space.decisions]
                scores[i][option] = 1.0
                found[space.canonical(space.nearest(scores))] = None
    return list(found)


def _options(space: Space, genotype: Genotype) -> list[str]:
    choices = space.choices(space.canonical(genotype))
    return [f"{decision}={option}" for decision, option in choices.items()]
