"""Training: learning, exactness of resume, every setting's effect, and the errors."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from forwarded import by
from torch import nn
from trainings import train

from nas.data.task import Split, Task
from nas.errors import ConfigError, Stopped, TrialError
from nas.space.cell import Cell
from nas.training.checkpoint import Checkpoints
from nas.training.evaluate import evaluate
from nas.training.recipe import Recipe, learning_rate

PLAIN = Recipe(epochs=3, batch=8, lr=0.05, weight_decay=5e-4, crop=False, flip=False)
RICH = dataclasses.replace(
    PLAIN,
    warmup_epochs=0.5,
    label_smoothing=0.1,
    clip=1.0,
    drop_path=0.3,
    cutout=2,
    mixup=0.2,
    ema=0.9,
    crop=True,
    flip=True,
)


def split(count, *, seed, shape=(1, 6, 6), classes=4):
    """Bright dots on noise: the class is the quarter of the image in which the dot lies."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    x = torch.randint(0, 60, (count, *shape), generator=generator)
    half = shape[-1] // 2
    for image, label in zip(x, y.tolist(), strict=True):
        row, column = label // 2 * half, label % 2 * half
        image[:, row : row + 2, column : column + 2] += 190
    return Split(x.to(torch.uint8), y)


def make_task(*, train_images=44, val_images=32, pad=1, flip=False):
    return Task(
        name="dots",
        classes=("a", "b", "c", "d"),
        train=split(train_images, seed=1),
        val=split(val_images, seed=2),
        test=split(val_images, seed=3),
        mean=torch.tensor([0.2]),
        std=torch.tensor([0.25]),
        fingerprint=f"dots {train_images}",
        flip=flip,
        pad=pad,
    )


class Network(nn.Module):
    """A cell of two paths and a head: batch norm, drop-path and dropout all in use."""

    def __init__(self, width=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.cell = Cell(
            "normal", 1, 2, lambda src, dst: nn.Conv2d(width, width, 3, padding=1), preprocess=[nn.ReLU()]
        )
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width * 9, 4)

    def forward(self, x):
        x = F.avg_pool2d(self.cell(self.stem(x)).relu(), 2)
        return self.head(self.drop(x.flatten(1)))


class Fixed(nn.Module):
    """The same trainable logits for every image, in training mode with those of an auxiliary head."""

    def __init__(self, logits, auxiliary=None):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.auxiliary = None if auxiliary is None else nn.Parameter(torch.tensor(auxiliary))

    def forward(self, x):
        logits = self.logits.expand(len(x), -1)
        if self.auxiliary is None or not self.training:
            return logits
        return logits, self.auxiliary.expand(len(x), -1)


class Brightness(nn.Module):
    """Knows the answer: the logits are the mean brightness of the four quarters."""

    def forward(self, x):
        return 50 * F.adaptive_avg_pool2d(x, 2).flatten(1)


