"""A rehearsal is a whole search: every trial is begun, kept alive and told, each by its own worker."""

import optuna

from nas import Fixed, RegularizedEvolution, Study, load
from nas.speed.rehearsal import Rehearsal
from nas.storage.journal import journal_storage
from nas.workers.claims import leased, owner_of


def test_all_trials_are_done_once_and_the_clock_is_the_simulated_one(tmp_path):
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def view():
        storage = journal_storage(tmp_path / "study.log")
        scheduler = Fixed(RegularizedEvolution(), 1)
        return Study(load("nasbench201"), scheduler, storage, name="s", claims=leased(storage))

    rehearsal = Rehearsal([view(), view()], workers=7, trials=20, shortest_s=100, longest_s=300, lease_s=40)
    rehearsal.run()
    study = view()
    assert [t.state for t in study.history] == ["done"] * 20
    owners = {owner_of(study.storage.get_trial(number))[0].worker for number in range(20)}
    assert len(owners) == 7
    assert max(len(t.beside) for t in study.history) == 6
    assert 20 / 7 * 100 < rehearsal.now < 20 / 7 * 300 + 900
    assert len(rehearsal.seconds["tell"]) == 20
    assert 20 * 9 < len(rehearsal.seconds["beat"]) < 20 * 30
    summary = rehearsal.summary
    assert 0 < summary["turn_busy"] < 1 and 0 <= summary["store_busy"] < 1
    assert summary["ask_ms"][0] <= summary["ask_ms"][1]
