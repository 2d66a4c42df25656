"""Health: the eigenvalue against a dense Hessian, entropy and matching against their definitions."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from smooth import RECIPE, make_task, smooth

from nas.oneshot.diagnostics import (
    Epoch,
    Examiner,
    dominant_eigenvalue,
    entropy,
    lasting,
    matching,
)
from nas.oneshot.methods import Method
from nas.oneshot.relaxations import GumbelHard
from nas.oneshot.search import Search, search


def make(*, steps=2, **parts):
    search = Search(smooth(), make_task(), Method("test", RECIPE, **parts), seed=0)
    for _ in range(steps):
        search.advance()
    return search


def dense_hessian(supernet, x, y):
    def loss(alphas):
        logits = torch.func.functional_call(supernet, {"alphas": alphas}, (x,))
        return F.cross_entropy(logits, y)

    alphas = supernet.alphas.detach()
    return torch.autograd.functional.hessian(loss, alphas).view(alphas.numel(), alphas.numel())


def test_the_eigenvalue_is_that_of_the_dense_hessian():
    supernet, task = make().supernet.double(), make_task()
    x, y = task.normalise(task.val.x[:16]).double(), task.val.y[:16]
    values = torch.linalg.eigvalsh(dense_hessian(supernet, x, y))
    wanted = values[values.abs().argmax()].item()

    def found(**options):
        return dominant_eigenvalue(F.cross_entropy(supernet(x), y), [supernet.alphas], **options)

    exact, direction = found(iterations=200)
    assert exact == pytest.approx(wanted, rel=1e-4)
    assert found(iterations=10)[0] == pytest.approx(wanted, rel=0.02)
    # A second look from where the first one ended is there at once.
    assert found(start=direction, iterations=1)[0] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("eigenvalues", [(3.0, 1.0, -2.0), (-4.0, 1.0, 3.9), (0.0, 0.0, 0.0)])
def test_it_finds_the_largest_in_magnitude(eigenvalues):
    basis = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    p = torch.randn(3, dtype=torch.float64, requires_grad=True)
    found, _ = dominant_eigenvalue(0.5 * p @ matrix @ p, [p], iterations=200)
    assert found == pytest.approx(max(eigenvalues, key=abs), abs=1e-6)
    assert dominant_eigenvalue(torch.ones((), requires_grad=True) * 2, [p])[0] == 0
    assert dominant_eigenvalue(p.sum(), [p])[0] == 0


def test_entropy_is_relative_to_the_uniform_choice():
    assert entropy(torch.tensor([[0.25] * 4, [0.25] * 4, [0.5, 0.5, 0, 0]]), [4, 4, 2]) == pytest.approx(1)
    assert entropy(torch.eye(3), [3] * 3) == pytest.approx(0)
    row = torch.tensor([[0.5, 0.25, 0.25]])
    assert entropy(row, [3]) == pytest.approx(1.5 * math.log(2) / math.log(3))
    assert entropy(2 * row, [3]) == entropy(row, [3])
    assert entropy(torch.ones(5, 1), [1] * 5) == 0


def test_matching_is_one_where_both_splits_are_the_same():
    search = make()
    same = search.loop.task = dataclasses.replace(search.task, val=search.task.train)
    assert matching(search, 0) == pytest.approx(1, abs=1e-5)
    other = dataclasses.replace(same.train, y=(same.train.y + 1) % 3)
    search.loop.task = dataclasses.replace(same, val=other)
    assert matching(search, 0) < 0.9


def test_an_examination_says_what_it_should_and_changes_nothing():
    search = make()
    supernet = search.supernet
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    modes = [m.training for m in supernet.modules()]
    learned = [p for p in supernet.parameters() if p.grad is not None]
    gradients, stream = [p.grad.clone() for p in learned], torch.get_rng_state()
    assert gradients
    genotype = supernet.genotype()
    other = tuple((o + 1) % 5 for o in genotype[:2]) + genotype[2:]
    found = Examiner().examine(search, genotype, other, 0.7)
    assert found == Examiner().examine(search, genotype, other, 0.7)
    assert all(torch.equal(before[name], value) for name, value in supernet.state_dict().items())
    assert [m.training for m in supernet.modules()] == modes
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(p.grad, own) for p, own in zip(learned, gradients, strict=True))
    assert found.changes == 2
    assert set(found.skip_shares) == {"cell"} and found.skip_share == found.skip_shares["cell"]
    assert 0.9 < found.entropy <= 1 and math.isfinite(found.eigenvalue) and -1 <= found.matching <= 1
    assert -0.3 <= found.gap <= 0.7


def test_epochs_that_were_gone_back_on_do_not_last():
    def epoch(number, back=None):
        return Epoch(number, 9, (number,), (), 0.0, 0.0, 0.0, back=back)

    epochs = [epoch(1), epoch(2), epoch(3), epoch(4, back=2), epoch(3), epoch(4), epoch(5, back=3), epoch(9)]
    assert [id(e) for e in lasting(epochs)] == [id(epochs[i]) for i in (0, 1, 4, 7)]


def test_the_curvature_of_sampled_paths_is_measured_in_every_fourth_epoch():
    """Since it differentiates all options twice, where a step runs one of each."""
    method = Method("test", dataclasses.replace(RECIPE, epochs=9), relaxation=GumbelHard())
    epochs = search(smooth(), make_task(), method, seed=0).epochs
    assert [epoch.epoch for epoch in epochs if math.isfinite(epoch.health.eigenvalue)] == [4, 8]
    assert all(math.isfinite(epoch.health.entropy) for epoch in epochs)
