"""Runs the quick start with several seeds, and trains what each delivers anew beside its rivals.

The rivals are the best of random search at equal cost and the default architecture; each has four trainings
of ten epochs, of seeds that the job has not used, and is compared with what was delivered on validation and
test images of the job: at the size of the search, and at that of the last network. A row a seed is added to
--out; what it holds is not repeated. --busy 2 lets two other programs compute all the while, and trains
nothing anew.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from bench_budget import reference_ms

import nas
from nas.data.task import Split
from nas.evaluate.significance import paired
from nas.evaluate.trained import Trained
from nas.training.evaluate import judged
from nas.training.recipe import preset

FRESH, EPOCHS = 4, 10
COMMAND = (
    "-m",
    "nas",
    "search",
    "--space",
    "darts",
    "--task",
    "digits",
    "--preset",
    "quick",
)
BUSY = "while True: sum(i * i for i in range(10**6))"


def trained(space: dict[str, object], genotype: tuple[int, ...], seed: int, data_seed: int) -> np.ndarray:
    """Which images of validation and test a fresh training at a size of the space gets right."""
    torch.set_num_threads(1)
    task, hits = nas.load_task("digits", seed=data_seed), []
    both = Split(torch.cat([task.val.x, task.test.x]), torch.cat([task.val.y, task.test.y]))

    def judge(_: nas.Trial, network: torch.nn.Module) -> None:
        hits.append(judged(network, task, both)[1].numpy())

    Trained(nas.load("darts", **space), task, preset("quick"), judge=judge)(
        nas.Trial(0, genotype, EPOCHS), np.random.default_rng(seed)
    )
    return hits[0]


def compared(genotypes: dict[str, tuple[int, ...]], space: dict[str, object], data_seed: int) -> dict:
    """What was delivered against its rivals, at one size of the space: points, their interval, p."""
    distinct = list(dict.fromkeys(genotypes.values()))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        keys = [(g, 1000 + s) for g in distinct for s in range(FRESH)]
        futures = {key: pool.submit(trained, space, *key, data_seed) for key in keys}
        hits = {g: np.stack([futures[g, 1000 + s].result() for s in range(FRESH)]) for g in distinct}
    noise = float(np.mean([h.mean(1).var(ddof=1) for h in hits.values()])) ** 0.5
    row: dict = {"fresh": {n: round(float(hits[g].mean()), 4) for n, g in genotypes.items()}}
    delivered = genotypes["delivered"]
    for name in genotypes.keys() - {"delivered"}:
        if genotypes[name] == delivered:
            row[f"against_{name}"] = "the same"
            continue
        found = paired(
            hits[delivered], hits[genotypes[name]], seed_sd=noise, seed_degrees=(FRESH - 1) * len(distinct)
        )
        row[f"against_{name}"] = [round(100 * v, 2) for v in (found.delta, found.low, found.high)] + [
            round(found.p, 4)
        ]
    return row


def rivals(folder: Path) -> dict:
    """Who found what was delivered, and how it does at the size of the search and at that of the result."""
    result, record = nas.load_result(folder), json.loads((folder / "baselines.json").read_text())
    run = json.loads((folder / "run.json").read_text())
    genotypes = {
        n: result.space.genotype(c) for n, c in record["choices"].items() if n in ("random", "default")
    }
    genotypes["delivered"] = result.genotype
    final, seed = dict(result.space.settings), run["config"]["seed"]
    return {
        "found_by": record["found_by"],
        "genotypes": genotypes,
        **compared(genotypes, {**final, **run["plan"]["size"]}, seed),
        "at_final_size": compared(genotypes, final, seed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/budget/quickstart.jsonl"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--method", default="auto")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    known = {r["seed"] for r in rows if (r["busy"], r["method"]) == (args.busy, args.method)}
    for seed in sorted(set(range(args.seeds)) - known):
        speed = {"reference_ms": reference_ms()}  # where nothing else runs
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(args.busy)]
        with tempfile.TemporaryDirectory() as folder:
            run, began = Path(folder) / "run", time.monotonic()
            try:
                own = ["--method", args.method, "--seed", str(seed), "--out", str(run)]
                command = [sys.executable, *COMMAND, *own]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            finally:
                for process in others:
                    process.kill()
            row = {"seed": seed, "busy": args.busy, "method": args.method}
            row |= {"seconds": round(time.monotonic() - began, 1)} | speed
            metrics = json.loads((run / "metrics.json").read_text())
            row |= {"test_acc": metrics["test_acc"], **({} if args.busy else rivals(run))}
        print(line := json.dumps(row), flush=True)
        with args.out.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
