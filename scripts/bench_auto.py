"""Each part of `auto` off, and its rivals, on the table of NAS-Bench-201 by short and noisy trainings.

NAS_BENCHMARKS=FOLDER python scripts/bench_auto.py

Trials are looked up: the validation accuracy after 12 epochs, to which the noise of a training of one's own
is added. What is delivered is reported by its test accuracy after 200 epochs, on CIFAR-10, CIFAR-100 and
ImageNet16-120. The verdict of fresh trainings is not part of it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from bench_default import WITHOUT, interval

from nas.evaluate.benchmarks import Benchmark, load_benchmark
from nas.searchers.auto import Auto
from nas.searchers.evolution import RegularizedEvolution
from nas.searchers.predictor_guided import Guided
from nas.searchers.searcher import DefaultFirst, RandomSearch, Searcher
from nas.types import Genotype, Trial

SETS = ("cifar10", "cifar100", "imagenet16")
EPOCHS = 12
RIVALS = {"random": RandomSearch, "evolution": RegularizedEvolution, "guided": Guided}


def delivered(table: Benchmark, method: str, trials: int, noise: float, seed: int) -> Genotype:
    """The first choice of a method after so many trials."""
    draw, luck = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    default = table.space.default_genotype
    searcher: Searcher
    if method in RIVALS:
        searcher = RIVALS[method]()
    else:
        own = type("Auto", (Auto,), dict(WITHOUT.get(method, {})))(default=default)
        searcher = DefaultFirst(own, default)
    history: list[Trial] = []
    for number in range(trials):
        genotype = searcher.ask(table.space, history, draw)
        found = table.metrics(genotype, EPOCHS)
        seen = {"val_acc": found["val_acc"] + noise * luck.standard_normal(), "macs": found["macs"]}
        history.append(Trial(number, genotype, EPOCHS, state="done", metrics=seen))
    if method in RIVALS:
        return max(history, key=lambda trial: trial.metrics["val_acc"]).genotype
    return own.ranked(table.space, history, draw)[0].genotype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--noise", type=float, default=0.01, help="standard deviation of an accuracy")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("results/default/parts.json"))
    options = parser.parse_args()
    methods = ("auto", *WITHOUT, *RIVALS)
    errors: dict[str, dict[str, list[float]]] = {method: {} for method in methods}
    for name in SETS:
        table = load_benchmark("nasbench201", dataset=name)
        for method in methods:
            given = method, options.trials, options.noise
            chosen = [delivered(table, *given, seed) for seed in range(options.seeds)]
            errors[method][name] = [table.metrics(genotype, EPOCHS)["test_err"] for genotype in chosen]
    settings = {"trials": options.trials, "noise": options.noise, "seeds": options.seeds}
    options.out.write_text(json.dumps({**settings, "errors": errors}) + "\n")
    every = {method: np.concatenate([*own.values()]) for method, own in errors.items()}
    for method, own in every.items():
        means = ", ".join(f"{name} {100 - 100 * np.mean(errors[method][name]):.2f}" for name in SETS)
        mean, half = interval(1 - every["auto"] / own)
        print(f"{method:24} {means}; error of auto lower by {100 * mean:+.2f} ± {100 * half:.2f} %")


if __name__ == "__main__":
    main()
