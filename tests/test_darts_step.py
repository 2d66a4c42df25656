"""A step of a search: gradients against finite differences, what moves what, resumption to the bit."""

import dataclasses
import time
from collections import Counter

import pytest
import torch
from one_stage import one_stage
from smooth import RECIPE, make_task, smooth
from torch import nn

from nas.errors import ConfigError
from nas.oneshot import darts_step
from nas.oneshot.alpha_optimizer import Adam, ExponentiatedGradient
from nas.oneshot.bilevel import Bilevel
from nas.oneshot.darts_step import alpha_gradient, stepping, training_loss, validation_loss
from nas.oneshot.methods import Method
from nas.oneshot.oles import Freezing
from nas.oneshot.regularizers import BetaDecay, ExpectedCost, PullBack, ZeroOne
from nas.oneshot.relaxations import (
    AdversarialPerturbation,
    Dirichlet,
    GumbelHard,
    GumbelSoft,
    RandomPerturbation,
)
from nas.oneshot.stages import Whole
from nas.oneshot.supernet import Supernet, copied, kept
from nas.seeding import isolated
from nas.space.cell import Cell
from nas.space.cost import Seeing
from nas.space.loading import load
from nas.space.ops import Zero
from nas.space.space import Space
from nas.training.memory_estimate import peak_memory


def make(*, order=1, task=None, recipe=RECIPE, space=None, **parts):
    method = Method("test", weights=recipe, order=order, **parts)
    with isolated(0, "test"):
        supernet = Supernet(
            space or one_stage(classes=3),
            relaxation=method.relaxation,
            parts=method.staging.stages(4, 5)[0].parts,
            edge_norm=method.edge_norm,
        )
    return Steps(Bilevel.begun(supernet.train(), task or make_task(), method, seed=3))


class Steps:
    """What a search moves, and its steps."""

    def __init__(self, bilevel):
        self.bilevel, self.supernet, self.loop = bilevel, bilevel.supernet, bilevel.loop
        self.method, self.advance = bilevel.method, stepping(bilevel)
        self.state, self.restore = bilevel.state, bilevel.restore

    def batches(self):
        bilevel = self.bilevel
        return self.loop.begin(), bilevel.validation.at(self.loop.step)

    def alpha_gradient(self):
        return alpha_gradient(self.bilevel, *self.batches())

    def training_loss(self):
        return training_loss(self.bilevel, self.batches()[0])

    def validation_loss(self):
        return validation_loss(self.bilevel, self.batches()[1])


def three_stages():
    """Where feature maps outweigh the weights."""
    return load("nasbench201", width=4, cells=1, in_channels=1, classes=3)


def alphas(loop):
    return [alpha.detach().clone() for alpha in loop.supernet.architecture()]


def weights(loop):
    return {name: value.clone() for name, value in loop.supernet.network.state_dict().items()}


