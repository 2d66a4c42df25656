"""Schedulers: what they pass on, and when they end."""

import numpy as np
import pytest

from nas.errors import ExhaustedError
from nas.searchers.scheduler import Fixed, Listed
from nas.searchers.searcher import RandomSearch
from nas.seeding import rng
from nas.space.loading import load
from nas.types import Trial

TOY = load("toy")


def test_fixed_gives_the_searchers_proposal_and_always_the_same_epochs():
    history = [Trial(0, (1, 1, 1), state="done")]
    wanted = RandomSearch().ask(TOY, history, rng(3))
    assert Fixed(RandomSearch(), 12).ask(TOY, history, rng(3)) == (wanted, 12)
    assert Fixed(RandomSearch()).ask(TOY, history, rng(3)) == (wanted, 0)


def test_listed_goes_round_by_round_and_ends():
    genotypes = ((0, 0, 0), (1, 1, 1), (2, 2, 2))
    scheduler, history = Listed(genotypes, epochs=5, repeats=2), []
    for number in range(6):
        genotype, epochs = scheduler.ask(TOY, history, np.random.default_rng(0))
        assert epochs == 5
        state = "failed" if number == 1 else "done"
        history.append(Trial(number, genotype, fidelity=epochs, state=state))
    assert [t.genotype for t in history] == [*genotypes, *genotypes]
    with pytest.raises(ExhaustedError, match="all 3 architectures were evaluated 2 times"):
        scheduler.ask(TOY, history, np.random.default_rng(0))
