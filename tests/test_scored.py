"""Architectures scored by proxies: as features of a searcher, and as the metrics of a trial."""

import pytest
from torch import nn

from nas.data.loading import load_task
from nas.errors import TrialError
from nas.evaluate.proxies import FAILED, PROXIES, Scored
from nas.space.cost import cost
from nas.space.loading import load
from nas.space.space import Space
from nas.types import Trial

TASK = load_task("digits").reduced(128)
TOY = load("toy", width=4)


class Raises(nn.Module):
    def forward(self, x):
        raise RuntimeError("no forward")


def space(broken):
    def build(choose):
        body = choose.op("body", {"fine": lambda: nn.Linear(64, 10), "broken": broken})
        return nn.Sequential(nn.Flatten(), body)

    return Space("mixed", build)


def test_scores_come_in_the_order_asked_for():
    counted = cost(TOY, (2, 2, 2), TASK.image_shape)
    scored = Scored(TOY, TASK.subset(40 / len(TASK.train)), ["macs", "params"])
    assert scored((2, 2, 2)) == [counted.macs, counted.params]
    assert scored.evaluate(Trial(0, (2, 2, 2)), None) == {"macs": counted.macs, "params": counted.params}
    assert len(scored.batch) == 40, "a task of fewer images is used whole"


def test_every_proxy_can_be_asked_for_and_depends_on_the_architecture_alone():
    scored = Scored(TOY, TASK, list(PROXIES))
    first = scored((2, 2, 2))
    scored((1, 1, 1))
    assert Scored(TOY, TASK, list(PROXIES))((2, 2, 2)) == first == scored((2, 2, 2))
    assert len(first) == len(PROXIES)


@pytest.mark.parametrize("broken", [lambda: nn.Linear(63, 10), Raises])
def test_an_architecture_that_cannot_be_scored_ranks_last_and_fails_its_trial(broken):
    scored = Scored(space(broken), TASK, ["params", "grad_norm"])
    assert scored((1,)) == [FAILED, FAILED]
    assert min(scored((0,))) > FAILED
    with pytest.raises(TrialError):
        scored.evaluate(Trial(0, (1,)), None)


def test_one_failed_proxy_leaves_the_others():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(nn.Linear(64, 10).weight.detach())

        def forward(self, x):
            return x.flatten(1) @ self.weight.T

    one = Space("one", lambda choose: nn.Sequential(choose.op("body", {"pair": Pair})))
    scored = Scored(one, TASK, ["params", "l2_norm"])
    assert scored((0,)) == [640, FAILED]
    with pytest.raises(TrialError, match="l2_norm cannot be computed for this architecture") as caught:
        scored.evaluate(Trial(0, (0,)), None)
    assert caught.value.reason == "proxy"
