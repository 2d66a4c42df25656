"""A search by several workers whose processes are killed, frozen and restarted at random moments.

`soak` runs one and checks what must hold whatever happens; as a program it does so for ten minutes.
"""

import argparse
import functools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import optuna
from killing import MODULES

from nas.registry import load
from nas.schedulers.scheduler import Fixed
from nas.searchers import RegularizedEvolution
from nas.seeding import rng
from nas.signals import StopRequest
from nas.storage.journal import journal_storage
from nas.study import Study
from nas.training.checkpoint import Checkpoints, saved_steps
from nas.training.resumable import Stopped
from nas.workers.claims import Leased
from nas.workers.coordinate import coordinate
from nas.workers.identity import Identity
from nas.workers.pool import Pool
from nas.workers.pulse import Pulse
from nas.workers.slots import make_slots
from nas.workers.turn import turn_of

SPACE = load("nasbench201")
PATIENCE_S = 300.0
GRACE_S = 20.0


# -- a search whose evaluations take time and nothing else ---------------------------------------------


def value(number, genotype):
    """What trial `number` is worth, however often it was begun."""
    stream = rng(1, "s", number, "evaluate")
    return sum(genotype) / 30 + 0.01 * stream.random()


def open_study(folder, *, lease_s, leads):
    storage = journal_storage(folder / "study.log")
    identity = Identity.of_this_process(leads=leads)

    def claims(study):
        turn = turn_of(storage, study._study_id)
        return Leased(
            storage, study._study_id, turn, identity, lease_s=lease_s, heir=leads, saved=partly_done(folder)
        )

    scheduler = Fixed(RegularizedEvolution(5, 3), epochs=1)
    return Study(SPACE, scheduler, storage, name="s", seed=1, claims=claims)


def partly_done(folder):
    return lambda frozen: saved_steps(folder / f"trial-{frozen.number}")


def stepping(study, folder, *, steps, step_s, stop):
    """An evaluator that sleeps in steps, saves itself after each, and goes on where it was."""

    def evaluate(trial, stream):
        checkpoints = Checkpoints(folder / f"trial-{trial.number}")
        saved = checkpoints.load()
        (folder / f"begun-{trial.number}").touch()
        for step in range(saved[0] if saved else 0, steps):
            study.claims.check()
            if stop():
                raise Stopped(f"saved after {step} steps")
            time.sleep(step_s)
            with (folder / f"steps-{trial.number}").open("a") as file:
                file.write(f"{step}\n")
            checkpoints.save(step + 1, {})
        return {"val_acc": sum(trial.genotype) / 30 + 0.01 * stream.random()}

    return evaluate


class Forked:
    """A child made by copying this process, which has the libraries in memory already.

    As in a process made anew, of all open files only the standard ones and `descriptor` are open in it.
    """

    def __init__(self, work, descriptor):
        self.pid, self._code = os.fork(), None
        if self.pid == 0:
            os.setsid()
            os.closerange(3, descriptor)
            os.closerange(descriptor + 1, 1024)
            code = 1
            try:
                code = work()
            finally:
                os._exit(code)

    def poll(self):
        if self._code is None:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self._code = os.waitstatus_to_exitcode(status)
        return self._code


def worker(folder, descriptor, *, trials, lease_s, **pace):
    with StopRequest() as stop, Pulse(descriptor, ask_to_stop=stop.ask, grace_s=GRACE_S / 2):
        study = open_study(folder, lease_s=lease_s, leads=False)

        def polite():
            if stop():
                raise Stopped("asked to stop")
            return False

        try:
            evaluate = stepping(study, folder, stop=stop, **pace)
            study.run(evaluate, trials=trials, stop=polite, max_failures=trials + 1)
        except Stopped:
            return stop.exit_code
    return 0


def joined(folder, *, trials, lease_s, **pace):
    """A worker that nobody started."""
    _kept, writing = os.pipe()
    sys.exit(worker(folder, writing, trials=trials, lease_s=lease_s, **pace))


def coordinator(folder, *, workers, trials, lease_s, trial_timeout_s=None, **pace):
    """A whole search; ends with 0, or with 143 after SIGTERM."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with StopRequest() as stop:
        study = open_study(folder, lease_s=lease_s, leads=True)

        def polite():
            if stop():
                raise Stopped("asked to stop")
            return False

        def start(_, descriptor):
            # The copy must not have its coordinator's handlers when it makes its own.
            work = functools.partial(worker, folder, descriptor, trials=trials, lease_s=lease_s, **pace)
            return Forked(work, descriptor)

        with (folder / "coordinator.log").open("a") as log:
            note = functools.partial(print, file=log, flush=True)
            pool = Pool(make_slots(workers, []), start, lease_s=lease_s, grace_s=GRACE_S, note=note)
            try:
                coordinate(
                    study,
                    pool,
                    trials=trials,
                    stop=polite,
                    on_trial=note,
                    trial_timeout_s=trial_timeout_s,
                    max_failures=trials + 1,
                )
                evaluate = stepping(study, folder, stop=stop, **pace)
                study.run(evaluate, trials=trials, stop=polite, max_failures=trials + 1)
            except Stopped:
                sys.exit(stop.exit_code)


def begin(folder, target=coordinator, **settings):
    """Starts a coordinator, or a worker, from a server that has the libraries in memory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    process = context.Process(target=target, args=(folder,), kwargs=settings)
    process.start()
    return process


