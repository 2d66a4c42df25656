"""The tournament: methods at equal seconds on one core; what each chose is trained anew beside its rivals.

python scripts/bench_default.py --cifar FILE.npz --method random --method auto --seeds 0-9

Two searches run at a time, a core and a thread each. What a search chose is trained three times (in the
darts space, where that takes longest, twice) with seeds that no search has used, as are the default
architecture and the other methods' choices, and tested on all test images. A row a search, and one for each
architecture that was trained anew, is added to --out; what it holds is not repeated. --table tells the
comparison of the rows that there are.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from scipy import stats
from torch import nn

import nas
from nas.data import datasets
from nas.results.run_record import DEFAULT, SEARCH
from nas.run.black_box import search_by_trials
from nas.run.budget import SHARED, Steps, applied, divided, search_s
from nas.run.comparison import rerank
from nas.run.final_network import default_of
from nas.run.job import Job
from nas.run.preparation import prepare
from nas.run.resolved_config import UNBOUNDED
from nas.run.step_timing import search_pace
from nas.run.supernet_phase import search_by_gradients, shared_weights
from nas.searchers.auto import Auto
from nas.searchers.method_names import DIFFERENTIABLE
from nas.searchers.searcher import RandomSearch
from nas.space.ops import candidates
from nas.training.evaluate import judged
from nas.training.recipe import preset

METHODS = ("random", "auto", "evolution", "guided", "tpe", "is-darts", "spos")
FIRST = 1000
"""The first seed of fresh trainings."""
BLOCK = ("sep_conv_3x3", "nor_conv_3x3", "nor_conv_1x1", "skip_connect")


def macro(width: int = 8, classes: int = 10, in_channels: int = 1) -> nas.Space:
    """Six blocks of four options each, in three stages that halve the maps and double the channels."""

    def build(choose: nas.Chooser) -> nn.Module:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        ]
        for block in range(6):
            wide = width * 2 ** (block // 2)
            if block in (2, 4):
                layers += [nn.Conv2d(wide // 2, wide, 1, stride=2, bias=False), nn.BatchNorm2d(wide)]
            layers.append(choose.op(f"block{block}", candidates(BLOCK, wide, wide)))
        return nn.Sequential(
            *layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)
        )

    return nas.Space("macro", build, default={f"block{i}": "nor_conv_3x3" for i in range(6)})


@dataclass(frozen=True)
class Setting:
    """A space, images, how many of them and how large, minutes for a search; fresh trainings, and epochs."""

    space: str
    data: str
    images: int
    side: int
    minutes: float
    epochs: int
    size: dict[str, int]
    fresh: int = 3


SETTINGS = {
    "nasbench201, CIFAR": Setting("nasbench201", "cifar", 5000, 16, 6, 20, {"width": 8, "cells": 1}),
    "darts, Fashion-MNIST": Setting(
        "darts", "fashion_mnist", 5000, 28, 6, 10, {"width": 8, "cells": 5}, fresh=2
    ),
    "nasbench201, Fashion-MNIST": Setting(
        "nasbench201", "fashion_mnist", 2560, 14, 3, 20, {"width": 8, "cells": 1}
    ),
    "macro, Fashion-MNIST": Setting("macro", "fashion_mnist", 5000, 28, 4, 20, {"width": 8}),
}
WITHOUT = {
    "auto without mutants": {"_first": lambda self, space, number, rng: space.sample(rng)},  # noqa: ARG005
    "auto without a model": {"ask": lambda self, *known: RandomSearch().ask(*known)},  # noqa: ARG005
    "auto without costs": {"costs": lambda self, space, done, of: np.zeros(len(of))},  # noqa: ARG005
    "auto without shrinkage": {"ranked": lambda self, space, trials, rng: self.goals.ordered(trials)},  # noqa: ARG005
}
"""The method with a part of it off: what of `Auto` is replaced."""
FIRST_CHOICE = "auto without a verdict"
"""What its model ranks first, from the same searches."""


def task_of(setting: Setting, seed: int, cifar: Path | None) -> nas.Task:
    if setting.data == "cifar":
        found = np.load(cifar)
        x, y, x_test, y_test = (found[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    else:
        s = getattr(datasets, setting.data)()
        x, y, x_test, y_test = (np.array(a) for a in (s.x_train, s.y_train, s.x_test, s.y_test))
    chosen = np.random.default_rng(seed).permutation(len(x))[: setting.images]
    task = nas.task_from_arrays(x[chosen], y[chosen], x_test, y_test, name=setting.data, seed=seed)
    return task.resized(setting.side)


def space_of(setting: Setting, task: nas.Task) -> nas.Space:
    given = {**setting.size, "in_channels": task.image_shape[0], "classes": task.num_classes}
    return macro(**given) if setting.space == "macro" else nas.load(setting.space, given)


def searched(setting: Setting, method: str, seed: int, cifar: Path | None, folder: Path) -> dict:
    """What a search of so many seconds delivers: its first choice, of `auto` that of its fresh trainings."""
    task, seconds = task_of(setting, seed, cifar), 60 * setting.minutes
    space = space_of(setting, task)
    plain = {"seed": seed, "workers": 0, "baselines": False, "pictures": False, "export": False}

    def made(**settings: object) -> Job:
        named = {"space": space.name, "task": task.name, "method": method.split(maxsplit=1)[0]}
        given = {**named, "search_images": 0, **plain}
        return prepare(nas.make_config({**given, **settings}), folder, space=space, task=task)

    for name, part in WITHOUT.get(method, {}).items():
        setattr(Auto, name, part)
    many = {} if method in DIFFERENTIABLE else {"trials": UNBOUNDED}
    job, told = made(**many), {}
    default = default_of(job)
    if method.startswith("auto"):
        pace = search_pace(job, default)
        plan = divided(job, Steps(pace, pace, pace), seconds - job.clock.elapsed_s, places=1, last=0.0)
        if plan.has_no_search:
            chosen, trials, told = default, 0, {"words": "no time for a search"}
        else:
            job = applied(job, plan)
            job = replace(job, plan=replace(job.plan, trials=UNBOUNDED))  # the time ends the search
            found = search_by_trials(job, until_s=plan.seconds[SEARCH])
            trials = len(found.history)
            verdict = rerank(job, found.candidates, {DEFAULT: default}, until_s=seconds)
            chosen, told = verdict.best, {"words": "; ".join(verdict.statements)}
            told["first"] = found.candidates[0]
    else:
        if method in DIFFERENTIABLE:
            found = search_by_gradients(made(epochs=epochs(job, seconds)), until_s=1.1 * seconds)
        elif method == "spos":
            share = epochs(job, SHARED * seconds)
            found = search_by_trials(made(epochs=share, **many), until_s=seconds, shared=shared_weights)
        else:
            found = search_by_trials(job, until_s=seconds)
        # Random search knows no default architecture, which is a rival of its own.
        chosen = next(g for g in found.candidates if method != "random" or g != default)
        trials = len(found.history)
    seconds = round(job.clock.elapsed_s, 1)
    return {"seconds": seconds, "trials": trials, "chosen": chosen, "default": default} | told


def epochs(job: Job, seconds: float) -> int:
    """Of a supernet, as many as there is time for."""
    pace = search_pace(job, default_of(job))
    return max(1, int(seconds / search_s(job, Steps(pace, pace, pace), 0, 1)))


def trained_anew(setting: Setting, genotype: tuple[int, ...], data_seed: int, cifar: Path | None) -> dict:
    """Test errors of fresh trainings on all images of a search, training and validation."""
    task = task_of(setting, data_seed, cifar)
    hits: list[float] = []

    def judge(_: nas.Trial, network: nn.Module) -> None:
        hits.append(float(judged(network, task, task.test)[1].float().mean()))

    whole = replace(task, train=task.train_and_val())
    measure = nas.Trained(space_of(setting, task), whole, preset("quick"), judge=judge)
    for seed in range(FIRST, FIRST + setting.fresh):
        measure(nas.Trial(0, genotype, setting.epochs), np.random.default_rng(seed))
    return {"errors": [round(1 - hit, 4) for hit in hits]}


def one(job: list, cifar: Path | None) -> dict:
    torch.set_num_threads(1)
    kind, name, *rest = job
    with tempfile.TemporaryDirectory() as folder:
        if kind == "search":
            method, seed = rest
            return {"kind": kind, "setting": name, "method": method, "seed": seed} | searched(
                SETTINGS[name], method, seed, cifar, Path(folder)
            )
        genotype, seed = rest
        return {"kind": kind, "setting": name, "genotype": genotype, "seed": seed} | trained_anew(
            SETTINGS[name], tuple(genotype), seed, cifar
        )


def key(*parts: object) -> str:
    return json.dumps(parts)


def key_of(row: dict) -> str:
    return key(row["kind"], row["setting"], row.get("method") or row["genotype"], row["seed"])


def side_by_side(jobs: list, options: argparse.Namespace) -> None:
    """Does what has no row yet, one at a time on each core."""
    waiting = [job for job in jobs if json.dumps(job) not in {key_of(row) for row in rows_in(options.out)}]
    cores, running = sorted(os.sched_getaffinity(0)), {}
    own = ["--cifar", options.cifar] if options.cifar else []
    while waiting or running:
        for core in cores:
            if core not in running and waiting:
                command = [sys.executable, __file__, "--one", json.dumps(waiting.pop(0)), *own]
                pinned = ["taskset", "-c", str(core), *map(str, command)]
                running[core] = subprocess.Popen(pinned, stdout=subprocess.PIPE, text=True)
        for core, process in list(running.items()):
            if process.poll() is not None:
                line = process.communicate()[0].strip()
                del running[core]
                if process.returncode:
                    raise SystemExit(f"failed: {process.args}")
                print(line, flush=True)
                with options.out.open("a") as file:
                    file.write(line + "\n")
        time.sleep(0.2)


def rows_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


Errors = dict[tuple[str, int], dict[str, float]]
"""By setting and seed, the mean error of what each method chose, and of the default architecture."""


def errors_of(rows: list[dict]) -> Errors:
    fresh = {key(r["setting"], r["genotype"], r["seed"]): np.mean(r["errors"]) for r in rows if "errors" in r}
    found: Errors = defaultdict(dict)
    for row in (row for row in rows if row["kind"] == "search"):
        place = row["setting"], row["seed"]
        parts = {row["method"]: "chosen", DEFAULT: "default"}
        parts |= {FIRST_CHOICE: "first"} if row["method"] == "auto" else {}
        for method, genotype in ((name, row.get(part)) for name, part in parts.items()):
            if (error := fresh.get(key(place[0], genotype, place[1]))) is not None:
                found[place][method] = float(error)
    return found


def gains(errors: Errors, method: str, rival: str, setting: str = "") -> np.ndarray:
    """By how much of the rival's error a method's is lower, one for each setting and seed that has both."""
    both = [e for (name, _), e in errors.items() if method in e and rival in e and setting in ("", name)]
    return np.array([1 - e[method] / e[rival] for e in both])


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else np.nan
    return float(values.mean()), float(half)


def table(errors: Errors) -> None:
    """Each method against random search and the default architecture, by setting and over all."""
    methods = sorted({method for own in errors.values() for method in own})
    for setting in (*SETTINGS, ""):
        print(setting or "over all")
        for method, rival in itertools.product(methods, ("random", DEFAULT)):
            if method != rival and len(found := gains(errors, method, rival, setting)):
                mean, half = interval(found)
                own = [e[method] for (name, _), e in errors.items() if method in e and setting in ("", name)]
                p = "" if setting or len(found) < 2 else f", p {stats.ttest_1samp(found, 0).pvalue:.1g}"
                print(
                    f"  {method:26} {100 * np.mean(own):6.2f} % wrong; than {rival:8} "
                    f"{100 * mean:+6.2f} ± {100 * half:4.2f} % better (n {len(found)}{p})"
                )
    of_all = [own for own in errors.values() if set(own) >= {*METHODS, DEFAULT}]
    if of_all:
        ranks = np.mean([stats.rankdata([own[m] for m in (*METHODS, DEFAULT)]) for own in of_all], axis=0)
        named = sorted(zip(ranks, (*METHODS, DEFAULT), strict=True))
        print("mean rank:", ", ".join(f"{name} {rank:.2f}" for rank, name in named))


def draw(errors: Errors, path: Path) -> None:
    """How much lower than random search's the error of each method is, by setting and over all."""
    methods = [m for m in (*METHODS[1:], DEFAULT) if len(gains(errors, m, "random"))]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, method in enumerate(methods):
        for place, setting in enumerate((*SETTINGS, "")):
            if len(found := gains(errors, method, "random", setting)):
                mean, half = interval(found)
                at = place + 0.8 * (number + 0.5) / len(methods) - 0.4
                label = method if not place else None
                axes.errorbar(at, 100 * mean, 100 * half, fmt="o", ms=4, color=f"C{number}", label=label)
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set_xticks(range(len(SETTINGS) + 1), [*(s.replace(", ", "\n") for s in SETTINGS), "over all"])
    axes.set_ylabel("error lower than that of random search, %")
    axes.legend(ncols=4, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/default/rows.jsonl"))
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--method", action="append")
    parser.add_argument("--setting", action="append", choices=SETTINGS)
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.cifar)))
        return
    if not options.table:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        first, _, last = options.seeds.partition("-")
        seeds, settings = range(int(first), int(last or first) + 1), options.setting or list(SETTINGS)
        methods = options.method or METHODS
        side_by_side([["search", n, m, s] for s in seeds for n in settings for m in methods], options)
        own = (r for r in rows_in(options.out) if r["kind"] == "search")
        own = [r for r in own if r["setting"] in settings and r["seed"] in seeds and r["method"] in methods]
        again = [
            ["fresh", r["setting"], r[of], r["seed"]]
            for of in ("default", "chosen", "first")
            for r in own
            if of in r
        ]
        side_by_side([json.loads(text) for text in dict.fromkeys(map(json.dumps, again))], options)
    errors = errors_of(rows_in(options.out))
    table(errors)
    draw(errors, options.out.with_name("gain.png"))


if __name__ == "__main__":
    main()
