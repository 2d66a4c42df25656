"""Selection by perturbation, on a planted supernet whose alphas prefer what it does not rely on."""

import numpy as np
import pytest
import torch
from torch import nn

from nas.data.loading import task_from_arrays
from nas.errors import ConfigError
from nas.oneshot.darts_pt import (
    ByPerturbation,
    connections,
    score_without,
    select,
    turns,
    validated,
    worth,
)
from nas.oneshot.relaxations import GumbelHard, Softmax
from nas.oneshot.supernet import Supernet
from nas.space.cell import Cell
from nas.space.choosers import Zero
from nas.space.space import Space

SETTINGS = ByPerturbation()
PLANTED = (1, 2, 1)


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return x * self.factor


def planted_space(project=None):
    """One cell of two nodes: on every edge one option carries the brightness, another works against it."""

    def build(choose):
        def edge(src, dst):
            name = f"{src}->{dst}"
            good = PLANTED[("0->1", "0->2", "1->2").index(name)]
            signal = 0.5 if name == "1->2" else 1.0
            factors = {o: signal if o == good else -0.4 for o in (1, 2)}
            options = {f"op{o}": (lambda f=f: Scale(f)) for o, f in factors.items()}
            return choose.op(name, {"none": lambda: Zero(1), **options})

        return nn.Sequential(Cell("cell", 1, 2, edge), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))

    return Space("planted", build, **({"project": project} if project else {}))


def bright_task():
    """Dark and bright images."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = np.clip(60 + 120 * y[:, None, None] + rng.normal(0, 2, (200, 6, 6)), 0, 255).astype(np.uint8)
    return task_from_arrays(x, y, x[:8], y[:8], flip=False)


def planted(project=None, relaxation=Softmax()):  # noqa: B008 - a frozen value
    """A supernet whose alphas prefer no connections, though it relies on those that carry the signal."""
    supernet = Supernet(planted_space(project), relaxation=relaxation).train()
    supernet.set_alphas(torch.tensor([[0.5, 0.0, 0.0]] * 3))
    retuned(supernet)
    return supernet


def retuned(supernet):
    """Sets the head so that a bright image needs 97 % of the signal there is now, as training between two
    selections would."""
    head, signals = supernet.network[-1], []
    handle = head.register_forward_hook(lambda _, args, __: signals.append(args[0].item()))
    with torch.no_grad():
        supernet.mix(torch.ones(1, 1, 6, 6), supernet.expected_mixture())
        handle.remove()
        head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        head.bias.copy_(0.97 * signals[0] * torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("seed", range(2))
def test_every_decision_is_fixed_to_the_option_that_the_supernet_relies_on(seed):
    supernet, task = planted(), bright_task()
    assert supernet.genotype() == (0, 0, 0)
    assert validated(supernet, supernet.expected_mixture(), task, task.val)[1] == 1.0
    for (decision,) in turns(supernet, seed, 3)[:3]:
        assert select(supernet, task, SETTINGS, decision) == PLANTED[decision]
        retuned(supernet)
    assert supernet.alive == [(o,) for o in PLANTED]
    assert supernet.genotype() == PLANTED


@pytest.mark.parametrize("relaxation", [Softmax(), GumbelHard()])
def test_the_option_that_the_supernet_relies_on_is_worth_most(relaxation):
    """Without it the loss rises most; where one runs at a time, with it alone the loss is lowest."""
    supernet, task = planted(relaxation=relaxation), bright_task()
    for decision, option in enumerate(PLANTED):
        assert int(np.argmax(worth(supernet, task, decision, (0, 1, 2)))) == option


def test_removing_the_carrier_of_the_signal_costs_accuracy_and_changes_nothing():
    supernet, task = planted(), bright_task()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    supernet.eval()
    assert [score_without(supernet, task, SETTINGS, 1, option) for option in (0, 1, 2)] == [1.0, 1.0, 0.5]
    assert score_without(supernet, task, SETTINGS, 1) == 0.5
    assert not supernet.training
    assert all(torch.equal(before[name], value) for name, value in supernet.state_dict().items())


def test_turns_are_random_by_the_seed_and_spread_over_the_epochs():
    supernet = planted()
    orders = {tuple(d for turn in turns(supernet, seed, 2) for d in turn) for seed in range(30)}
    assert len(orders) == 6 and all(sorted(o) == [0, 1, 2] for o in orders)
    assert turns(supernet, 4, 2) == turns(supernet, 4, 2)
    assert [len(turn) for turn in turns(supernet, 4, 2)] == [2, 1, 0]


def one_of_two(decisions, scores):
    """Of the two edges into the last node only the stronger stays."""
    genotype = [1 + int(row[1:].argmax()) for row in scores]
    weaker = min((1, 2), key=lambda i: scores[i].max())
    genotype[weaker] = 0
    return tuple(genotype)


def test_connections_compete_where_the_space_wants_it():
    """Of the signal 1 + 1 * 0.5 a head that needs 0.9 misses the first part, not the second."""
    supernet, task = planted(one_of_two), bright_task()
    supernet.keep([(o,) for o in PLANTED])
    with torch.no_grad():
        supernet.network[-1].bias.copy_(torch.tensor([0.9, -0.9]))
    assert supernet.space.nearest(connections(supernet, task, SETTINGS)) == (*PLANTED[:2], 0)
    free = planted()
    free.keep([(o,) for o in PLANTED])
    np.testing.assert_array_equal(connections(free, task, SETTINGS), free.space.one_hot(PLANTED))


@pytest.mark.parametrize("change", [{"tune": -1.0}, {"tune": float("inf")}, {"images": 1}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ConfigError, match="selection"):
        ByPerturbation(**change)
