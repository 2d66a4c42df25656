"""How the trials of a job are set up; whole jobs are in test_search_run.py."""

from types import SimpleNamespace

import pytest

from nas.run.black_box import informed, scheduler
from nas.searchers.evolution import Nsga2, RegularizedEvolution
from nas.searchers.fidelity import geometric
from nas.searchers.goals import Goals
from nas.searchers.predictor_guided import Guided
from nas.searchers.scheduler import Listed
from nas.searchers.searcher import Bounded
from nas.space.loading import load
from nas.study.storage import open_storage
from nas.study.study import Study
from nas.types import Trial


def earlier(tmp_path, *rows):
    """What a guided search learns from a run with these trials: option, epochs and accuracy of each."""
    space = load("toy")
    genotypes = sorted(space.enumerate())
    tmp_path.mkdir()
    storage = open_storage(tmp_path / "study.log")
    study = Study(space, Listed((), 0), storage, name="search", announce=False)
    for number, (architecture, epochs, accuracy) in enumerate(rows):
        study.tell(Trial(number, genotypes[architecture], epochs), {"val_acc": accuracy}, 1.0)
    plan = SimpleNamespace(earlier=str(tmp_path), proxies=(), goals=Goals())
    learned = informed(SimpleNamespace(plan=plan, space=space), Guided(init=2)).earlier
    return {(genotypes.index(t.genotype), t.fidelity) for t in learned if t.state == "done"}


def test_what_is_learned_from_an_earlier_run_was_trained_equally_long(tmp_path):
    low = [(i, 1, i / 50) for i in range(22)]
    found = earlier(tmp_path / "few", *low, (21, 3, 0.9), (20, 3, 0.8))
    assert found == {(i, 1) for i in range(22)}
    found = earlier(tmp_path / "many", *low, *((i, 3, 0.9) for i in range(20)))
    assert found == {(i, 3) for i in range(20)}


def made(name, searcher):
    plan = SimpleNamespace(ladder=geometric(1, 9), goals=Goals())
    return scheduler(SimpleNamespace(plan=plan, config=SimpleNamespace(scheduler=name, eta=3)), searcher, 9)


@pytest.mark.parametrize(
    ("searcher", "enough"),
    [
        (RegularizedEvolution(10, 3), 20),
        (Guided(init=30), 30),
        (Bounded(Nsga2(40), bool), 40),
    ],
)
def test_a_searcher_is_shown_a_rung_that_it_would_not_draw_at_random_for(searcher, enough):
    assert made("hyperband", searcher).enough == enough
