"""Searchers, schedulers and evaluators that look back, when trials end in another order than they began."""

import dataclasses

import numpy as np
import pytest
import torch
from jobs import SMALL, Recorder

from nas.evaluation.evaluators import Trained
from nas.evaluation.fidelity import geometric
from nas.evaluation.grown import Grown
from nas.evaluation.measured import Stopwatch
from nas.job.config import make_config
from nas.job.preparation import prepare
from nas.job.run_folder import begin
from nas.job.trial_search import trial_search
from nas.registry import load
from nas.schedulers.halving import Hyperband, SuccessiveHalving
from nas.schedulers.scheduler import Fixed
from nas.searchers import Guided, LocalSearch, Nsga2, RandomSearch, RegularizedEvolution
from nas.searchers.optuna_search import OptunaSearch
from nas.seeding import rng
from nas.storage.journal import JOURNAL, journal_storage
from nas.task import load_task
from nas.training.recipe import Recipe
from nas.types import Trial
from nas.workers.identity import Identity

CELLS = load("nasbench201")
LADDER = geometric(1, 9)
RECIPE = Recipe(epochs=1, batch=32, lr=0.05, weight_decay=1e-4)
SCHEDULERS = {
    "random": Fixed(RandomSearch(), 1),
    "evolution": Fixed(RegularizedEvolution(5, 3), 1),
    "local": Fixed(LocalSearch(init=4), 1),
    "nsga2": Fixed(Nsga2(population=6), 1),
    "guided": Fixed(Guided(init=6), 1),
    "tpe": Fixed(OptunaSearch("TPESampler"), 1),
    "halving": SuccessiveHalving(RandomSearch(), LADDER, eta=2),
    "halving-evolution": SuccessiveHalving(RegularizedEvolution(5, 3), LADDER, eta=3, enough=6),
    "hyperband": Hyperband(RandomSearch(), LADDER, eta=2),
}


def running(history):
    return [t for t in history if t.state == "running"]


def worked_on(scheduler, *, workers, trials, seed):
    """A history as so many workers make it, whose trials take random times and sometimes fail."""
    history, draw = [], np.random.default_rng(seed)
    while len(history) < trials or running(history):
        busy = running(history)
        if len(history) < trials and len(busy) < workers:
            number = len(history)
            genotype, fidelity = scheduler.ask(CELLS, history, rng(seed, number))
            # Two workers on one architecture would write the same checkpoints.
            assert genotype not in {t.genotype for t in busy}
            assert (genotype, fidelity) not in {(t.genotype, t.fidelity) for t in history}
            history.append(Trial(number, genotype, fidelity, beside=tuple(t.number for t in busy)))
            continue
        ended = busy[int(draw.integers(len(busy)))]
        metrics = {"val_acc": sum(ended.genotype) / 30 + 0.1 * draw.random()}
        failed = draw.random() < 0.1
        history[ended.number] = dataclasses.replace(
            ended, state="failed" if failed else "done", metrics={} if failed else metrics
        )
    return history


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_architecture_is_ever_in_two_hands(name):
    few = name in ("guided", "tpe")
    for seed in range(1 if few else 3):
        history = worked_on(SCHEDULERS[name], workers=4, trials=24 if few else 60, seed=seed)
        assert len({(t.genotype, t.fidelity) for t in history}) == len(history)
    if "halving" in name or name == "hyperband":
        assert len({t.fidelity for t in history}) > 1
        first = {}
        for trial in history:  # whoever climbs was done one rung lower when that was decided
            below = first.get((trial.genotype, trial.fidelity // 3))
            if below is not None:
                assert below.state == "done" and below.number not in trial.beside
            first[trial.genotype, trial.fidelity] = trial


def test_a_trial_grows_from_what_was_there_when_it_was_proposed(tmp_path):
    space = load("nasbench201", width=2, cells=1, in_channels=1)
    small, other, large = (3, 3, 0, 1, 0, 3), (3, 0, 3, 1, 0, 3), (3, 3, 3, 1, 0, 3)
    trained = Trained(space, load_task("digits").reduced(96), RECIPE)
    history = []
    grown = Grown(trained, tmp_path, history)
    for number, genotype in enumerate((small, other)):
        metrics = grown(Trial(number, genotype, 1), np.random.default_rng(0))
        history.append(Trial(number, genotype, 1, "done", {**metrics, "val_acc": float(number)}))
    late = Trial(2, large, 1, beside=(1,))
    assert grown(late, np.random.default_rng(0))["inherited_from"] == 0
    assert grown(Trial(2, large, 1), np.random.default_rng(0))["inherited_from"] == 1


def test_all_workers_measure_latency_by_one_reference():
    space = load("toy", width=4, in_channels=1)
    history = []
    one, two = (Stopwatch(space, (1, 8, 8), torch.device("cpu"), history=history) for _ in range(2))
    one((2, 2, 2))
    assert one._reference()[0] == (2, 2, 2)
    history.append(Trial(0, (1, 1, 1), 1, "done", {"latency_ms": 5.0}))
    assert one._reference() == two._reference() == ((1, 1, 1), 5.0)


def searching(folder, **settings):
    """The search of a job as one of its workers has it."""
    config = make_config({"space": "toy", "method": "random"} | SMALL | settings)
    job = dataclasses.replace(prepare(config, folder, progress=Recorder())[0], folder=folder)
    if not (folder / "run.json").exists():
        begin(folder, config, job.plan, space=job.space, task=job.task, force=False)
    storage, identity = journal_storage(folder / JOURNAL), Identity.of_this_process()
    return trial_search(job, job.plan.searcher, storage, identity=identity)


def test_what_one_worker_measured_the_other_looks_up(tmp_path):
    one, two = searching(tmp_path), searching(tmp_path)
    first, second = one.study.ask(), two.study.ask()
    metrics = one.evaluate(first, np.random.default_rng(0))
    one.study.tell(first, metrics, 1.0)
    isomorphic = dataclasses.replace(second, number=2, genotype=first.genotype, beside=(1,))
    two.study.sync()
    assert two.evaluate(isomorphic, np.random.default_rng(5)) == metrics
    beside = dataclasses.replace(isomorphic, beside=(0, 1))
    assert two.evaluate(beside, np.random.default_rng(5)) != metrics


def test_promoted_by_one_worker_trained_on_by_another(tmp_path):
    settings = {"scheduler": "successive-halving", "epochs": 3, "eta": 2, "trials": 12}
    (tmp_path / "shared").mkdir()
    one, two = searching(tmp_path / "shared", **settings), searching(tmp_path / "shared", **settings)
    while one.study.ended < 6:
        for worker in (one, two):
            trial = worker.study.ask()
            metrics = worker.evaluate(trial, rng(0, trial.number))
            worker.study.tell(trial, metrics, 1.0)
    climbed = [t for t in one.study.history if t.fidelity > 1]
    assert climbed and all(t.metrics["continued"] == 1 for t in climbed)
    # Out of reach of the folder the same comes out, only later.
    (tmp_path / "alone").mkdir()
    alone = searching(tmp_path / "alone", **settings)
    metrics = alone.evaluate(climbed[0], rng(0, climbed[0].number))
    assert metrics["val_loss"] == climbed[0].metrics["val_loss"]
    assert metrics["continued"] == 0
