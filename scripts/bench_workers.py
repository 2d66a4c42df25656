"""One search by 1, 2 and 4 workers: trials a second, the share of the store, and whether all adds up.

python scripts/bench_workers.py --trials 200 --seconds 1 [--storage postgresql+psycopg://nas@localhost/nas]

A trial sleeps, so that cores do not limit the workers. `--history N` begins with N trials that are done.
"""

import argparse
import json
import multiprocessing
import secrets
import tempfile
import time
from pathlib import Path

from nas import Fixed, RegularizedEvolution, Study, load
from nas.storage.run import open_storage
from nas.workers.claims import leased


def open_study(where: str, name: str, **how: object) -> Study:
    storage = open_storage(where if "://" in where else Path(where))
    searcher, shared = Fixed(RegularizedEvolution(), 1), {"claims": leased(storage)}
    return Study(load("nasbench201"), searcher, storage, name=name, seed=1, **(how or shared))


def work(where: str, name: str, trials: int, seconds: float, told: "multiprocessing.Queue") -> None:
    numbers, begun, ended = [], [], []

    def evaluate(trial: object, rng: object) -> dict[str, float]:
        begun.append(time.perf_counter())
        time.sleep(seconds)
        numbers.append(trial.number)
        ended.append(time.perf_counter())
        return {"val_acc": float(rng.random())}

    open_study(where, name).run(evaluate, trials=trials)
    told.put((numbers, ended[-1] - begun[0], sum(ended) - sum(begun)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--history", type=int, default=0)
    parser.add_argument("--storage", help="URL of a database; a journal by default")
    options, context = parser.parse_args(), multiprocessing.get_context("spawn")
    for count in options.workers:
        with tempfile.TemporaryDirectory() as folder:
            where, name = options.storage or f"{folder}/study.log", secrets.token_hex(8)
            told, most = context.Queue(), options.history + options.trials
            before = open_study(where, name, announce=False)
            before.run(lambda _, rng: {"val_acc": float(rng.random())}, trials=options.history)
            args = (where, name, most, options.seconds, told)
            processes = [context.Process(target=work, args=args) for _ in range(count)]
            for process in processes:
                process.start()
            parts = [told.get() for _ in processes]
            times, span = [n for part in parts for n in part[0]], sum(part[1] for part in parts)
            row = {
                "workers": count, "trials_per_s": sum(len(numbers) / s for numbers, s, *_ in parts),
                "store_ms_per_trial": 1e3 * (span - sum(p[2] for p in parts)) / options.trials,
                "store_share": 1 - sum(p[2] for p in parts) / span,
                "evaluated_twice": len(times) - len(set(times)),
                "beyond_the_budget": len(open_study(where, name).history) - most,
            }  # fmt: skip
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
