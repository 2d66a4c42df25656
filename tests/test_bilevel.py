"""The bilevel search: gradients against finite differences, resumption to the bit, the published settings."""

import dataclasses

import numpy as np
import pytest
import torch

from nas.load import load
from nas.oneshot.bilevel import PUBLISHED, Bilevel, BilevelLoop
from nas.oneshot.supernet import Supernet
from nas.seeding import isolated
from nas.task import task_from_arrays

RECIPE = dataclasses.replace(PUBLISHED, epochs=2, batch=16)


@pytest.fixture
def task():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64, 8, 8), dtype=np.uint8)
    return task_from_arrays(x, np.arange(64) % 3, x[:12], np.arange(12) % 3, flip=False)


def make(task, order, *, dtype=torch.float32, **recipe):
    with isolated(0, "test"):
        space = load("nasbench201", width=4, cells=1, in_channels=1, classes=3)
        supernet = Supernet(space).to(dtype)
    return BilevelLoop(supernet, task, Bilevel(dataclasses.replace(RECIPE, **recipe), order), seed=3)


def to_double(loop):
    """Runs the images in float64 too."""
    task = loop.task
    double = dataclasses.replace(
        task, mean=task.mean.double(), std=task.std.double(), **{
            name: dataclasses.replace(split, x=split.x.double() / 255)
            for name, split in (("train", task.train), ("val", task.val), ("test", task.test))
        }
    )
    return double
