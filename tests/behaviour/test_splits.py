"""Nothing is learned from validation images before the last training, and from test images never.

Class k lights channel k of training images, channel 10 + k of validation and 20 + k of test images: who has
not trained on such images guesses.
"""

from dataclasses import replace

import pytest
import torch
from using import TINY

import nas

CLASSES = 10
SETTINGS = TINY | {"epochs": 8, "trials": 3, "search_images": 0, "baselines": True, "top_k": 2, "repeats": 1}
TRAINED = {"batch": 10, "lr": 0.1, "precision": "float32"}
GUESSED = 0.4
"""No share of guesses is as large, with so many classes."""


def _task(*, apart):
    y = torch.arange(40 * CLASSES) % CLASSES
    x = torch.zeros(len(y), 3 * CLASSES, 4, 4)
    x[torch.arange(len(y)), y] = torch.rand(len(y), 4, 4, generator=torch.Generator().manual_seed(0)) + 1
    task = nas.task_from_arrays(x, y)
    if not apart:
        return task
    val, test = (split.x.roll(by * CLASSES, 1) for by, split in ((1, task.val), (2, task.test)))
    return replace(task, val=replace(task.val, x=val), test=replace(task.test, x=test))


@pytest.mark.parametrize(
    "phase", [{"method": "random", "trial": TRAINED}, {"method": "spos", "supernet": TRAINED}]
)
@pytest.mark.parametrize("apart", [True, False])
def test_a_search_learns_from_no_validation_image_and_no_phase_from_a_test_image(tmp_path, phase, apart):
    settings = SETTINGS | phase | {"retrain": TRAINED | {"epochs": 8}}
    result = nas.search("toy", _task(apart=apart), phase["method"], out=tmp_path / "run", settings=settings)
    trials = [*result.history, *(trial for baseline in result.baselines.values() for trial in baseline)]
    found = [trial.metrics["val_acc"] for trial in trials]
    assert len(found) >= 3
    scores = [*found, result.metrics["test_acc"]]
    assert max(scores) < GUESSED if apart else min(scores) > 2 * GUESSED