def make(factory=Network, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return factory()


def after(steps):
    """A `stop` that lets so many steps pass."""
    asked = iter(range(steps + 1))
    return lambda: next(asked) == steps


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def plainly(network, x, step):
    """A forward pass of one's own, after which statistics of batch-norm are left as they are."""
    return network(x)


def noting(seen, what):
    """Gradients of plain passes; appends something of the network and the images before each."""

    def forward(network, x, step):
        seen.append(what(network, x))
        return network(x)

    return by(forward)


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def timeless(curve):
    return dataclasses.replace(curve, seconds=())


def test_learns_and_reports_what_evaluate_finds():
    task, network = make_task(train_images=128), make()
    recipe = dataclasses.replace(PLAIN, epochs=8, batch=16)
    reports = []
    curve = train(network, task, recipe, seed=0, evaluate_on=task.val, on_epoch=reports.append)
    assert curve.val_score[-1] > 0.9
    assert (curve.val_loss[-1], curve.val_score[-1]) == evaluate(network, task, task.val)
    assert len(curve.train_loss) == len(curve.lr) == len(curve.seconds) == 8
    assert curve.train_loss[-1] < curve.train_loss[0]
    assert all(second > 0 for second in curve.seconds)
    assert [report.epoch for report in reports] == list(range(1, 9))
    assert [report.val_score for report in reports] == list(curve.val_score)
    assert curve.lr == tuple(learning_rate(recipe, 8 * epoch + 7, steps_per_epoch=8) for epoch in range(8))


RUNGS = dataclasses.replace(RICH, epochs=4, restarts=(1, 2))


@pytest.mark.parametrize(
    ("recipe", "every", "epochs"),
    [(PLAIN, 1, (1, 2, 3)), (PLAIN, 2, (2, 3)), (RUNGS, None, (1, 2, 4)), (RUNGS, 3, (1, 2, 3, 4))],
)
def test_evaluates_every_few_epochs_at_restarts_and_after_the_last(recipe, every, epochs):
    task = make_task()
    curve = train(make(), task, recipe, seed=0, evaluate_on=task.val, evaluate_every=every)
    assert curve.val_epochs == epochs
    assert len(curve.val_score) == len(curve.val_loss) == len(epochs)
    without = train(make(), task, recipe, seed=0)
    assert without.val_score == without.val_loss == ()
    assert without.train_loss == curve.train_loss


# -- going on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 5, 7, 15])
def test_a_resumed_training_equals_the_uninterrupted_one_bit_for_bit(tmp_path, steps):
    task, whole, first, second = make_task(), make(), make(), make(seed=9)
    expected = train(whole, task, RICH, seed=5, evaluate_on=task.val)
    settings = {"seed": 5, "evaluate_on": task.val, "checkpoints": Checkpoints(tmp_path)}
    if steps == 15:
        train(first, task, RICH, **settings)
    else:
        with pytest.raises(Stopped, match=f"after step {steps} of 15"):
            train(first, task, RICH, stop=after(steps), **settings)
    curve = train(second, task, RICH, **settings)
    assert timeless(curve) == timeless(expected)
    assert_same_state(state(second), state(whole))


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("recipe", {"recipe": dataclasses.replace(PLAIN, lr=0.06)}),
        ("seed", {"seed": 1}),
        ("network", {"width": 5}),
        ("data, split", {"images": 45}),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_whole(tmp_path, what, change):
    def attempt(*, recipe=PLAIN, seed=0, images=44, stop=None):
        task = make_task(train_images=images)
        train(network, task, recipe, seed=seed, checkpoints=Checkpoints(tmp_path), stop=stop)

    network = make()
    with pytest.raises(Stopped):
        attempt(stop=after(3))
    settings = dict(change)
    network = make(lambda: Network(settings.pop("width", 4)))
    before = state(network)
    with pytest.raises(ConfigError, match=f"another {what};"):
        attempt(**settings)
    assert_same_state(state(network), before)


# -- what a step learns from --------------------------------------------------------------------------


def test_every_epoch_sees_each_image_once_in_a_new_order_without_the_partial_batch():
    task, batches = make_task(train_images=20), []
    images = Split(torch.arange(20.0).view(20, 1, 1, 1), torch.zeros(20).long())
    task = dataclasses.replace(task, train=images, mean=torch.zeros(1), std=torch.ones(1))

    gradients = noting(batches, lambda _, x: x.flatten().tolist())
    train(Fixed([0.0] * 4), task, PLAIN, seed=0, gradients=gradients)
    epochs = [batches[2 * epoch] + batches[2 * epoch + 1] for epoch in range(3)]
    assert [len(batch) for batch in batches] == [8] * 6
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_mixup_mixes_images_and_labels():
    task = make_task(train_images=8)
    images = torch.tensor([0.0, 1.0]).repeat(4).view(8, 1, 1, 1)
    task = dataclasses.replace(
        task, train=Split(images, images.flatten().long()), mean=torch.zeros(1), std=torch.ones(1)
    )
    seen, start = [], torch.tensor([2.0, -1.0, 0.0, 0.0])

    def watch(network, x, step):
        seen.append(x)
        # Logits that depend on the mixed image: its loss then depends on how the labels were mixed.
        return network(x) * x.view(-1, 1)

    recipe = dataclasses.replace(PLAIN, epochs=1, mixup=5.0)
    curve = train(Fixed(start.tolist()), task, recipe, seed=3, gradients=by(watch))
    mixed = seen[0].flatten()
    levels = sorted({round(value, 5) for value in mixed.tolist()})
    assert set(levels) - {0.0, 1.0}
    # Image and label are mixed alike, so the mixed brightness is the soft label of class 1.
    soft = torch.stack([1 - mixed, mixed, mixed * 0, mixed * 0], dim=1)
    loss = F.cross_entropy(start * mixed[:, None], soft)
    assert curve.train_loss[0] == pytest.approx(loss.item(), rel=1e-5)


def test_the_auxiliary_loss_is_added_by_its_weight():
    task, logits, auxiliary = make_task(train_images=8), [2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 3.0]
    losses = [F.cross_entropy(torch.tensor(row).expand(8, -1), task.train.y) for row in (logits, auxiliary)]
    for weight in (0.4, 0.0):
        network = Fixed(logits, auxiliary)
        curve = train(network, task, dataclasses.replace(PLAIN, epochs=1, auxiliary=weight), seed=0)
        assert curve.train_loss[0] == pytest.approx((losses[0] + weight * losses[1]).item())
        assert torch.equal(network.auxiliary, torch.tensor(auxiliary)) == (weight == 0)


# -- how the weights move -----------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.2, 0.99])
def test_the_final_network_holds_the_average_of_the_weights(decay):
    task, raw, averaged, history = make_task(), make(), make(), []
    train(raw, task, PLAIN, seed=0, gradients=noting(history, lambda n, x: state(n)))
    train(averaged, task, dataclasses.replace(PLAIN, ema=decay), seed=0, gradients=by(plainly))
    # The first step's batch norm has not run when `forward` is called, so history[s] follows step s - 1.
    expected = history[0]
    for step, now in enumerate([*history[1:], state(raw)]):
        d = min(decay, (1 + step) / (10 + step))
        for name, value in now.items():
            real = value.is_floating_point()
            expected[name] = d * expected[name] + (1 - d) * value if real else value
    for name, value in averaged.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-5), name
    assert not torch.allclose(averaged.head.weight, raw.head.weight, atol=1e-5)


