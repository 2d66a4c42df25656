"""Small candidates trained one after the other, and several at a time as workers train them.

python scripts/bench_population.py --set space=darts --set space_settings.width=4 --set trial.batch=64

The first rows train in this process, on all its threads, by each path; the first of all is the reference, one
operation after the other, on a GPU one launch at a time. The others train in processes of their own, on one
device, which share the cores. Trials an hour: each with its start, its epochs and its validation, which at a
time are taken to gain as much as steps do. The probe is what `--workers auto` would take.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np

from nas.environment import environment
from nas.evaluation.fidelity import scaled_space, scaled_task
from nas.files.tomlfile import override
from nas.job.config import make_config
from nas.job.preparation import prepare
from nas.job.run_folder import begin
from nas.oneshot.fused import verdict
from nas.speed.floor import copy_bandwidth
from nas.speed.in_turn import bytes_of_candidates, in_turn
from nas.speed.workloads import noisy
from nas.workers.probe import probe
from nas.workers.slots import gpus_of
from nas.workers.start import crowd_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=8, help="trained one after the other")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of processes")
    parser.add_argument("--at-a-time", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--noise", type=int, help="so many images of 32x32 to train on, instead of a task's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the job")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.noise:
            np.savez(f"{folder}/noise.npz", **noisy(channels=3, side=32, images=options.noise))
            options.set.append(f"task=npz:{folder}/noise.npz")
        config = make_config(override({"method": "random", "trials": 2}, options.set))
        job, _ = prepare(config, Path(folder))
        begin(Path(folder), config, job.plan, space=job.space, task=job.task, force=False)
        rung, trial, device = job.plan.ladder.rungs[0], job.plan.trial, job.task.train.x.device
        drawn = scaled_space(job.space, rung), scaled_task(job.search_task, rung)
        bandwidth = copy_bandwidth(device)
        floor_s = bytes_of_candidates(*drawn, trial, candidates=options.candidates) / bandwidth
        paces = {}
        for execution in ("plain", "batched", *(["kernels"] if verdict.lacking(device) is None else [])):
            way = dataclasses.replace(trial, execution=execution, graph=execution != "plain")
            counts = {"candidates": options.candidates, "epochs": options.epochs}
            paces[execution] = in_turn(*drawn, way, **counts, trial_epochs=rung.epochs)
        with crowd_of(job, gpus_of(config.device)) as crowd:
            crowd.seconds = options.seconds
            tried = {count: crowd(count) for count in sorted({1, *options.at_a_time})}
            found = probe(lambda count: tried.get(count) or crowd(count), most=max(tried))
    own = [pace for name, pace in paces.items() if name != "plain"]
    alone = paces.get(config.execution) or min(own, key=lambda pace: pace.trial_s)
    rows = {name: pace.row(paces["plain"], floor_s=floor_s) for name, pace in paces.items()}
    for count, at_once in tried.items():
        many = alone.faster(at_once.steps_per_s / tried[1].steps_per_s)
        row = many.row(paces["plain"], floor_s=floor_s)
        rows[f"{count} at a time"] = row | {"steps_per_s": at_once.steps_per_s}
    name = f"{job.space.name}, trials of {rung.epochs} epochs, batch {trial.batch}"
    machine = environment(device) | {"copied_GB_per_s": bandwidth / 1e9}
    print(text := json.dumps({"machine": machine, name: {"paths": rows, "probe": found}}, indent=1))
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
