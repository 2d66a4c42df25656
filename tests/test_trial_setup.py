"""How the trials of a job are set up; whole jobs are in test_search_run.py."""

from types import SimpleNamespace

import pytest

from nas.evaluation.fidelity import geometric
from nas.goals import Goals
from nas.job.trial_setup import scheduler
from nas.schedulers.halving import Hyperband, SuccessiveHalving
from nas.schedulers.schedule import Fixed
from nas.searchers import Guided, Nsga2, RandomSearch, RegularizedEvolution
from nas.searchers.bounded import Bounded


def made(name, searcher):
    plan = SimpleNamespace(scheduler=name, ladder=geometric(1, 9), eta=3, goals=Goals())
    return scheduler(SimpleNamespace(plan=plan), searcher, 9)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("fixed", Fixed), ("successive-halving", SuccessiveHalving), ("hyperband", Hyperband)],
)
def test_schedulers_by_name(name, kind):
    assert type(made(name, RandomSearch())) is kind


@pytest.mark.parametrize(
    ("searcher", "enough"),
    [
        (RandomSearch(), 20),
        (RegularizedEvolution(10, 3), 20),
        (Nsga2(50), 50),
        (Guided(init=30), 30),
        (Bounded(Nsga2(40), bool), 40),
    ],
)
def test_a_searcher_is_shown_a_rung_that_it_would_not_draw_at_random_for(searcher, enough):
    assert made("hyperband", searcher).enough == enough
