"""All that is asked of one GPU: the tests on it, then steps by each execution path, each in its own process.

python scripts/bench_gpu.py --out results/gpu

A row that is there is not run again, so that a table goes on where it was interrupted.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

SUPERNET, RETRAIN = "scripts/bench_supernet.py", "scripts/bench_retrain.py"
ROWS = {
    "tests": ("-m", "pytest", "tests/test_cuda.py"),
    "darts-64": (SUPERNET, "--size", "darts", "--batch", "64"),
    "darts-256": (SUPERNET, "--size", "darts", "--batch", "256"),
    "pcdarts": (SUPERNET, "--size", "darts", "--mode", "partial", "--batch", "256"),
    "sampled": (SUPERNET, "--size", "darts", "--mode", "sampled", "--batch", "64"),
    "second": (SUPERNET, "--size", "darts", "--mode", "second", "--batch", "64"),
    "nasbench201": (SUPERNET, "--size", "nasbench201"),
    "retrain": (RETRAIN, "--network", "DARTS_V2, 36 channels, 20 cells"),
}
"""The most important first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--limit", type=float, default=400, help="seconds of a row")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.rows:
        for precision in args.precision if "tests" not in name else [""]:
            stem = f"{name}-{precision}".rstrip("-")
            log, written = args.out / f"{stem}.log", args.out / f"{stem}.json"
            more = (
                ("--device", args.device, "--precision", precision, "--out", str(written))
                if precision
                else ()
            )
            if log.exists() and json.loads(log.read_text().splitlines()[-1])["status"] == 0:
                continue
            command, began = [sys.executable, *ROWS[name], *more], time.monotonic()
            with log.open("w") as file:
                how = {"stdout": file, "stderr": file, "timeout": args.limit}
                try:
                    status = subprocess.run(command, check=False, **how).returncode
                except subprocess.TimeoutExpired:
                    status = None
            row = {"command": command[1:], "status": status, "seconds": round(time.monotonic() - began, 1)}
            with log.open("a") as file:
                file.write(f"\n{json.dumps(row)}\n")
            print(stem, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
