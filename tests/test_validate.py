"""What `validate` reports is what is there, and what cannot be searched is refused before it is built."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import nas.evaluate.validate
from nas.data.loading import load_task
from nas.errors import SpaceError
from nas.evaluate.validate import Spread, validate
from nas.oneshot.supernet import Supernet
from nas.seeding import rng
from nas.space.cell import Cell
from nas.space.choosers import Chooser
from nas.space.cost import cost, count_params
from nas.space.loading import load
from nas.space.ops import candidates
from nas.space.space import Space

TASK = load_task("digits").reduced(200)
TOY = load("toy")


def conv():
    return nn.Conv2d(1, 1, 3, padding=1)


OPTIONS = {"id": nn.Identity, "conv": conv}


def single(options, *, tail=(nn.Flatten,), classes=10):
    """A space of one decision `a`, then a classifier of all 64 pixels."""
    return Space(
        "mine",
        lambda choose: nn.Sequential(
            conv(), choose.op("a", options), *(make() for make in tail), nn.Linear(64, classes)
        ),
    )


def wide(widths):
    def build(choose: Chooser) -> nn.Module:
        width = choose.value("width", widths)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    return Space("wide", build)


@pytest.fixture(autouse=True, scope="module")
def _short():
    """The networks show themselves for few steps: what they learn in them is not asked here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nas.evaluate.validate, "SHOWN", 5)
        yield


@pytest.fixture(scope="module")
def report():
    before = torch.random.get_rng_state()
    found = validate(TOY, TASK, samples=9)
    assert torch.equal(before, torch.random.get_rng_state()), "nothing leaks into the global stream"
    return found


def test_the_report_says_what_is_there(report):
    draw = rng(0, "validate")
    costs = [cost(TOY, TOY.sample(draw), TASK.image_shape) for _ in range(9)]
    params, macs, saved = (
        sorted(getattr(c, name) for c in costs) for name in ("params", "macs", "activation_bytes")
    )
    assert report.params == Spread(params[0], params[4], params[8])
    assert report.macs == Spread(macs[0], macs[4], macs[8])
    assert report.activation_bytes == Spread(saved[0], saved[4], saved[8])
    assert params[0] < params[8]
    assert (report.space, report.task, report.device) == ("toy", "digits", "cpu")
    assert (report.size.count, report.size.exact, report.decisions) == (27, True, TOY.decisions)
    assert report.supernet_params == count_params(Supernet(TOY).network)
    assert report.no_supernet == "" and report.warnings == ()
    assert report.batch == 64 and report.step_s > 0
    assert report.epoch_s == pytest.approx(report.step_s * (len(TASK.train) // 64))
    median = next(c for c in costs if c.macs == macs[4])
    assert report.step_bytes == 12 * median.params + 64 * median.activation_bytes


def test_the_same_seed_gives_the_same_findings(report):
    timeless = {"step_s": 0.0, "epoch_s": 0.0}
    torch.manual_seed(99)
    again, other = (replace(validate(TOY, TASK, samples=9, seed=seed), **timeless) for seed in (0, 1))
    assert replace(report, **timeless) == again != other


def test_values_have_no_supernet():
    report = validate(wide([8, 16]), TASK, samples=4)
    assert report.supernet_params is None
    assert "it asks for values, which cannot be mixed (width" in report.no_supernet
    assert report.params.most == 64 * 16 + 16 + 16 * 10 + 10


def isomorphic():
    options = candidates(["none", "nor_conv_1x1"], 1, 1)

    def build(choose: Chooser) -> nn.Module:
        cell = Cell("cell", 1, 3, lambda i, j: choose.op(f"{i}->{j}", options))
        return nn.Sequential(conv(), cell, nn.Flatten(), nn.Linear(64, 10))

    return Space("mine", build)


@pytest.fixture(scope="module")
def warnings_of_none():
    """Of a space with nothing to warn of."""
    return validate(SOFT, TASK, samples=2).warnings


LATE = {f"conv{k}": lambda: nn.Conv2d(1, 1, k, padding=k // 2) for k in (1, 3)}  # noqa: B023
SOFT = single(OPTIONS)


@pytest.mark.parametrize(
    ("space", "samples", "words"),
    [
        (SOFT, 3, "only 2 architectures"),
        (Space("lone", SOFT.build, lambda decisions, scores: (1,), count=1), 2, "a single architecture"),
        (isomorphic(), 40, "different graphs"),
        (single(LATE), 2, "does a lambda in a loop see only the last value"),
        (Space("soft", lambda c: nn.Sequential(SOFT.build(c), nn.Softmax(1))), 2, "leave the softmax out"),
    ],
)
def test_what_is_probably_not_meant_is_warned_of(space, samples, words, warnings_of_none):
    warnings = validate(space, TASK, samples=samples).warnings
    assert [words in text for text in warnings].count(True) == 1
    assert not any(words in text for text in warnings_of_none)


def grow():
    return nn.Sequential(nn.Upsample(scale_factor=10**5), nn.ReLU(), nn.AdaptiveAvgPool2d(8))


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (single({**OPTIONS, "huge": lambda: nn.Linear(10**6, 10**6)}), r"option 'huge': 1 T parameters"),
        (wide([8, 10**11]), r"at {'width': '100000000000'}: 7.5 T parameters"),
        (single({"grow": grow, "also": grow}), r"a training step of 4 images takes .* T bytes"),
        (replace(single(OPTIONS, classes=7), origin="own.py:make"), "take an argument 'classes'"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_it_is_built(space, words):
    with pytest.raises(SpaceError, match=words):
        validate(space, TASK, samples=8)


def test_the_batch_shrinks_to_the_memory(monkeypatch):
    monkeypatch.setattr(nas.evaluate.validate, "memory_bytes", lambda device: 1_200_000)
    report = validate(TOY, TASK, samples=9)
    assert report.batch == 32
    assert "more than 32 images" in report.warnings[-1]
