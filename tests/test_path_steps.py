"""Steps of single-path supernets: where kernels run them, one capture serves every architecture."""

import warnings

import pytest
import torch
from tape import Refusing, Tape
from torch import nn

pytest.importorskip("triton")

from kernels_by_torch import stand_in, tape_launches

from nas.cell import Cell
from nas.errors import ConfigError
from nas.oneshot import fewshot, path_steps
from nas.oneshot.fused import execution, trust
from nas.oneshot.sampling import SAMPLINGS, UniformSampling
from nas.oneshot.singlepath import Sharing, train_shared
from nas.oneshot.supernet import Supernet
from nas.ops import candidates
from nas.seeding import rng
from nas.space import Space
from nas.speed.workloads import noise
from nas.training import loop as training
from nas.training.checkpoint import Checkpoints
from nas.training.recipe import Recipe
from nas.training.resumable import Stopped

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a tape stands in for a GPU's graphs; with one, see test_cuda"
)
RECIPE = Recipe(epochs=1, batch=4, lr=0.05, weight_decay=1e-2, clip=5.0, crop=False)
STEPS = 5


def build(choose):
    options = {other: candidates([other, "nor_conv_1x1"], 4, 4) for other in ("none", "skip_connect")}
    cells = [Cell(c, 1, 1, lambda *_, c=c: choose.op(c, options[c])) for c in options]
    return nn.Sequential(nn.Conv2d(1, 4, 1), *cells, nn.Flatten(), nn.Linear(16, 10))


SPACE = Space("small", build)


@pytest.fixture(scope="module")
def task():
    return noise(channels=1, side=2, images=20, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def tried():
    """Which operations were found to run together."""
    return {}


@pytest.fixture
def under(monkeypatch, tried):
    """Makes a supernet whose training runs under a recorder, on a path."""
    stand_in(monkeypatch)
    monkeypatch.setattr(trust, "_TRIED", tried)

    def make(record, path="kernels", space=SPACE):
        monkeypatch.setattr(training, "recorder", lambda _: record)
        monkeypatch.setattr(execution, "resolve", lambda wanted, device, *__: path)
        if isinstance(record, Tape):
            make.launched = tape_launches(monkeypatch, record)
        torch.manual_seed(0)
        return Supernet(space).train()

    return make


def state(net):
    return [tensor.clone() for tensor in net.state_dict().values()]


def assert_equal(one, other):
    assert len(one) == len(other) > 0
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def trained(net, task, sampling="uniform", **more):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_shared(net, task, RECIPE, seed=1, sampling=SAMPLINGS[sampling](), **more)
    return net


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_one_capture_serves_every_architecture(under, task, sampling):
    """A step with several paths is one graph, too; what is replayed launches nothing from Python."""
    plain = trained(under(Refusing()), task, sampling)
    tape, counts = Tape(), []
    net = under(tape)
    trained(net, task, sampling, stop=lambda: counts.append(len(under.launched)) or False)
    assert (tape.captured, tape.replayed) == (1, STEPS - 2)
    assert counts[2] < counts[3] == counts[-1]
    assert_equal(state(plain), state(net))


def test_replays_are_of_what_was_captured_and_of_another_architecture():
    drawn = [SPACE.sample(rng(1, "path", step)) for step in range(STEPS)]
    assert set(drawn[3:]) > {drawn[1]}


def test_the_architectures_are_those_of_a_run_without_kernels(monkeypatch, under, task):
    """But for what rests since it reads nothing but zeros."""

    def connected(genotype):
        return 1, genotype[1]

    found = [under(None, path) for path in ("batched", "kernels")]
    for net in found:
        trained(net, task, within=connected)
    theirs = found[1].state_dict()
    for name, tensor in found[0].state_dict().items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_a_stopped_training_goes_on_to_the_bit(monkeypatch, under, task, tmp_path):
    """However many architectures are drawn ahead."""
    whole = trained(under(Tape()), task)
    monkeypatch.setattr(path_steps, "AHEAD", 2)
    asked = iter([False] * 3 + [True])
    with pytest.raises(Stopped):
        trained(under(Tape()), task, checkpoints=Checkpoints(tmp_path), stop=lambda: next(asked))
    tape = Tape()
    resumed = trained(under(tape), task, checkpoints=Checkpoints(tmp_path))
    assert tape.captured == 1
    assert_equal(state(whole), state(resumed))


def test_the_parts_of_a_split_supernet_are_captured_each(under, task):
    found = []
    for record in (Refusing(), Tape()):
        shared = fewshot.train(under(record), task, RECIPE, Sharing(splits=1), seed=0)
        found.append([tensor for net in shared.supernets.values() for tensor in state(net)])
    assert record.captured == 1 + len(shared.supernets) == 3
    assert_equal(*found)


def test_without_kernels_every_architecture_is_a_program_of_its_own(under, task):
    tape = Tape()
    trained(under(tape, "batched"), task)
    assert tape.captured == 0


def foreign(choose):
    """An operation without a rule leaves a cell to ask what is run."""
    options = {**candidates(["none", "nor_conv_1x1"], 4, 4), "own": nn.Softplus}
    cell = Cell("c", 1, 1, lambda i, j: choose.op(f"{i}->{j}", options))
    return nn.Sequential(nn.Conv2d(1, 4, 1), cell, nn.Flatten(), nn.Linear(16, 10))


def test_what_cannot_be_looked_up_is_trained_as_it_is_with_one_warning(under, task):
    space, tape = Space("foreign", foreign), Tape()
    plain = trained(under(None, space=space), task)
    net = under(tape, space=space)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train_shared(net, task, RECIPE, seed=1)
    assert ["without a CUDA graph: it cannot be captured" in str(w.message) for w in said] == [True]
    assert tape.captured == 0
    for a, b in zip(state(plain), state(net), strict=True):
        torch.testing.assert_close(a, b)


def test_a_sampling_of_changing_size_is_refused(under, task):
    drawn = []

    class Growing(UniformSampling):
        def paths(self, space, rng, image_shape):
            drawn.append(space.sample(rng))
            return drawn[: 1 + len(drawn) // 3]

    with pytest.raises(ConfigError, match="sampling: 2 architectures in step 1, but 1 in the first"):
        train_shared(under(Tape()), task, RECIPE, seed=1, sampling=Growing())