def equal(a, b):
    pairs = zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else zip(a, b, strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# -- the second order against finite differences --------------------------------------------------------


class Doubles:
    """Batches whose images are float64."""

    def __init__(self, batches):
        self.batches, self.size = batches, batches.size

    def at(self, step):
        x, targets = self.batches.at(step)
        return x.double(), targets


def exact(monkeypatch, *, order, steps):
    """A loop that computes in float64 throughout, after a few steps, so that momentum is not zero."""
    loop = make(order=order, space=smooth())
    loop.supernet.double()
    loop.loop.batches, loop.bilevel.validation = Doubles(loop.loop.batches), Doubles(loop.bilevel.validation)
    # The losses are taken of `logits.float()`, which would round what is differentiated here.
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    for _ in range(steps):
        loop.advance()
    return loop


def unrolled_loss(loop):
    """L_val(w - ξ (momentum · buffer + ∇w L_train(w, α) + decay · w), α), straight from the definition."""
    names, parameters = list(loop.loop.parameters), list(loop.loop.parameters.values())
    saved = [p.detach().clone() for p in parameters]
    gradient = torch.autograd.grad(loop.training_loss(), parameters)
    recipe, rate = loop.method.weights, loop.loop.lr
    buffers = [loop.loop.state()["momentum"].get(name, 0) for name in names]
    with torch.no_grad():
        for p, g, buffer in zip(parameters, gradient, buffers, strict=True):
            p.sub_(rate * (recipe.momentum * buffer + g + recipe.weight_decay * p))
        value = loop.validation_loss().item()
        for p, old in zip(parameters, saved, strict=True):
            p.copy_(old)
    return value


def numerical(loop, entries, *, h=1e-4):
    found = []
    for row, column in entries:
        sides = []
        for shift in (h, -2 * h):
            with torch.no_grad():
                loop.supernet.alphas[0][row, column] += shift
            sides.append(unrolled_loss(loop))
        with torch.no_grad():
            loop.supernet.alphas[0][row, column] += h
        found.append((sides[0] - sides[1]) / (2 * h))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("steps", [0, 3])
def test_the_second_order_is_the_derivative_of_the_unrolled_loss(monkeypatch, steps):
    loop = exact(monkeypatch, order=2, steps=steps)
    entries = [(0, 0), (1, 2), (3, 3), (5, 4), (2, 1), (4, 0)]
    rows, columns = zip(*entries, strict=True)
    wanted = numerical(loop, entries)
    second = loop.alpha_gradient()[0][rows, columns]
    loop.bilevel.method = dataclasses.replace(loop.method, order=1)
    first = loop.alpha_gradient()[0][rows, columns]
    torch.testing.assert_close(second, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().min().item())
    assert ((first - wanted).abs() > 1e-2 * wanted.abs()).sum() >= 4


def test_the_first_order_is_the_gradient_of_the_validation_loss(monkeypatch):
    loop = exact(monkeypatch, order=1, steps=2)
    gradient = loop.alpha_gradient()[0]
    for row, column in ((0, 1), (4, 3)):
        sides = []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                loop.supernet.alphas[0][row, column] += shift
            sides.append(loop.validation_loss().item())
        with torch.no_grad():
            loop.supernet.alphas[0][row, column] += 1e-5
        assert gradient[row, column].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5)


def test_the_second_order_leaves_weights_and_statistics_as_they_were():
    loop = make(order=2)
    for _ in range(2):
        loop.advance()
    before, momentum = weights(loop), loop.loop.state()["momentum"]
    momentum = {name: slot.clone() for name, slot in momentum.items()}
    gradients = [p.grad.clone() for p in loop.supernet.weights()]
    loop.alpha_gradient()
    assert equal(weights(loop), before)
    assert equal(loop.loop.state()["momentum"], momentum)
    assert equal([p.grad for p in loop.supernet.weights()], gradients)


def test_what_the_second_order_does_to_all_weights_is_a_few_calls():
    """On a GPU each call is a launch; by the tensor, those would be more than all others of a step."""
    loop = make(order=2, space=three_stages())
    for _ in range(2):
        loop.advance()
    calls = Counter()
    gradients = [torch.ones_like(p) for p in loop.loop.parameters.values()]
    with Seeing(lambda call, *_: calls.update([call._schema.name])), torch.no_grad():
        tensors = [*loop.supernet.network.parameters(), *loop.supernet.network.buffers()]
        with kept(tensors) as back:
            back()
        loop.loop.descent.direction(gradients, 0.1)
    kinds = {tensor.dtype for tensor in tensors}
    assert len(tensors) > 50
    assert calls["aten::_foreach_copy_"] == 3 * len(kinds)
    assert calls["aten::_foreach_add_"] == 2
    assert not {"aten::copy_", "aten::clone", "aten::add_"} & calls.keys()


