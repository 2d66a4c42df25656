"""A proxy of your own: a score of an untrained network, larger is better; here a whole search by it."""

from collections.abc import Mapping

import numpy as np
import torch
from optuna.storages import InMemoryStorage
from torch import nn

import nas
from nas.evaluate.proxies import Batch, draw_batch


def spread(network: nn.Module, batch: Batch) -> float:
    """How differently the network answers to different images."""
    with torch.no_grad():
        return float(network(batch.x).std(0).mean())


if __name__ == "__main__":
    space, batch = nas.load("toy"), draw_batch(nas.load_task("digits"), 64)

    def evaluate(trial: nas.Trial, rng: np.random.Generator) -> Mapping[str, float]:
        torch.manual_seed(int(rng.integers(2**31)))
        return {"spread": spread(space.network(trial.genotype), batch)}

    goals, searcher = nas.parse_goals(["spread"]), nas.Fixed(nas.RandomSearch())
    study = nas.Study(space, searcher, InMemoryStorage(), name="proxy", goals=goals, announce=False)
    study.run(evaluate, trials=20)
    print("best of 20 by spread", space.choices(study.best()[0].genotype))
