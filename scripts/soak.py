"""Kills workers and coordinators of a search at random moments, and looks whether anything is lost.

python scripts/soak.py --trials 150 --workers 4 --kills 100 --restarts 20

Trials take a second and write a checkpoint of their own. At the end each of them has been told once, none is
lost or doubled, no process is left, and no checkpoint has had two writers at a time.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

from nas import Fixed, RegularizedEvolution, Study, Trial, load
from nas.files.folder import alone_in
from nas.study.storage import open_storage
from nas.study.workers import Processes, Workers

STEPS = 10
"""Of a trial, each of which is saved."""


class Saving:
    """A trial of a second that goes on from the step that it was killed in."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def __call__(self, trial: Trial, rng: np.random.Generator) -> dict[str, float]:
        """Sleeps, step by step."""
        place = self.folder / f"trial-{trial.number}"
        with alone_in(place):
            writer, done = place / "writer", place / "done"
            others = writer.read_text() if writer.exists() else ""
            if others and Path(f"/proc/{others}").exists() and others != str(os.getpid()):
                (self.folder / "two-writers").touch()
            writer.write_text(str(os.getpid()))
            for step in range(int(done.read_text() or 0) if done.exists() else 0, STEPS):
                time.sleep(self.seconds / STEPS)
                (place / "new").write_text(str(step + 1))
                (place / "new").replace(done)
            writer.unlink()
        return {"val_acc": float(rng.random())}


def study_in(folder: Path) -> Study:
    searcher = Fixed(RegularizedEvolution(10, 3), 1)
    return Study(load("nasbench201"), searcher, open_storage(folder / "study.log"), name="soak", seed=1)


def coordinate(folder: Path, trials: int, count: int, seconds: float) -> None:
    processes = Processes()
    try:
        study_in(folder).run(
            Saving(folder, seconds),
            trials=trials,
            max_failures=trials + 1,  # a trial may lose its worker three times, and others after it
            workers=Workers(processes.slots(count), folder),
        )
    finally:
        processes.close()


def children(pid: int) -> list[int]:
    """The processes that work for a coordinator: loky's, by their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == pid and b"popen_loky" in command:
                found.append(int(entry.name))
    return found


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"trials": 150, "workers": 4, "kills": 100, "restarts": 20, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--coordinate", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.coordinate is not None:
        coordinate(options.coordinate, options.trials, options.workers, options.seconds)
        return
    draw, began, killed, restarts, seen = random.Random(options.seed), time.monotonic(), 0, 0, set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, "--coordinate", name, "--trials", str(options.trials)]
        command += ["--workers", str(options.workers), "--seconds", str(options.seconds)]
        while True:
            process = subprocess.Popen(command)
            until = time.monotonic() + draw.uniform(4, 10) if restarts < options.restarts else float("inf")
            while process.poll() is None and time.monotonic() < until:
                time.sleep(draw.uniform(0.2, 1.8))
                own = children(process.pid)
                seen |= {*own}
                if own and killed < options.kills:
                    kill(draw.choice(own))
                    killed += 1
            if process.poll() is None:
                seen |= {*children(process.pid)}
                kill(process.pid)
                process.wait()
                restarts += 1
            elif process.returncode == 0:
                break
            else:
                sys.exit(f"the coordinator ended with {process.returncode}")
        time.sleep(1.0)
        study = study_in(folder)
        recorded = Counter(study.optuna_study.trials[i].user_attrs["nas"]["number"] for i in range(
            len(study.optuna_study.trials)))  # fmt: skip
        row = {
            "seconds": round(time.monotonic() - began, 1),
            "killed": killed,
            "restarts": restarts,
            "done": sum(t.state == "done" for t in study.history),
            "failed": sum(t.state == "failed" for t in study.history),
            "told_once": sorted(recorded) == list(range(options.trials)) and {*recorded.values()} == {1},
            "two_writers": (folder / "two-writers").exists(),
            "left": [pid for pid in seen if Path(f"/proc/{pid}").exists()],
        }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