def test_a_failure_in_the_second_order_leaves_the_weights_too(monkeypatch):
    loop = make(order=2)
    loop.advance()
    before = weights(loop)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(darts_step, "validation_loss", fail)
    with pytest.raises(KeyboardInterrupt):
        loop.alpha_gradient()
    assert equal(weights(loop), before)


@pytest.mark.parametrize("order", [1, 2])
def test_the_gradient_does_not_depend_on_how_often_it_is_asked(order):
    loop = make(order=order)
    loop.advance()
    assert equal(loop.alpha_gradient(), loop.alpha_gradient())


# -- what moves what ----------------------------------------------------------------------------------


def test_alphas_follow_the_validation_split_and_weights_the_training_split():
    one, other = make(), make(task=make_task(val_labels=1))
    assert one.training_loss() == other.training_loss()
    assert not equal(one.alpha_gradient(), other.alpha_gradient())


@pytest.mark.parametrize("order", [1, 2])
def test_a_step_moves_the_alphas_first_and_then_the_weights_under_the_new_ones(order):
    loop, twin = make(order=order), make(order=order)
    start, gradient = alphas(twin), twin.alpha_gradient()
    adam = torch.optim.Adam(twin.supernet.architecture(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    for alpha, g in zip(twin.supernet.architecture(), gradient, strict=True):
        alpha.grad = g
    adam.step()
    adam.zero_grad()
    twin.bilevel.moves_alphas = False
    twin.advance()
    loop.advance()
    assert equal(alphas(loop), alphas(twin)) and not equal(alphas(loop), start)
    assert equal(weights(loop), weights(twin))


def test_the_seconds_are_of_both_halves_of_a_step(monkeypatch):
    loop = make()
    monkeypatch.setattr(darts_step, "alpha_gradient", lambda *a: (time.sleep(0.2), alpha_gradient(*a))[1])
    loop.advance()
    assert loop.loop.seconds > 0.2


def test_what_the_pass_of_the_weights_leaves_on_the_alphas_is_not_used():
    loop, twin = make(), make()
    loop.advance()
    twin.advance()
    for alpha in twin.supernet.architecture():
        alpha.grad = torch.full_like(alpha, 7.0)
    loop.advance()
    twin.advance()
    assert equal(alphas(twin), alphas(loop))


@pytest.mark.parametrize("order", [1, 2])
def test_saved_and_restored_is_uninterrupted(order):
    whole = make(order=order)
    for _ in range(5):
        whole.advance()
    first, second = make(order=order), make(order=order)
    for _ in range(3):
        first.advance()
    second.restore(3, first.state())
    for _ in range(2):
        second.advance()
    assert equal(alphas(second), alphas(whole))
    assert equal(weights(second), weights(whole))


def test_alphas_without_influence_have_no_gradient():
    def build(choose):
        return nn.Sequential(
            Cell(
                "cell",
                1,
                2,
                lambda i, j: choose.op("x", {"none": lambda: Zero(1)}) if j == 2 else nn.Identity(),
            ),
            nn.Flatten(),
            nn.Linear(64, 3),
        )

    loop = make(space=Space("nothing", build))
    assert [gradient.tolist() for gradient in loop.alpha_gradient()] == [[[0.0]]]


# -- the second order against the exact unrolled gradient -------------------------------------------------


def test_the_second_order_is_the_exact_unrolled_gradient(monkeypatch):
    """Against reverse mode through the unrolled step: ∇α L_val(w - ξ (...∇w L_train(w, α)...), α)."""
    loop = exact(monkeypatch, order=2, steps=2)
    names, weights = list(loop.loop.parameters), list(loop.loop.parameters.values())
    buffers = [loop.loop.state()["momentum"][name] for name in names]
    found = loop.alpha_gradient()[0]
    recipe, rate = loop.method.weights, loop.loop.lr

    def unrolled(alpha):
        own = {"alphas.0": alpha}

        def at(parameters, batches, step):
            x, y, _ = batches.at(step)
            values = own | {f"network.{n}": p for n, p in zip(names, parameters, strict=True)}
            logits = torch.func.functional_call(loop.supernet, values, (x,))
            return torch.nn.functional.cross_entropy(logits, y)

        train = at(weights, loop.loop.batches, loop.loop.step)
        gradients = torch.autograd.grad(train, weights, create_graph=True)
        moved = [
            w - rate * (recipe.momentum * b + g + recipe.weight_decay * w)
            for w, g, b in zip(weights, gradients, buffers, strict=True)
        ]
        return at(moved, loop.bilevel.validation, loop.loop.step)

    alpha = loop.supernet.alphas[0].detach().clone().requires_grad_()
    (wanted,) = torch.autograd.grad(unrolled(alpha), alpha)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


def test_the_second_order_needs_the_memory_of_the_first_and_some_copies_of_the_weights():
    peaks = {}
    for order in (1, 2):
        loop = make(order=order, recipe=dataclasses.replace(RECIPE, batch=32), space=three_stages())
        loop.advance()
        with peak_memory(torch.device("cpu")) as peak:
            loop.alpha_gradient()
        peaks[order] = peak.bytes
    weights = sum(p.numel() * 4 for p in loop.supernet.weights())
    assert peaks[2] <= peaks[1] + 4 * weights + 20_000
    assert 4 * weights + 20_000 < 0.3 * peaks[1]


# -- parts ----------------------------------------------------------------------------------------------

PARTS = {
    "gumbel-hard": {"relaxation": GumbelHard()},
    "gumbel-soft": {"relaxation": GumbelSoft()},
    "dirichlet": {"relaxation": Dirichlet()},
    "partial": {"staging": Whole(2), "edge_norm": True},
    "random": {"perturbation": RandomPerturbation()},
    "adversarial": {"perturbation": AdversarialPerturbation(steps=2)},
    "beta": {"regularizers": (BetaDecay(),)},
    "exponentiated": {"update": ExponentiatedGradient(0.5)},
    "exponentiated-edges": {"update": ExponentiatedGradient(0.5), "edge_norm": True},
    "frozen": {"freezing": Freezing(steps=1, threshold=0.9)},
    "recomputed": {"checkpointing": True},
    "second-hard": {"relaxation": GumbelHard(), "order": 2},
    "second-exponentiated": {"update": ExponentiatedGradient(0.5), "order": 2},
    "dirichlet-perturbed": {"relaxation": Dirichlet(), "perturbation": RandomPerturbation()},
    "partial-dirichlet-recomputed": {
        "relaxation": Dirichlet(),
        "staging": Whole(2),
        "edge_norm": True,
        "perturbation": AdversarialPerturbation(steps=2),
        "regularizers": (PullBack(),),
        "checkpointing": True,
    },
}
each_part = pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)


@each_part
def test_every_part_saved_and_restored_is_uninterrupted(parts):
    whole = make(**parts)
    for _ in range(4):
        whole.advance()
    first, second = make(**parts), make(**parts)
    for _ in range(2):
        first.advance()
    second.restore(2, first.state())
    for _ in range(2):
        second.advance()
    assert equal(alphas(second), alphas(whole))
    assert equal(weights(second), weights(whole))


@each_part
def test_every_part_moves_alphas_and_weights(parts):
    loop = make(**parts)
    before, start = weights(loop), alphas(loop)
    for _ in range(2):
        loop.advance()
    assert not equal(alphas(loop), start)
    assert not equal(weights(loop), before)


def test_resting_alphas_stay_and_the_weights_move():
    loop = make()
    loop.bilevel.moves_alphas = False
    before, start = weights(loop), alphas(loop)
    loop.advance()
    assert equal(alphas(loop), start) and not equal(weights(loop), before)


def test_the_betas_move_with_the_alphas():
    loop = make(edge_norm=True)
    before = loop.supernet.betas.detach().clone()
    loop.advance()
    assert not torch.equal(loop.supernet.betas, before)


def test_a_regulariser_adds_its_own_gradient():
    plain, decayed = make(), make(regularizers=(BetaDecay(30.0),))
    plain.loop.step = decayed.loop.step = 4
    decayed.supernet.progress.fill_(0.25)
    theirs, ours = plain.alpha_gradient()[0], decayed.alpha_gradient()[0]
    rows = decayed.supernet.alphas[0].detach().softmax(-1)
    torch.testing.assert_close(ours - theirs, 30.0 * 0.25 * rows / len(rows), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("added", [ZeroOne(5.0), ExpectedCost((torch.arange(5.0).expand(6, 5),), 0.0, 1.0)])
def test_on_the_simplex_a_regulariser_moves_the_alphas_by_its_own_gradient(added):
    """Its gradient with respect to the alphas, times the rate, is what it adds to a move."""
    plain, other = (make(update=ExponentiatedGradient(0.1), regularizers=terms) for terms in ((), (added,)))
    for loop in (plain, other):
        with torch.no_grad():
            loop.supernet.alphas[0].copy_(torch.linspace(-1, 1, 30).view(6, 5).log_softmax(-1))
        loop.loop.step = 4
        loop.supernet.progress.fill_(0.25)
    start = other.supernet.alphas[0].detach().clone().requires_grad_()
    penalty = added([start], [start.softmax(-1)], other.supernet.progress)
    (wanted,) = torch.autograd.grad(penalty, start)
    plain.advance()
    other.advance()
    moved = alphas(other)[0] - alphas(plain)[0]
    shift = moved + 0.1 * wanted  # a shift of a whole row changes no mixture
    torch.testing.assert_close(shift, shift.mean(-1, keepdim=True).expand(6, 5), atol=1e-5, rtol=0)
    assert wanted.abs().max() > 1e-3


@pytest.mark.parametrize(
    "added", [BetaDecay(), PullBack(), ZeroOne()], ids=lambda added: type(added).__name__
)
@pytest.mark.parametrize("update", [Adam(), ExponentiatedGradient(0.1)], ids=lambda u: type(u).__name__)
def test_options_out_of_the_race_are_not_moved_by_a_regulariser(added, update):
    loop = make(regularizers=(added,), update=update)
    loop.supernet.keep([(1, 3)] * 6)
    loop.loop.step = 4
    loop.supernet.progress.fill_(0.25)
    gradient = loop.alpha_gradient()[0]
    assert gradient.isfinite().all() and (gradient[:, [1, 3]] != 0).all()
    if isinstance(update, Adam):
        assert (gradient[:, [0, 2, 4]] == 0).all()


def test_the_passes_of_which_a_difference_is_taken_are_in_float32_whatever_the_recipe_says():
    """It is smaller than what bfloat16 rounds off."""
    loop, halves = make(order=2, recipe=dataclasses.replace(RECIPE, precision="bfloat16")), []
    loop.supernet.network.register_forward_pre_hook(
        lambda *_: halves.append(torch.is_autocast_enabled("cpu"))
    )
    second = torch.cat([g.flatten() for g in loop.alpha_gradient()])
    assert halves == [True, True, False, False]
    wanted, first = (torch.cat([g.flatten() for g in make(order=o).alpha_gradient()]) for o in (2, 1))
    assert (second - wanted).norm() < 0.5 * (first - wanted).norm()


def test_going_back_to_before_an_operation_ever_moved_forgets_that_it_did():
    """One sampled operation at a time: most have not moved yet after the first step."""
    loop, twin = make(relaxation=GumbelHard()), make(relaxation=GumbelHard())
    loop.advance()
    step, state = loop.loop.step, copied(loop.state())
    for _ in range(6):
        loop.advance()
    loop.restore(step, state)
    for _ in range(5):
        twin.advance()
    while loop.loop.step < twin.loop.step:
        loop.advance()
    assert equal(weights(loop), weights(twin)) and equal(alphas(loop), alphas(twin))


def test_an_exponentiated_gradient_is_that_of_the_mixture(monkeypatch):
    """∂L/∂θ with each weight on its own: the chain rule through the softmax gives the alphas' gradient."""
    alphas_loop, points_loop = make(), make(update=ExponentiatedGradient(0.1))
    by_alpha, by_point = alphas_loop.alpha_gradient()[0], points_loop.alpha_gradient()[0]
    theta = alphas_loop.supernet.alphas[0].detach().softmax(-1)
    torch.testing.assert_close(theta * (by_point - (theta * by_point).sum(-1, keepdim=True)), by_alpha)


def test_recomputing_cells_changes_nothing_but_the_memory():
    recipe = dataclasses.replace(RECIPE, batch=32)
    plain, again = (make(recipe=recipe, space=three_stages(), checkpointing=c) for c in (False, True))
    for _ in range(3):
        plain.advance()
        again.advance()
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(again)[name], value, msg=name)
    torch.testing.assert_close(alphas(again), alphas(plain))
    peaks = []
    for loop in (plain, again):
        with peak_memory(torch.device("cpu")) as peak:
            loop.advance()
        peaks.append(peak.bytes)
    assert peaks[1] < 0.7 * peaks[0]


def test_weights_are_trained_under_the_perturbed_mixture():
    loop = make(perturbation=RandomPerturbation(0.3, 0.3))
    seen = []
    mix = loop.supernet.mix
    loop.supernet.mix = lambda x, mixture: (seen.append(mixture), mix(x, mixture))[1]
    loop.advance()
    validation, training = seen
    clean, moved = (torch.stack(list(mixture.values())) for mixture in (validation, training))
    torch.testing.assert_close(clean, torch.full_like(clean, 0.2), atol=2e-3, rtol=0)
    assert (moved - 0.2).abs().max() > 0.05 and not moved.requires_grad


def test_looking_for_the_worst_mixture_leaves_the_statistics_alone():
    one, many = (make(perturbation=AdversarialPerturbation(0.0, 0.0, steps)) for steps in (1, 5))
    one.advance()
    many.advance()
    buffers = [dict(loop.supernet.network.named_buffers()) for loop in (one, many)]
    for name, value in buffers[0].items():
        torch.testing.assert_close(value, buffers[1][name])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"order": 3}, "order is 3, but must be 0, 1 or 2"),
        ({"weights": dataclasses.replace(RECIPE, ema=0.9)}, "ema of the weights is 0.9, but a supernet"),
        ({"weights": dataclasses.replace(RECIPE, auxiliary=0.4)}, "auxiliary of the weights is 0.4"),
        ({"warmup": 1.0}, r"warmup is 1.0, but must be a share in \[0, 1\)"),
        ({"relaxation": GumbelHard(), "perturbation": RandomPerturbation()}, "runs one option at a time"),
        ({"relaxation": Dirichlet(), "update": ExponentiatedGradient()}, "must be Softmax, not Dirichlet"),
        ({"order": 0, "regularizers": (BetaDecay(),)}, "the alphas have no loss"),
        ({"order": 2, "freezing": Freezing()}, "freezing compares .* needs order 1"),
        ({"relaxation": GumbelHard(), "freezing": Freezing()}, "freezing compares .* runs all of them"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts, message):
    with pytest.raises(ConfigError, match=message):
        Method("test", **parts)


def test_the_defaults_are_darts_as_published():
    method = Method()
    recipe = method.weights
    assert (recipe.epochs, recipe.batch, recipe.lr, recipe.lr_min) == (50, 64, 0.025, 0.001)
    assert (recipe.momentum, recipe.nesterov, recipe.weight_decay, recipe.clip) == (0.9, False, 3e-4, 5.0)
    assert (method.update.lr, method.update.betas, method.update.weight_decay) == (3e-4, (0.5, 0.999), 1e-3)
    assert (method.order, method.warmup, method.guards) == (1, 0.0, None)
