"""Resolves a configuration against its preset: every recipe and number that a job will use."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path

from nas.errors import ConfigError
from nas.evaluate.calibration import chosen_fidelity
from nas.run.config import Config
from nas.run.job import Plan
from nas.run.overrides import change, settings_of
from nas.run.presets import Preset, preset
from nas.searchers.factory import make_searcher
from nas.searchers.fidelity import Fidelity, Ladder, geometric, parse_fidelity, parse_ladder
from nas.searchers.goals import Goals, parse_goals
from nas.searchers.method_names import SHARED
from nas.space.latency import LATENCY
from nas.training.recipe import Recipe

if typing.TYPE_CHECKING:
    from nas.oneshot.methods import Method
    from nas.oneshot.path_training import Sharing

UNBOUNDED = 10**6
"""Trials from which on only the time ends a search."""
MIN_STOPPED = 3
"""Epochs of a trial that can be stopped early: a forecast needs two, and one to save."""


def make_plan(config: Config, method: Method | None = None) -> Plan:
    """The plan of a configuration. method: one that was given in Python, which then is not looked up.

    Raises:
        ConfigError: naming the table and the setting that is unknown or out of range.
    """
    base = preset(config.preset)
    epochs = {} if config.epochs is None else {"epochs": config.epochs}
    shared = config.shares_weights
    goals = parse_goals(config.objective, config.constraint)
    tuned = dict(config.searcher)
    earlier, proxies = str(tuned.pop("earlier", "")), str(tuned.pop("proxies", ""))
    if (earlier or proxies) and config.method != "guided":
        raise ConfigError(f"searcher: method {config.method!r} takes no earlier runs or proxies; use guided")
    if config.warm_start == "parent":
        tuned = {"morphism": 0.5, **tuned}
    images = base.search_images if config.search_images is None else config.search_images
    top_k = config.top_k or (base.shared_top_k if config.method in SHARED else base.top_k)
    _refuse_unused(config, top_k)
    pace: dict[str, object] = {"execution": config.execution} if config.execution != "auto" else {}
    pace |= {} if config.graph else {"graph": False}
    own_epochs = {} if shared or config.is_differentiable else epochs
    trial = change(base.trial, pace | own_epochs | config.trial, "trial")
    ladder = _ladder(config, trial)
    _refuse_idle(config, goals, ladder)
    return Plan(
        trial=trial,
        search=_differentiable(config, base, method, pace) if config.is_differentiable else None,
        shared=change(base.shared, pace | (epochs if shared else {}) | config.shared, "shared"),
        sharing=_sharing(config) if config.shares_weights or config.sharing else None,
        final=change(base.final, pace | config.retrain, "retrain"),
        searcher=None if config.is_differentiable else make_searcher(config.method, tuned, goals=goals),
        goals=goals,
        earlier=earlier,
        proxies=tuple(name.strip() for name in proxies.split(",") if name.strip()),
        scheduler=config.scheduler,
        ladder=ladder,
        eta=config.eta,
        early_stop=config.early_stop,
        baselines=config.baselines,
        seeds=config.seeds or base.seeds,
        trials=config.trials or (base.shared_trials if config.method in SHARED else base.trials),
        top_k=top_k,
        top_k_epochs=config.top_k_epochs or base.top_k_epochs,
        search_images=images or None,
        final_images=None if "epochs" in config.retrain else base.final_images,
        budget_s=config.budget,
        size=base.size,
        final_size=base.final_size,
        full_size=base.full_size,
    )


# What only a job with a supernet needs is loaded by it alone.


def _differentiable(
    config: Config, base: Preset, method: Method | None, pace: Mapping[str, object]
) -> Method:
    from nas.run.resolved_method import method_of

    return method_of(config, base, method, pace)


def _sharing(config: Config) -> Sharing:
    from nas.oneshot.path_training import Sharing

    return settings_of(Sharing(), config.sharing, "sharing")


def _refuse_unused(config: Config, top_k: int) -> None:
    """Settings of trainings that this job will not make."""
    again_only = config.shares_weights or (config.is_differentiable and not config.baselines)
    if "epochs" in config.trial and again_only:
        raise ConfigError(
            "trial.epochs is set, but here architectures are trained for top_k_epochs only; set that"
        )
    unused = {
        "top_k_epochs": config.top_k_epochs is not None,
        "seeds": config.seeds is not None,
        "trial": again_only and bool(config.trial),
    }
    for name, is_set in unused.items():
        if is_set and top_k == 1 and not config.baselines:
            raise ConfigError(
                f"{name} is set, but with top_k 1 and no baselines nothing is trained again; remove it or "
                "raise top_k"
            )


def _refuse_idle(config: Config, goals: Goals, ladder: Ladder) -> None:
    """A latency table that decides nothing, and early stopping where it cannot stop anything."""
    if config.latency_table is not None and LATENCY not in goals.metrics:
        raise ConfigError(
            f"latency_table is set, but nothing decides by {LATENCY}; add it to objective or constraint"
        )
    if not config.early_stop:
        return
    if goals.objectives != Goals().objectives:
        raise ConfigError("early_stop forecasts val_acc, so it must be the only objective; remove early_stop")
    rung = ladder.rungs[-1]
    if rung.epochs < MIN_STOPPED or rung != Fidelity(rung.epochs):
        raise ConfigError(
            f"early_stop needs trials of at least {MIN_STOPPED} epochs at full size, got {rung}; remove it"
        )


def _ladder(config: Config, trial: Recipe) -> Ladder:
    """The rungs of the trials: given, grown by `eta` up to the trial's epochs, or those epochs alone."""
    if config.scheduler == "fixed":
        text = config.fidelity
        if text == "auto":
            text = chosen_fidelity(Path(str(config.calibration)), space=config.space, task=config.task)
        return Ladder((Fidelity(trial.epochs) if text is None else parse_fidelity(text),))
    if config.ladder is not None:
        return parse_ladder(config.ladder)
    return geometric(1, trial.epochs, config.eta)
