"""All that is asked of one GPU, as a table: every row by a process of its own, within a time limit.

python scripts/bench_gpu.py [--rows darts-64 retrain] [--within 560]

A row that was measured is there and not run again, so that a table goes on where it was interrupted; one that
crashed or ran out of time is. Plain is timed in the same process and in the same precision.
"""

import argparse
import signal
import sys
from pathlib import Path

from nas.speed.table import Row, fill

TRY = """import sys, torch
from nas.oneshot.fused.settling import settle
from nas.oneshot.fused.verdict import KINDS
found = settle(torch.device('cuda'), anew=True)
print(found)
sys.exit(found is None or not all(map(found.kernels, KINDS)))"""
KERNELS, TESTS = "--path plain --path 'kernels, graph'", "-m pytest tests/test"
GRAPHS = f"{KERNELS} --path 'batched, graph'"
SUPERNET, LARGE = (f"scripts/bench_supernet.py {paths} --size" for paths in (GRAPHS, KERNELS))
NETWORK = "DARTS_V2, 36 channels, 20 cells"
SMALL = "--noise 25000 --candidates 3 --at-a-time 2 4 8 --seconds 5 --set preset=nasbench201"
RIGHT = {"shows": "failed", "must": {"failed": 0, "passed": 1}}
ROWS = {
    "tried": Row("kernels right and faster, tried", f'-c "{TRY}"', **RIGHT, limit_s=400),
    "darts-64": Row("DARTS, 16 channels, 8 cells, batch 64", f"{SUPERNET} darts --batch 64",
                    must={"ms": 15, "peak_GiB": 3}, aim={"ms": 9}),
    "retrain": Row(f"training {NETWORK}, batch 96",
                   f"scripts/bench_retrain.py {GRAPHS} --network '{NETWORK}'", "images_per_s",
                   must={"images_per_s": 4000}, aim={"images_per_s": 8000}),
    "search": Row("a search of 50 epochs, computed from epochs", "scripts/bench_search.py", "minutes",
                  must={"minutes": 5}, aim={"minutes": 3}),
    "cuda": Row("tests on the GPU", f"{TESTS}_cuda.py", **RIGHT, limit_s=400),
    "darts-256": Row("DARTS, 16 channels, 8 cells, batch 256", f"{LARGE} darts --batch 256",
                     must={"ms": 45}, aim={"ms": 30}),
    "nasbench201": Row("NAS-Bench-201, 16 channels, 5 cells a stage, batch 64", f"{SUPERNET} nasbench201",
                       must={"ratio": 10}, aim={"ratio": 30}),
    "trials": Row("NAS-Bench-201, trials of 12 epochs",
                  f"scripts/bench_population.py {SMALL} --set space=nasbench201", "trials_per_hour",
                  must={"ratio": 6}, aim={"ratio": 12}, limit_s=400),
    "pcdarts": Row("PC-DARTS, batch 256", f"{SUPERNET} darts --mode partial --batch 256",
                   must={"ms": 40}, aim={"ms": 20}),
    "second": Row("DARTS of second order, batch 64", f"{SUPERNET} darts --mode second --batch 64",
                  must={"times_first": 4}, aim={"times_first": 3}),
    "sampled": Row("one sampled operation an edge, batch 64", f"{SUPERNET} darts --mode sampled --batch 64",
                   must={"ms": 5}, aim={"ms": 2.5}),
    "kernels": Row("tests of the kernels", f"{TESTS}_kernels.py -p xdist.plugin -n 4", **RIGHT, limit_s=400),
    "native": Row("tests of the kernels in CUDA C++", f"{TESTS}_native.py -p xdist.plugin -n 4", **RIGHT),
    "whole-search": Row("the search of 50 epochs as a whole", "scripts/bench_search.py --whole", "minutes",
                        must={"minutes": 5}, aim={"minutes": 3}, limit_s=560),
}  # fmt: skip
"""The most important first. The last one is run only where it is asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS][:-1])
    parser.add_argument("--again", action="store_true", help="run rows that are there, too")
    parser.add_argument("--within", type=float, default=float("inf"), help="seconds in which to end")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("results/speed/gpu"))
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    way = ("--device", args.device, "--precision", args.precision)
    more = dict.fromkeys(("bench_supernet", "bench_retrain", "bench_search"), way)
    kernels = ("--set", "execution=kernels") if args.device.startswith("cuda") else ()
    more["bench_population"] = ("--set", f"device={args.device}", *kernels)
    fill(ROWS, args.out, asked=args.rows, more=more, again=args.again, within_s=args.within)


if __name__ == "__main__":
    main()
