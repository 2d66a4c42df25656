"""The watch over the curvature: which moments it keeps, and what it forgets; the epochs that last."""

import torch

from nas.oneshot.diagnostics import Epoch, lasting
from nas.oneshot.early_stopping import Guards, Watch

GUARDS = Guards(window=0.1, delay=0.1, start=0.1)
"""Of ten epochs: three each."""


def moment(value):
    state = {"weights": [torch.full((2,), float(value))], "name": "x", "none": (None, 1)}
    return lambda: (value, 10 * value, state)


def test_an_alarm_gives_the_moment_some_epochs_before_and_forgets_the_rest():
    watch = Watch(GUARDS)
    assert all(watch.look(epoch, 10, 1.0, moment(epoch))[1] is None for epoch in range(1, 5))
    growth, (epoch, step, state) = watch.look(5, 10, 9.0, moment(5))
    assert growth.alarming and (epoch, step) == (2, 20) and state["weights"][0].tolist() == [2.0, 2.0]
    assert watch.state() == {"eigenvalues": [], "moments": {}}


def test_where_nobody_goes_back_growth_is_told_and_nothing_kept():
    watch = Watch(GUARDS)
    found = [watch.look(epoch, 10, value, None) for epoch, value in enumerate([1.0] * 4 + [9.0] * 2)]
    assert [growth.alarming for growth, _ in found] == [False] * 4 + [True] * 2
    assert all(moment is None for _, moment in found) and not watch.state()["moments"]


def test_only_the_moments_that_an_alarm_can_go_back_to_are_kept():
    watch = Watch(GUARDS)
    for epoch in range(1, 9):
        watch.look(epoch, 10, 1.0, moment(epoch))
    assert list(watch.state()["moments"]) == [6, 7, 8]


def test_a_moment_is_a_copy():
    watch, weights = Watch(GUARDS), torch.zeros(2)
    watch.look(1, 10, 1.0, lambda: (1, 10, {"weights": weights}))
    weights.add_(1)
    kept = watch.state()["moments"][1][2]["weights"]
    assert kept.tolist() == [0.0, 0.0] and kept.device.type == "cpu"


def test_restored_it_sees_the_same():
    one, two = Watch(GUARDS), Watch(GUARDS)
    for epoch in range(1, 5):
        one.look(epoch, 10, 1.0, moment(epoch))
    two.restore(one.state())
    assert two.look(5, 10, 9.0, moment(5))[0] == one.look(5, 10, 9.0, moment(5))[0]


def test_epochs_that_were_gone_back_on_do_not_last():
    def epoch(number, back=None):
        return Epoch(number, 9, (number,), (), 0.0, 0.0, 0.0, back=back)

    epochs = [epoch(1), epoch(2), epoch(3), epoch(4, back=2), epoch(3), epoch(4), epoch(5, back=3), epoch(9)]
    assert [id(e) for e in lasting(epochs)] == [id(epochs[i]) for i in (0, 1, 4, 7)]
