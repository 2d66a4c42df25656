"""What an architecture costs, beside what an evaluator finds out, and bounded before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields

import numpy as np
import torch
from torch import nn

from nas.errors import ConfigError, unknown
from nas.seeding import derive, isolated, torch_rng
from nas.space.cost import Cost, cost
from nas.space.latency import BEST_OF, LATENCY, Latency, LatencyTable, best, interleaved
from nas.space.space import Space
from nas.training.memory_estimate import require_memory
from nas.types import Genotype, Trial
from nas.user_code import build_errors

COUNTED = tuple(field.name for field in fields(Cost))
TIMED = (LATENCY, "latency_low_ms", "latency_high_ms", "latency_p95_ms")
ROUNDS, MOST, TOLERANCE = 12 * BEST_OF, 4, 0.05
"""Passes behind a latency, repeated at most so often until its interval is narrower than that share of it."""
LOSSES = ("val_loss", "train_loss")
"""What the engine's own evaluators give, beside the metric of the problem."""


class Costs:
    """The costs of an architecture that a search decides by.

    `params`, `macs`, `activation_bytes` and `peak_bytes` are counted (`nas.space.cost.Cost`). Latency is of
    one image, in milliseconds: `latency_ms` from the table if there is one; else measured by a `Stopwatch`,
    and then with `latency_low_ms` and `latency_high_ms`, a bootstrap 95 % interval, and `latency_p95_ms`, the
    95th percentile of single passes, whatever delayed them.

    wanted: names of metrics that a search decides by (`Goals.metrics`).
    table: latencies looked up instead of measured.
    timed: trials whose latencies were measured before, see `Stopwatch`.
    given: metrics that the evaluator itself gives.
    """

    def __init__(
        self,
        space: Space,
        image_shape: Sequence[int],
        device: torch.device,
        wanted: Sequence[str],
        *,
        table: LatencyTable | None = None,
        timed: Callable[[], Iterable[Trial]] = lambda: (),
        given: Sequence[str] = ("val_acc", *LOSSES),
    ) -> None:
        known = (*COUNTED, *TIMED, *given)
        for name in sorted(set(wanted)):
            if name not in known:
                raise ConfigError(unknown("metric", name, known))
            if table is not None and name in TIMED[1:]:
                raise ConfigError(
                    f"{name} is wanted, but a latency table gives {LATENCY} only; measure it instead"
                )
        if table is not None:
            table.check(space)
            if LATENCY not in wanted:
                raise ConfigError(f"a latency table is given, but nothing decides by {LATENCY}")
        self.space, self.image_shape, self.table = space, tuple(image_shape), table
        is_timed = table is None and bool({*wanted} & {*TIMED})
        self._stopwatch = Stopwatch(space, image_shape, device, timed=timed) if is_timed else None
        self._wanted = {*wanted, *(TIMED if is_timed else ())}

    def __call__(self, trial: Trial) -> Mapping[str, float]:
        """The wanted costs of a trial's architecture."""
        costs = free_metrics(self.space, trial.genotype, self.image_shape, self.table)
        if self._stopwatch is not None:
            costs |= self._stopwatch(trial.genotype, seed=trial.number)
        return {name: value for name, value in costs.items() if name in self._wanted}


class Stopwatch:
    """Measures latency relative to a reference, the first architecture that was measured.

    A busy machine or a hot chip slows down everything for a while, so candidate and reference run side by
    side; other processes delay single passes, so only the best of a few counts (`nas.space.latency.best`). A
    latency is the median ratio of these, times what the reference took when it was measured alone. Ranks
    depend on ratios only; the scale, common to all, is as good as that first measurement.

    timed: trials that may have been timed before; the first that was is the reference.
    """

    def __init__(
        self,
        space: Space,
        image_shape: Sequence[int],
        device: torch.device,
        *,
        timed: Callable[[], Iterable[Trial]] = lambda: (),
    ) -> None:
        self.space, self.device = space, device
        stream = torch_rng(0, "latency", device=device)
        self.x = torch.randn(1, *image_shape, generator=stream, device=device)
        self._timed = timed
        self._own: tuple[Genotype, float] | None = None

    def __call__(self, genotype: Genotype, *, seed: int = 0) -> dict[str, float]:
        """The metrics `TIMED` of one architecture; `seed` shuffles the order within rounds."""
        network = self._network(genotype)
        reference, ms = self._reference() or self._first(genotype, network)
        pair = [network, self._network(reference)]
        times = np.empty((2, 0))
        for again in range(MOST):
            more = interleaved(pair, self.x, repeats=ROUNDS, seed=derive(seed, again))
            times = np.hstack([times, more])
            own, other = best(times)
            found = Latency.of(ms * own / other)
            if found.high_ms - found.low_ms <= TOLERANCE * found.p50_ms:
                break
        p95_ms = float(np.quantile(times[0], 0.95) * ms / np.median(other))
        return dict(zip(TIMED, (found.p50_ms, found.low_ms, found.high_ms, p95_ms), strict=True))

    def _reference(self) -> tuple[Genotype, float] | None:
        timed = (t for t in self._timed() if LATENCY in t.metrics)
        return next(((t.genotype, t.metrics[LATENCY]) for t in timed), self._own)

    def _first(self, genotype: Genotype, network: nn.Module) -> tuple[Genotype, float]:
        alone = interleaved([network], self.x, repeats=MOST * ROUNDS)
        self._own = genotype, float(np.median(best(alone)))
        return self._own

    def _network(self, genotype: Genotype) -> nn.Module:
        require_memory(cost(self.space, genotype, self.x.shape[1:]).params, self.device)
        with isolated(0, "latency"), build_errors():
            return self.space.network(genotype).to(self.device)


def free_metrics(
    space: Space, genotype: Genotype, image_shape: Sequence[int], table: LatencyTable | None = None
) -> dict[str, float]:
    """What is known of an architecture without running it: `COUNTED`, and `latency_ms` from a table.

    Raises:
        TrialError: with reason `build` when it cannot be built, `missing` when the table does not have it.
    """
    counted: dict[str, float] = asdict(cost(space, genotype, image_shape))
    return counted if table is None else {**counted, LATENCY: table.predict(space, genotype)}
