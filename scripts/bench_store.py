"""What the store costs: milliseconds a trial for evaluations that take none, and the time to read them back.

python scripts/bench_store.py --space darts --trials 2000
python scripts/bench_store.py --storage postgresql+psycopg://nas@localhost/nas --trials 200
"""

import argparse
import json
import secrets
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nas import Fixed, RandomSearch, RegularizedEvolution, Study, Trial, load
from nas.storage.run import open_storage


def free(_: Trial, rng: np.random.Generator) -> dict[str, float]:
    """An evaluation that costs nothing."""
    return {"val_acc": float(rng.random())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="darts")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--storage", help="URL of a database; a journal by default")
    options = parser.parse_args()
    space = load(options.space)
    numbers = {"space": space.name, "decisions": len(space.decisions), "trials": options.trials}
    for name, searcher in {"random": RandomSearch(), "evolution": RegularizedEvolution()}.items():
        with tempfile.TemporaryDirectory() as folder:
            where, study_name = options.storage or Path(folder) / "study.log", secrets.token_hex(8)
            study = Study(space, Fixed(searcher), open_storage(where), name=study_name, announce=False)
            start = time.perf_counter()
            study.run(free, trials=options.trials)
            total_s = time.perf_counter() - start
            start = time.perf_counter()
            history = [(t.genotype, t.metrics) for t in study.history]
            again = Study(space, Fixed(searcher), open_storage(where), name=study_name, announce=False)
            replay_s = time.perf_counter() - start
            assert [(t.genotype, t.metrics) for t in again.history] == history
            # What proposing alone takes is no cost of the store.
            start = time.perf_counter()
            for number in range(0, options.trials, 50):
                searcher.ask(space, study.history[:number], np.random.default_rng(number))
            asking_s = (time.perf_counter() - start) * 50
        numbers[name] = {
            "ms_per_trial": 1e3 * total_s / options.trials,
            "ms_per_trial_of_the_store": 1e3 * (total_s - asking_s) / options.trials,
            "replay_s": replay_s,
        }
    json.dump(numbers, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
