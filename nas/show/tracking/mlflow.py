"""A run on an MLflow server or in its database, found again by a tag when it is resumed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from nas.show.tracking.tracker import Key, Point, Status, TrackedRun

EXPERIMENT = "nas"
TAG = "nas.run"
ALPHAS = "alphas"
_MOST = 1000
"""Metrics that a server takes at once."""
_MOST_SETTINGS, _LONGEST = 100, 500
"""Settings that a server takes at once, and characters of one."""
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflow:
    """Keeps a run in the experiment `nas`.

    uri: of the server or database; None leaves it to MLflow, which reads MLFLOW_TRACKING_URI.
    """

    def __init__(self, uri: str | None) -> None:
        self.uri = uri

    def begin(self, run: TrackedRun) -> AbstractSet[Key]:
        """Takes up the run with its tag, or creates it."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self.uri)
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        found = self._client.search_runs([number], f"tags.`{TAG}` = '{run.name}'", max_results=1)
        if found:
            self._run: str = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return set(self._keys(found[0].data.metrics))
        self._run = self._client.create_run(number, run_name=run.name, tags={TAG: run.name}).info.run_id
        settings = [Param(word(k), v[:_LONGEST]) for k, v in run.settings.items()]
        self._client.log_batch(self._run, params=settings[:_MOST_SETTINGS])
        return set()

    def track(self, points: Sequence[Point]) -> None:
        """Sends points, the alphas of each before its numbers, by which it is found again."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(name, value, now, point.step) for point in points for name, value in _named(point)]
        for start in range(0, len(metrics), _MOST):
            self._client.log_batch(self._run, metrics=metrics[start : start + _MOST])

    def keep(self, folder: Path, files: Sequence[str]) -> None:
        """Uploads the files as artefacts."""
        for name in files:
            parent = Path(name).parent.as_posix()
            self._client.log_artifact(self._run, str(folder / name), None if parent == "." else parent)

    def end(self, status: Status) -> None:
        """Says how the run ended."""
        self._client.set_terminated(self._run, status=_STATUS[status])

    def _keys(self, names: Iterable[str]) -> Iterator[Key]:
        """All points of the run: those of the numbers, because alphas are many and never come alone."""
        for name in names:
            if not name.startswith(f"{ALPHAS}/"):
                for metric in self._client.get_metric_history(self._run, name):
                    yield name.rpartition("/")[0], metric.step


def _named(point: Point) -> Iterator[tuple[str, float]]:
    """Names and values; there are no histograms, so that each option's alpha is a metric of its own."""
    for decision, row in point.alphas.items():
        for option, value in zip(point.options[decision], row, strict=True):
            yield word(f"{ALPHAS}/{decision}/{option}"), float(value)
    for name, value in point.values.items():
        yield word(f"{point.series}/{name}"), value


def word(text: str) -> str:
    """A name of characters that MLflow takes."""
    return re.sub(r"[^\w.\- :/]", "_", text, flags=re.ASCII)[:250]
