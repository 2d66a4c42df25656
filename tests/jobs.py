"""Small whole jobs of about a second, and how to compare what two of them left behind."""

import hashlib
import json

from nas.run.config import make_config
from nas.run.job import Job
from nas.run.resolved_config import make_plan
from nas.run.retrain import Last
from nas.study.storage import JOURNAL

TINY = {
    "epochs": 2,
    "trial": {"batch": 10, "lr": 0.2},  # with fewer steps no trial is better than guessing
    "top_k": 2,
    "repeats": 1,
    "baselines": False,
    "export": False,
    "pictures": False,
    "top_k_epochs": 1,
    "search_images": 200,
    "space_settings": {"width": 4},
    "retrain": {"epochs": 1},
}
"""Settings of any method on a small space."""
SMALL = {**TINY, "trials": 3}
"""Settings of a black-box method on a small space."""


def last_job(space, task, recipe, folder, *, progress, stop=lambda: False):
    """A job of which nothing but the last training is left, and that training."""
    config = make_config({})
    job = Job(config, make_plan(config), space, task, task, space, recipe, folder, progress, stop)
    return job, Last(recipe, task.train_and_val(), folder)


class Recorder:
    """A progress that remembers what it was told."""

    def __init__(self):
        self.phases, self.lines, self.notes = [], [], []

    def phase(self, name, total, *, done=0):
        self.phases.append((name, total, done))

    def advance(self, text, *, done=None):
        self.lines.append(text)

    def note(self, text):
        self.notes.append(text)


def options(settings):
    """The command line's `--set` arguments for nested settings."""
    flat = {}
    for key, value in settings.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return [word for key, value in flat.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def snapshot(folder):
    """The SHA-256 of every file below a folder, by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.lock"
    }


def timeless(metrics):
    """Metrics that do not depend on how fast the machine was."""
    return {k: v for k, v in metrics.items() if not k.endswith(("seconds", "_ms"))}


def outcome(result):
    """All of a result that must be the same however often its run was interrupted."""
    architecture = json.loads((result.folder / "architecture.json").read_text())
    architecture["metrics"] = timeless(architecture["metrics"])
    return {
        "history": [(t.genotype, t.fidelity, t.state, t.metrics, t.reason) for t in result.history],
        "architecture": architecture,
        "model": (result.folder / "model.safetensors").read_bytes(),
        "metrics": timeless(result.metrics),
    }


def journal(folder):
    """The records of a run's journal."""
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
