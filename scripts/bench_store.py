"""What the store costs: milliseconds a trial for evaluations that take none, and asks and tells by history.

python scripts/bench_store.py --space darts --history 2000
python scripts/bench_store.py --space nasbench201 --history 100 1000 10000 [--storage sqlite:///FILE]
"""

import argparse
import json
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nas import Fixed, RegularizedEvolution, Space, Study, Trial, load
from nas.study.storage import open_storage

CALLS = 40


def free(_: Trial, rng: np.random.Generator) -> dict[str, float]:
    """An evaluation that costs nothing."""
    return {"val_acc": float(rng.random())}


def timed(work: Callable[[], object]) -> tuple[object, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def measure(space: Space, where: Path | str, count: int) -> dict[str, float]:
    """With `count` trials in the history; what proposing takes is a part of an ask."""
    searcher, name = RegularizedEvolution(), secrets.token_hex(8)
    before = Study(space, Fixed(searcher), open_storage(where), name=name, announce=False)
    _, filling_s = timed(lambda: before.run(free, trials=count))
    after, opening_s = timed(lambda: Study(space, Fixed(searcher), open_storage(where), name=name))
    assert [(t.genotype, t.metrics) for t in after.history] == [
        (t.genotype, t.metrics) for t in before.history
    ]
    rng = np.random.default_rng(0)
    _, proposing_s = timed(lambda: [searcher.ask(space, before.history, rng) for _ in range(CALLS)])
    asking_s = telling_s = 0.0
    for _ in range(CALLS):
        trial, span = timed(after.ask)
        asking_s += span
        telling_s += timed(lambda: after.tell(trial, {"val_acc": 0.5}, 1.0))[1]  # noqa: B023 - called at once
    return {
        "history": count,
        "ms_per_trial": 1e3 * filling_s / count,
        "opening_s": opening_s,
        "asks_per_s": CALLS / asking_s,
        "tells_per_s": CALLS / telling_s,
        "proposing_ms": 1e3 * proposing_s / CALLS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="darts")
    parser.add_argument("--history", type=int, nargs="*", default=[2000])
    parser.add_argument("--storage", help="URL of a database; a journal by default")
    options = parser.parse_args()
    for count in options.history:
        with tempfile.TemporaryDirectory() as folder:
            where = options.storage or Path(folder) / "study.log"
            store = (
                "journal" if options.storage is None else options.storage.partition(":")[0].partition("+")[0]
            )
            print(json.dumps({"store": store, **measure(load(options.space), where, count)}), flush=True)


if __name__ == "__main__":
    main()