def test_drop_path_grows_by_epoch_and_ends_at_zero():
    network, seen = make(), []
    recipe = dataclasses.replace(PLAIN, drop_path=0.3)
    gradients = noting(seen, lambda n, x: float(n.cell.drop_path))
    train(network, make_task(), recipe, seed=0, gradients=gradients)
    assert seen == pytest.approx([0.0] * 5 + [0.1] * 5 + [0.2] * 5)
    assert network.cell.drop_path == 0.0


# -- what goes wrong ----------------------------------------------------------------------------------


def poisoned(network, x, step):
    return network(x) * (math.nan if step == 14 else 1.0)


@pytest.mark.parametrize(
    ("words", "forward", "lr"),
    [
        (r"not finite at step 5, epoch 1, lr .*; lower the learning rate", plainly, 1e30),
        ("at step 15, epoch 3", poisoned, 0.05),
    ],
)
def test_a_training_that_diverges_says_where(words, forward, lr):
    with pytest.raises(TrialError, match=words) as error:
        train(make(), make_task(), dataclasses.replace(PLAIN, lr=lr), seed=0, gradients=by(forward))
    assert error.value.reason == "nan"


def test_a_network_that_cannot_be_trained_so_is_refused():
    with pytest.raises(TrialError, match="no trainable parameter"):
        train(make().requires_grad_(requires_grad=False), make_task(), PLAIN, seed=0)
    with pytest.raises(TrialError, match=r"outputs \(8, 3\), wanted \(8, 4\)"):
        train(Fixed([0.0] * 3), make_task(), PLAIN, seed=0)
    for name, words in (
        ("auxiliary", "auxiliary is 0.4, but Fixed has no"),
        ("drop_path", "Fixed has no Cell"),
    ):
        with pytest.raises(ConfigError, match=words):
            train(Fixed([0.0] * 4), make_task(), dataclasses.replace(PLAIN, **{name: 0.4}), seed=0)


# -- evaluation ---------------------------------------------------------------------------------------


def test_evaluate_knows_loss_and_accuracy_of_known_networks():
    task = make_task(val_images=33)
    assert evaluate(Brightness(), task, task.val, batch=10)[1] == 1.0
    loss, accuracy = evaluate(Fixed([0.0, 0.0, 1.0, 0.0]), task, task.val, batch=10)
    assert accuracy == pytest.approx(8 / 33)
    assert loss == pytest.approx(math.log(3 + math.e) - 8 / 33)
