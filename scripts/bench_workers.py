"""Trials a second by 1, 2 and 4 processes of this machine, of trials that sleep, so that cores do not limit.

python scripts/bench_workers.py --trials 100 --seconds 1 [--storage postgresql+psycopg://nas@localhost/nas]
"""

import argparse
import json
import secrets
import tempfile
import time
from pathlib import Path

import numpy as np

from nas import Fixed, RegularizedEvolution, Study, Trial, load
from nas.study.storage import open_storage
from nas.study.workers import Processes, Workers


class Sleeping:
    """A trial that takes its time and computes nothing."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, _: Trial, rng: np.random.Generator) -> dict[str, float]:
        """Sleeps."""
        time.sleep(self.seconds)
        return {"val_acc": float(rng.random())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--storage", help="URL of a database; a journal by default")
    options = parser.parse_args()
    for count in options.workers:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            storage = open_storage(options.storage or folder / "study.log")
            searcher = Fixed(RegularizedEvolution(), 1)
            study = Study(load("nasbench201"), searcher, storage, name=secrets.token_hex(8), seed=1)
            processes = Processes()
            workers = Workers(processes.slots(count), folder)
            study.run(Sleeping(0.0), trials=count, workers=workers)  # the processes have begun
            began = time.perf_counter()
            workers = Workers(processes.slots(count), folder)
            study.run(Sleeping(options.seconds), trials=count + options.trials, workers=workers)
            span, spent = time.perf_counter() - began, options.trials * options.seconds
            processes.close()
            row = {
                "workers": count,
                "trials_per_s": options.trials / span,
                "overhead_ms": 1e3 * (span * count - spent) / options.trials,
                "numbers": sorted(t.number for t in study.history) == list(range(count + options.trials)),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