# -- looking on ----------------------------------------------------------------------------------------


def until(condition, *, patience_s=PATIENCE_S):
    limit = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < limit, f"it did not happen within {patience_s} s"
        time.sleep(0.01)
    return found


def children(pid):
    """The living children of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state not in "ZX":
                found.append(int(path.parent.name))
    return found


def alive(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def read(folder):
    """The study as a bystander sees it."""
    return Study(SPACE, Fixed(RegularizedEvolution(5, 3), 1), journal_storage(folder / "study.log"), name="s")


def check(folder, trials):
    """What must hold in the end; returns counts of how trials ended."""
    study = read(folder)
    assert [t.number for t in study.history] == list(range(trials))
    assert not study.under_way
    assert len({t.genotype for t in study.history}) == trials
    for trial in study.history:
        if trial.state == "done":
            assert trial.metrics == {"val_acc": value(trial.number, trial.genotype)}
        else:
            assert trial.reason.startswith(("lost: ", "timeout: ")), trial.reason
        for number in trial.beside:
            assert number < trial.number
    records = [json.loads(line) for line in (folder / "study.log").read_bytes().splitlines()]
    ends = Counter(r["trial_id"] for r in records if r["op_code"] == 6 and r["state"] in (1, 3))
    # Whoever comes second is refused when the journal is read; there are hardly ever two.
    assert ends.keys() == set(range(trials))
    states = Counter(t.state for t in study.history)
    return {"told": len(ends), "told late": ends.total() - len(ends), **states}


def soak(
    folder,
    *,
    trials,
    workers,
    kills,
    seed,
    longest_s,
    lease_s=60.0,
    restarts=1,
    freezes=0,
    steps=10,
    step_s=0.02,
):
    """Runs a search to its end while workers are killed at random moments; returns what happened.

    restarts: how often the coordinator is killed, too. freezes: how many workers are stopped, and go on when
      they have lost their trial or were killed for it.
    """
    draw, counts = random.Random(seed), Counter()
    settings = {"workers": workers, "trials": trials, "lease_s": lease_s, "steps": steps, "step_s": step_s}
    process, best, seen = begin(folder, **settings), -1.0, None
    restart_at = {kills * (i + 1) // (restarts + 1) for i in range(restarts)}
    freeze_at = {draw.randrange(1, max(2, kills)) for _ in range(freezes)}
    while process.is_alive():
        time.sleep(draw.uniform(0, longest_s))
        if counts["kills"] in restart_at:
            restart_at.remove(counts["kills"])
            orphans = children(process.pid)
            process.kill()
            process.join()
            until(lambda: not any(map(alive, orphans)), patience_s=PATIENCE_S + GRACE_S)  # noqa: B023
            counts["restarts"] += 1
            process = begin(folder, **settings)
        elif counts["kills"] < kills and (pids := children(process.pid)):
            freeze = counts["kills"] in freeze_at
            freeze_at.discard(counts["kills"])
            with suppress(ProcessLookupError):
                os.kill(draw.choice(pids), signal.SIGSTOP if freeze else signal.SIGKILL)
            counts["freezes" if freeze else "kills"] += 1
        if seen is None and (folder / "study.log").exists():
            seen = read(folder)
        if seen is not None:
            seen.sync()
            if any(trial.state == "done" for trial in seen.history):
                done = seen.best()
                assert done[0].metrics["val_acc"] >= best
                best = done[0].metrics["val_acc"]
    process.join()
    assert process.exitcode == 0
    return {**counts, **check(folder, trials)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--freezes", type=int, default=5)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total_s = 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        found = soak(
            Path(folder),
            trials=options.trials,
            workers=options.workers,
            kills=options.kills,
            seed=options.seed,
            # On the average half of it, so that all are killed well before the end.
            longest_s=1.2 * total_s / options.kills,
            lease_s=10.0,
            restarts=options.restarts,
            freezes=options.freezes,
            steps=20,
            step_s=0.85 * options.workers * total_s / options.trials / 20,
        )
        print(json.dumps({**found, "seconds": round(time.monotonic() - start)}))


if __name__ == "__main__":
    main()
