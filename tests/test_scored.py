import pytest
from torch import nn

from nas.data.task import load_task
from nas.errors import ConfigError, TrialError
from nas.evaluate.proxies import PROXIES
from nas.evaluate.proxy_evaluator import FAILED, Scored
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
    scored = Scored(TOY, TASK, ["macs", "params"])
    counted = cost(TOY, (2, 2, 2), TASK.image_shape)
    assert scored((2, 2, 2)) == [counted.macs, counted.params]
    assert scored.scores((2, 2, 2)) == {"macs": counted.macs, "params": counted.params}


def test_every_proxy_can_be_asked_for_and_depends_on_the_architecture_alone():
    scored = Scored(TOY, TASK, list(PROXIES))
    first = scored((2, 2, 2))
    scored((1, 1, 1))
    assert Scored(TOY, TASK, list(PROXIES))((2, 2, 2)) == first
    assert len(first) == len(PROXIES)


def test_each_score_is_computed_once(monkeypatch):
    asked = []

    def counting(network, batch):
        asked.append(len(batch))
        return 1.5

    monkeypatch.setattr("nas.evaluate.proxy_evaluator.PROXIES", {"counting": counting})
    scored = Scored(TOY, TASK, ["counting"])
    assert [scored((2, 2, 2)), scored((2, 2, 2)), scored((1, 1, 1))] == [[1.5]] * 3
    assert asked == [64, 64]


def test_a_task_of_fewer_images_is_used_whole():
    small = TASK.subset(40 / len(TASK.train))
    assert len(Scored(TOY, small, ["params"]).batch) == 40


def test_an_unknown_proxy_names_the_nearest():
    with pytest.raises(ConfigError, match="no proxy 'parms'; did you mean 'params'"):
        Scored(TOY, TASK, ["parms"])


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
    assert scored.scores((0,)) == {"params": 640}
    with pytest.raises(TrialError, match="l2_norm cannot be computed for this architecture") as caught:
        scored.evaluate(Trial(0, (0,)), None)
    assert caught.value.reason == "proxy"
