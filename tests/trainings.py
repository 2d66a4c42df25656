"""Trainings and supernets' with their controls as keywords, and searches in float64."""

import torch

from nas.oneshot import path_training
from nas.training import train as trainings
from nas.training.train import Control, Evaluation


def train(network, task, recipe, *, seed, evaluate_on=None, evaluate_every=1, **settings):
    """As `nas.training.train.train`."""
    evaluation = None if evaluate_on is None else Evaluation(evaluate_on, evaluate_every)
    return trainings.train(network, task, recipe, seed=seed, evaluation=evaluation, **_divided(settings))


def train_shared(supernet, task, recipe, **settings):
    """As `nas.oneshot.path_training.train_shared`."""
    return path_training.train_shared(supernet, task, recipe, **_divided(settings))


def _divided(settings):
    names = Control.__dataclass_fields__.keys()
    control = Control(**{name: value for name, value in settings.items() if name in names})
    return {name: value for name, value in settings.items() if name not in names} | {"control": control}


def double(search, monkeypatch):
    """Lets a search by gradients compute in float64 throughout."""
    search.supernet.double()
    search.loop.batches, search.validation = Doubles(search.loop.batches), Doubles(search.validation)
    # The losses are taken of `logits.float()`, which would round what is differentiated.
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)


class Doubles:
    """Batches whose images are float64."""

    def __init__(self, batches):
        self.batches, self.size = batches, batches.size

    def at(self, step):
        x, targets = self.batches.at(step)
        return x.double(), targets
