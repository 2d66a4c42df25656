"""A searcher of your own: a function of the history, which holds every trial so far."""

from collections.abc import Sequence

import numpy as np
from optuna.storages import InMemoryStorage

import nas
from nas.searchers.searcher import unseen


class Climb:
    """Mutates the best architecture so far; `unseen` sees to it that none is tried twice."""

    def ask(self, space: nas.Space, history: Sequence[nas.Trial], rng: np.random.Generator) -> nas.Genotype:
        done = [trial for trial in history if trial.state == "done"]
        if not done:
            return space.sample(rng)
        best = max(done, key=lambda trial: trial.metrics["val_acc"])
        return unseen(space, history, rng, propose=lambda: space.mutate(best.genotype, rng))


if __name__ == "__main__":
    space, task = nas.load("toy"), nas.load_task("digits").reduced(400)
    nas.check_searcher(Climb(), space)
    study = nas.Study(space, nas.Fixed(Climb(), epochs=1), InMemoryStorage(), name="mine")
    study.run(nas.Trained(space, task, nas.Recipe(epochs=1, batch=32, lr=0.1, weight_decay=3e-4)), trials=5)
    print("best of 5", space.choices(study.best()[0].genotype))
