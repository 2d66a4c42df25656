"""Health: the eigenvalue against a dense Hessian, entropy and matching against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from smooth import RECIPE, make_task, smooth

from nas.oneshot import diagnostics
from nas.oneshot.bilevel import Bilevel
from nas.oneshot.darts_step import stepping
from nas.oneshot.diagnostics import Examiner, Health, dominant_eigenvalue, entropy, matching
from nas.oneshot.methods import Method
from nas.oneshot.relaxations import GumbelHard, Uniform
from nas.oneshot.supernet import Supernet
from nas.seeding import isolated


def make(*, steps=2, **parts):
    method = Method("test", RECIPE, **parts)
    with isolated(0, "test"):
        supernet = Supernet(smooth(), relaxation=method.relaxation).train()
    state = Bilevel.begun(supernet, make_task(), method, seed=0)
    for _ in range(steps):
        stepping(state)()
    return state


def dense_hessian(supernet, x, y):
    def loss(alphas):
        values = {"alphas.0": alphas}
        logits = torch.func.functional_call(supernet, values, (x,))
        return F.cross_entropy(logits, y)

    alphas = supernet.alphas[0].detach()
    return torch.autograd.functional.hessian(loss, alphas).view(alphas.numel(), alphas.numel())


def test_the_eigenvalue_is_that_of_the_dense_hessian():
    supernet = make().supernet.double()
    task = make_task()
    x, y = task.normalise(task.val.x[:16]).double(), task.val.y[:16]
    values = torch.linalg.eigvalsh(dense_hessian(supernet, x, y))
    wanted = values[values.abs().argmax()].item()
    loss = F.cross_entropy(supernet(x), y)
    found, direction = dominant_eigenvalue(loss, list(supernet.alphas), iterations=200)
    assert found == pytest.approx(wanted, rel=1e-4)
    # A second look from where the first one ended is there at once.
    again, _ = dominant_eigenvalue(
        F.cross_entropy(supernet(x), y), list(supernet.alphas), start=direction, iterations=1
    )
    assert again == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("eigenvalues", [(3.0, 1.0, -2.0), (-4.0, 1.0, 3.9), (0.0, 0.0, 0.0)])
def test_it_finds_the_largest_in_magnitude(eigenvalues):
    basis = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    p = torch.randn(3, dtype=torch.float64, requires_grad=True)
    found, _ = dominant_eigenvalue(0.5 * p @ matrix @ p, [p], iterations=200)
    assert found == pytest.approx(max(eigenvalues, key=abs), abs=1e-6)


def test_once_there_is_a_direction_short_epochs_take_few_iterations(monkeypatch):
    counts, real = [], diagnostics.dominant_eigenvalue

    def counted(*args, iterations, **options):
        counts.append(iterations)
        return real(*args, iterations=iterations, **options)

    monkeypatch.setattr(diagnostics, "dominant_eigenvalue", counted)
    loop, examiner = make(), Examiner()
    for steps in (2, 2, 30, 300):
        loop.loop.steps_per_epoch = steps
        examiner.eigenvalue(loop)
    assert counts == [10, 2, 5, 10]


def test_two_iterations_follow_the_eigenvalue_of_a_search():
    loop, examiner = make(steps=0), Examiner()
    for _ in range(6):
        stepping(loop)()
        followed = examiner.eigenvalue(loop)
    assert abs(followed) == pytest.approx(abs(Examiner(iterations=200).eigenvalue(loop)), rel=0.1)


def test_a_few_iterations_come_close():
    loop = make()
    task = loop.loop.task
    x, y = task.normalise(task.val.x[:16]), task.val.y[:16]
    loss = F.cross_entropy(loop.supernet(x), y)
    exact, _ = dominant_eigenvalue(loss, list(loop.supernet.alphas), iterations=200)
    loss = F.cross_entropy(loop.supernet(x), y)
    few, _ = dominant_eigenvalue(loss, list(loop.supernet.alphas), iterations=10)
    assert few == pytest.approx(exact, rel=0.02)


def test_what_does_not_depend_on_the_alphas_has_no_curvature():
    p = torch.randn(3, requires_grad=True)
    assert dominant_eigenvalue(torch.ones((), requires_grad=True) * 2, [p])[0] == 0
    assert dominant_eigenvalue(p.sum(), [p])[0] == 0


def test_entropy_is_relative_to_the_uniform_choice():
    assert entropy([torch.full((2, 4), 0.25), torch.full((1, 2), 0.5)]) == pytest.approx(1)
    assert entropy([torch.eye(3)]) == pytest.approx(0)
    row = torch.tensor([[0.5, 0.25, 0.25]])
    assert entropy([row]) == pytest.approx(1.5 * math.log(2) / math.log(3))
    assert entropy([2 * row]) == entropy([row])
    assert entropy([torch.ones(5, 1)]) == 0


def test_matching_is_one_where_both_splits_are_the_same():
    import dataclasses

    loop = make()
    same = dataclasses.replace(loop.loop.task, val=loop.loop.task.train)
    loop.loop.task = same
    assert matching(loop, 0) == pytest.approx(1, abs=1e-5)
    loop.loop.task = dataclasses.replace(same, val=dataclasses.replace(same.train, y=(same.train.y + 1) % 3))
    assert matching(loop, 0) < 0.9


def test_an_examination_changes_nothing():
    loop = make()
    before = {name: value.clone() for name, value in loop.supernet.state_dict().items()}
    modes = [m.training for m in loop.supernet.modules()]
    learned = [p for p in loop.supernet.parameters() if p.grad is not None]
    gradients = [p.grad.clone() for p in learned]
    assert gradients
    stream = torch.get_rng_state()
    examiner = Examiner()
    one = examiner.examine(loop, loop.supernet.genotype(), None, 0.5)
    assert all(torch.equal(before[name], value) for name, value in loop.supernet.state_dict().items())
    assert [m.training for m in loop.supernet.modules()] == modes
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(p.grad, before) for p, before in zip(learned, gradients, strict=True))
    twin = Examiner().examine(loop, loop.supernet.genotype(), None, 0.5)
    assert one == twin


def test_an_examination_says_what_it_should():
    loop = make()
    genotype = loop.supernet.genotype()
    other = tuple((o + 1) % 5 for o in genotype[:2]) + genotype[2:]
    found = Examiner().examine(loop, genotype, other, 0.7)
    assert found.changes == 2
    assert set(found.skip_shares) == {"cell"} and found.skip_share == found.skip_shares["cell"]
    assert 0.9 < found.entropy <= 1 and math.isfinite(found.eigenvalue) and -1 <= found.matching <= 1
    assert -0.3 <= found.gap <= 0.7


def test_without_learned_alphas_there_is_no_eigenvalue():
    loop = make(relaxation=Uniform(), order=0)
    assert math.isnan(Examiner().examine(loop, loop.supernet.genotype(), None, 0.5).eigenvalue)


def test_sampled_mixtures_are_examined_whole():
    loop = make(relaxation=GumbelHard())
    found = Examiner().examine(loop, loop.supernet.genotype(), None, 0.5)
    assert found.eigenvalue != 0 and math.isfinite(found.eigenvalue)
    assert math.isnan(found.gap)  # the whole mixture is never trained, so its accuracy says nothing


def test_the_entropy_is_that_of_what_is_preferred_and_not_of_what_is_run():
    """IS-DARTS always runs an even mixture, while its alphas, Fisher terms, tell the options apart."""
    loop = make(relaxation=Uniform(), order=0)
    with torch.no_grad():
        loop.supernet.alphas[0].copy_(torch.tensor([9.0, 0.0, 0.0, 0.0, 0.0]).expand(6, 5))
    assert Examiner().examine(loop, loop.supernet.genotype(), None, 0.5).entropy < 0.01


def test_the_eigenvalue_is_the_same_with_recomputed_cells():
    plain, again = make(), make(checkpointing=True)
    values = [Examiner().eigenvalue(loop, images=16) for loop in (plain, again)]
    assert values[1] == pytest.approx(values[0], rel=1e-4)


def test_health_of_nothing():
    assert Health().skip_share == 0.0
