"""Steps a second of small candidates: one after the other, and several at a time as workers train them.

python scripts/bench_population.py --set space=darts --set space_settings.width=4 --set trial.batch=64

The first rows train in this process, on all its threads, by each path; the first of all is the reference, one
operation after the other, on a GPU one launch at a time. The others train in processes of their own, on one
device, which share the cores. The last number is what `--workers auto` would take.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

from nas.evaluation.fidelity import scaled_space, scaled_task
from nas.files.tomlfile import override
from nas.job.config import make_config
from nas.job.job import Job
from nas.job.preparation import prepare
from nas.job.run_folder import begin
from nas.oneshot.fused import verdict
from nas.seeding import rng
from nas.training.recipe import compressed
from nas.training.train import train
from nas.workers.probe import Tried, probe
from nas.workers.slots import gpus_of
from nas.workers.start import crowd_of


def in_turn(job: Job, execution: str, *, candidates: int, epochs: int) -> float:
    """Steps a second of candidates that are trained one after the other; a first one warms up."""
    rung = job.plan.ladder.rungs[0]
    space, task = scaled_space(job.space, rung), scaled_task(job.search_task, rung)
    way = {"execution": execution, "graph": execution != "plain"}
    recipe = dataclasses.replace(compressed(job.plan.trial, epochs), **way)
    draw, begun, steps = rng(0, "population"), 0.0, 0
    for number in range(candidates + 1):
        if number == 1:
            begun = time.perf_counter()
        network = space.network(space.sample(draw)).to(task.train.x.device)
        train(network, task, recipe, seed=number)
        steps += epochs * (len(task.train) // min(recipe.batch, len(task.train))) * (number > 0)
    return steps / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=8, help="trained one after the other")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of processes")
    parser.add_argument("--at-a-time", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the job")
    options = parser.parse_args()
    config = make_config(override({"method": "random", "trials": 2}, options.set))
    with tempfile.TemporaryDirectory() as folder:
        job, notes = prepare(config, Path(folder))
        begin(Path(folder), config, job.plan, space=job.space, task=job.task, force=False)
        found: dict[str, object] = {"job": str(job.space.name), "machine": notes[0]}
        kernels = verdict.lacking(job.task.train.x.device) is None
        for execution in ("plain", "batched", *(["kernels"] if kernels else [])):
            rate = in_turn(job, execution, candidates=options.candidates, epochs=options.epochs)
            found[f"one after the other, {execution}"] = rate
        tried: dict[int, Tried] = {}
        with crowd_of(job, gpus_of(config.device)) as crowd:
            crowd.seconds = options.seconds
            for count in options.at_a_time:
                tried[count] = crowd(count)
                found[f"{count} at a time"] = tried[count].steps_per_s
            most = max(options.at_a_time)
            found["probe"] = probe(lambda count: tried.get(count) or crowd(count), most=most)
    json.dump(found, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
