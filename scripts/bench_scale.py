"""What a store takes for each ask, beat and tell of many workers on one study, and whether it keeps up.

python scripts/bench_scale.py --workers 1000 --trials 2000 --history 1000 [--storage postgresql+psycopg://...]

Trials last 5 to 15 minutes, which are not waited for; each call is a real one. One worker shows what calls
take at a length of the history. `store_busy` counts the database's part as if it did one thing at a time.
"""

import argparse
import json
import secrets
import tempfile
import time
from pathlib import Path

from nas import Fixed, RegularizedEvolution, Study, load
from nas.speed.rehearsal import Rehearsal
from nas.storage.run import open_storage
from nas.workers.claims import leased


def view(where: str, name: str, **how: object) -> Study:
    """The study as one process sees it."""
    storage = open_storage(where if "://" in where else Path(where))
    shared = {"claims": leased(storage)}
    return Study(load("nasbench201"), Fixed(RegularizedEvolution(), 1), storage, name=name, **(how or shared))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"workers": 1000, "trials": 2000, "history": 1000, "views": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--storage", help="URL of a database; a journal by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where, name = options.storage or f"{folder}/study.log", secrets.token_hex(8)
        before = view(where, name, announce=False)
        before.run(lambda _, rng: {"val_acc": float(rng.random())}, trials=options.history)
        start = time.perf_counter()
        views = [view(where, name) for _ in range(options.views)]
        opening_s = (time.perf_counter() - start) / options.views
        rehearsal = Rehearsal(views, options.workers, options.trials)
        rehearsal.run()
        numbers = {"workers": options.workers, "history": options.history, "opening_s": opening_s}
        store = "journal" if options.storage is None else where.partition("+")[0]
        print(json.dumps({"store": store, **numbers, **rehearsal.summary}), flush=True)


if __name__ == "__main__":
    main()
