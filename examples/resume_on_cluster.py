"""A search by several workers that loses one and is stopped itself, and goes on as if nothing had been.

Everything runs on this machine here. On a cluster the folder is a shared one, `--executor ray://...`,
`dask://...` or `slurm:...` says where trials are evaluated, and it is the cluster that kills.

    python examples/resume_on_cluster.py [FOLDER]
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nas

TINY = "NAS_EXAMPLE_TINY" in os.environ  # as the tests run it
NAS = [sys.executable, "-m", "nas"]
SETTINGS = [
    *("--space", "toy", "--task", "digits", "--method", "evolution", "--no-baselines", "--top-k", "1"),
    *("--trials", "4" if TINY else "20", "--epochs", "2" if TINY else "15"),
    *("--set", f"retrain.epochs={1 if TINY else 30}"),
    *(["--no-export", "--set", "pictures=false"] if TINY else []),
    *("--workers", "1" if TINY else "2"),
]


def start(*words: str) -> subprocess.Popen:
    one_core = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*NAS, *words], env=one_core, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait(holds: Callable[[], bool], what: str, *, at_most_s: float = 120) -> None:
    end = time.monotonic() + at_most_s
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"gave up: {what}")
        time.sleep(0.05)


def ended(folder: Path) -> int:
    trials = nas.Study.read(folder, "search", nas.load("toy"))
    return sum(trial.state != "running" for trial in trials)


def workers_of(pid: int) -> list[int]:
    """The processes that evaluate the trials of a coordinator, which its threads begin."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    children = map(int, " ".join(lists).split())
    return [child for child in children if "loky.backend.popen" in Path(f"/proc/{child}/cmdline").read_text()]


def main(out: str = "results/example-cluster") -> nas.Result:
    folder = Path(out)
    job = ["search", *SETTINGS, "--out", out]

    coordinator = start(*job)
    wait(lambda: ended(folder) >= 1 or coordinator.poll() is not None, "no trial ended")
    print("the workers have done a trial")
    if workers := workers_of(coordinator.pid):
        os.kill(workers[0], signal.SIGKILL)
        print("a worker was killed, as by a machine that fails; its trial is begun again in another process")
    coordinator.send_signal(signal.SIGTERM)
    coordinator.wait()
    print(f"the coordinator was told to stop, as by a batch system; {ended(folder)} trials are done")

    again = start(*job)
    again.wait()
    result = nas.load_result(folder)
    numbers = [trial.number for trial in result.history]
    print(f"the same command went on: trials {numbers[0]} to {numbers[-1]}, none lost, none twice")
    print(f"test accuracy {result.metrics['test_acc']:.3f}")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
