"""Compares successive halving with training all of its random NAS-Bench-201 cells to the end, on digits.

All are also trained without a pause, by the ladder's schedule and by one plain cosine, to rank what halving
finds. Every promoted trial must have exactly the validation results of the unpaused training at its epoch.
"""

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
import torch

import nas
from nas.errors import ExhaustedError
from nas.evaluate.multi_fidelity import Laddered
from nas.searchers.fidelity import geometric
from nas.searchers.scheduler import SuccessiveHalving, epochs_granted, finalists
from nas.searchers.searcher import RandomSearch
from nas.seeding import derive, isolated
from nas.training.recipe import Recipe, preset, segmented
from nas.training.train import Curve, Evaluation, train


@dataclass(frozen=True)
class Few:  # noqa: D101 - random search that ends after `count` architectures
    count: int

    def ask(self, space, history, rng) -> tuple[int, ...]:  # noqa: ANN001, D102 - as in nas.searchers.Searcher
        if len(history) < self.count:
            return RandomSearch().ask(space, history, rng)
        raise ExhaustedError(f"all {self.count} architectures have been tried")


def unpaused(made: Laddered, recipe: Recipe, genotype: tuple[int, ...]) -> Curve:
    seed, val = made.seed_of(genotype), made.task.val
    with isolated(seed, "init"):
        network = made.space.network(genotype)
    return train(network, made.task, recipe, seed=derive(seed, 0), evaluation=Evaluation(val, None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=27)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    most = 9
    ladder, recipe = geometric(1, most), replace(preset("quick"), batch=16)
    space = nas.load("nasbench201", width=4, cells=1, in_channels=1)
    scheduler, storage = SuccessiveHalving(Few(args.cells), ladder), optuna.storages.InMemoryStorage()
    with tempfile.TemporaryDirectory() as folder:
        made = Laddered(space, nas.load_task("digits"), recipe, ladder, Path(folder))
        study = nas.Study(space, scheduler, storage, name="bench")
        study.run(made, trials=10**6)
    trials, cells = study.history, {t.genotype for t in study.history}
    table = {f"trials of {epochs} epochs": n for epochs, n in Counter(t.fidelity for t in trials).items()}
    table |= {"epochs": epochs_granted(trials, ladder.granted), "epochs of all": most * len(cells)}
    best = finalists(trials, study.goals)[0].genotype
    for name, epochs in {"rungs": [r.epochs for r in ladder.rungs], "cosine": [most]}.items():
        curves = {cell: unpaused(made, segmented(recipe, epochs), cell) for cell in cells}
        order = sorted((curve.val_score[-1] for curve in curves.values()), reverse=True)
        table |= {f"best by {name}": order[0], f"found by {name}": curves[best].val_score[-1]}
        table[f"rank by {name}"] = 1 + order.index(curves[best].val_score[-1])
        if name == "rungs":
            climbed = [(t.metrics, curves[t.genotype], ladder.rung(t.fidelity)) for t in trials]
            same = [(m["val_acc"], m["val_loss"]) == (c.val_score[r], c.val_loss[r]) for m, c, r in climbed]
            table |= {"trials equal to unpaused": sum(same), "trials": len(same)}
    print(text := json.dumps(table, indent=1))
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
