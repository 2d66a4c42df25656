"""What failed trials have in common, in words: how many of each kind, the usual message, what to change."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from nas.types import Objective, Trial

ADVICE: Mapping[str, str] = {
    "nan": "training diverges, at a lower learning rate too: lower trial.lr (supernet.lr for "
    "shared weights), set clip there, and look for extreme values in the images",
    "oom": "memory runs out: lower trial.batch, or leave large architectures out by a narrower space or "
    '--constraint "params<=1e6"',
    "build": "networks cannot be built, or do not take these images: `nas validate SPACE --task TASK` names "
    "the option that is to blame",
    "unsupported": "this device lacks an operation: leave it out of the space, or run with --device cpu",
    "no-grad": "nothing in the network learns: an architecture needs parameters between images and logits",
    "metric": "the evaluator must return a dictionary of finite numbers, by name",
    "error": "code of the space or the evaluator raises, in the line named above; `nas validate` checks a "
    "space",
    "device": "the GPU reported a fault: repeat the command, which goes on in a new process; check the "
    "labels of your data, and `nvidia-smi`",
    "constraint": "hardly any architecture keeps the constraints: loosen them",
    "missing": "a table does not hold these architectures: use a space that it covers, or measure",
    "timeout": "trials take too long, or hang: raise trial_timeout, or lower trial.epochs",
    "crash": "the code of the space, or the system for want of memory, ends the process that trains: look "
    "into the system's log, leave that option out, or lower trial.batch",
    "proxy": "a proxy cannot be computed for these architectures: leave it out",
}
"""What to do about each reason of failure."""


def code(trial: Trial) -> str:
    """The reason of a failed trial as a short code, e.g. `nan`."""
    return trial.reason.partition(":")[0]


def count(history: Iterable[Trial]) -> dict[str, int]:
    """The number of failed trials by reason, the commonest first."""
    return dict(Counter(code(trial) for trial in history if trial.state == "failed").most_common())


def diagnosis(history: Iterable[Trial]) -> str:
    """What the failed trials died of, one line for each reason with its usual message, and what to do."""
    failed = [trial for trial in history if trial.state == "failed"]
    counts = count(failed)
    lines = [
        f"\n  {number} x {usual([t for t in failed if code(t) == name])}" for name, number in counts.items()
    ]
    advice = [f"\n  {name}: {ADVICE[name]}" for name in counts if name in ADVICE]
    return "".join([*lines, "\nwhat to do:" * bool(advice), *advice])


def usual(trials: Sequence[Trial]) -> str:
    """The commonest message; those that differ in numbers only count as one, shown by the first of them."""
    alike = [re.sub(r"\d[\d.,e+-]*", "#", trial.reason) for trial in trials]
    return trials[alike.index(Counter(alike).most_common(1)[0][0])].reason


def at_chance(history: Iterable[Trial], level: float, objective: Objective = Objective()) -> int:  # noqa: B008 - frozen
    """How many finished trials are no better than `level`, which guessing reaches of a metric."""
    name, least = objective.metric, objective.better(level)
    done = [t.metrics[name] for t in history if t.state == "done" and name in t.metrics]
    return sum(objective.better(value) <= least for value in done)
