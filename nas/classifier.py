"""`ImageClassifier`: an architecture search as an estimator of scikit-learn, within a time."""

from __future__ import annotations

import shutil
import signal
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from nas.audit import AUDIT_FILES
from nas.data.loading import task_from_arrays
from nas.data.preprocessing import Images, layout, rows_of
from nas.data.task import Split, Task
from nas.errors import ConfigError, DataError, counted
from nas.export.bundle import bundle
from nas.files.atomic import read_json, temporary_folder
from nas.files.folder import LOCK
from nas.results.result import Result, load_result
from nas.run.budget import allows_audit
from nas.run.config import Config, make_config, seconds
from nas.run.job import Clock
from nas.run.pipeline import run_job
from nas.run.preparation import with_names
from nas.run.resolved_config import UNBOUNDED
from nas.searchers.method_names import BLACK_BOX, OPTUNA
from nas.show.progress import reporter
from nas.space.loading import is_plugin
from nas.space.space import Space

GRACE_S = 5.0
"""For the last training, after Ctrl-C."""
LEAST = 3
"""Images of a class."""


class ImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Finds an architecture for labelled images, trains it, and classifies by it.

    time_budget: of `fit` in all, seconds or "10m"; a model comes out however little it is.
    space, method: as `nas.search` takes them.
    random_state: an integer, a `RandomState` or None; equal ones draw alike, but time decides how much.
    test_fraction: of the images, held out; `result_.metrics["test_acc"]` is measured on them, once.
    augment: how images are varied in training: `none`, or parts of `crop+flip+cutout`; `crop` unless given.
    out: folder of the run; a temporary one, without pictures and gone with the estimator, by default. One
      that holds a run of the same images and parameters is gone on with.
    settings: further ones of `nas.Config` but the budget, which come before what is chosen here.
    verbose: whether progress is told, in lines on standard error.

    X: images `[n, H, W]`, `[n, H, W, C]` or `[n, C, H, W]` with up to four channels, or rows of the
      pixels of square images of at least 8x8, `[n, 64]`, `[n, 784]`. Tables of other features are refused.

    Fitted attributes: `classes_`, `n_features_in_` (pixels times channels), `layout_`, `result_`, the
    `nas.Result` of the run, and `audit_`, the `audit.json` of `nas audit`, or None where there was no time
    for one; suspect images are named, not left out. Ctrl-C during `fit` ends the search, and the best so far
    is delivered.
    """

    def __init__(
        self,
        time_budget: float | str = "10m",
        *,
        space: str | Space = "convnet",
        method: str = "auto",
        random_state: int | np.random.RandomState | None = 0,
        test_fraction: float = 0.1,
        augment: str | None = None,
        out: str | Path | None = None,
        settings: Mapping[str, object] | None = None,
        verbose: bool = False,
    ) -> None:
        self.time_budget = time_budget
        self.space = space
        self.method = method
        self.random_state = random_state
        self.test_fraction = test_fraction
        self.augment = augment
        self.out = out
        self.settings = settings
        self.verbose = verbose

    def fit(self, X: object, y: object) -> Self:
        """Searches and trains within the time.

        Raises:
            ValueError: when images and labels cannot be learned from.
            ConfigError: when a parameter or setting cannot be used.
        """
        clock = Clock(_seconds(self.time_budget))
        images, labels = self._checked(X, y)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        fraction = self.test_fraction
        try:
            task = task_from_arrays(images, labels, seed=seed, val_fraction=0.3, test_fraction=fraction)
        except DataError as error:
            raise ValueError(str(error)) from error
        folder = Path(self.out) if self.out is not None else _temporary(self) / "run"
        clock.recall(folder)
        with reporter(plain=True) if self.verbose else nullcontext() as progress, _interruptible(clock):
            config = self._config(task, clock, seed)
            made = self.space if isinstance(self.space, Space) else None
            self.result_: Result = run_job(
                config, out=folder, space=made, task=task, progress=progress, clock=clock
            )
        audit = folder / AUDIT_FILES[0]
        self.audit_ = read_json(audit) if audit.is_file() else None
        # The test images alone, which is what an export needs; views would hold the others.
        few = Split(task.train.x[:0].clone(), task.train.y[:0].clone())
        self.task_ = replace(task, train=few, val=few)
        return self

    def predict(self, X: object) -> NDArray[Any]:
        """The label `[n]` of each image."""
        check_is_fitted(self, "result_")
        found: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(1)]
        return found

    def predict_proba(self, X: object) -> NDArray[np.float64]:
        """The probability `[n, classes]` of each class, in the order of `classes_`."""
        check_is_fitted(self, "result_")
        images = self.result_.inputs.prepare(self._images(X))
        with torch.no_grad():
            logits = torch.cat([self.result_.network(part) for part in torch.split(images, 512)])
        return np.asarray(torch.softmax(logits.double(), 1).numpy())

    def export(self, folder: str | Path) -> Path:
        """Writes the run with its model as source, program and ONNX into a new folder; see `nas export`.

        Raises:
            ConfigError: when the folder is not empty, or a form is not the scored model.
        """
        check_is_fitted(self, "result_")
        target = Path(folder)
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise ConfigError(f"export: {target} is not empty, or a file; name a new folder")
        shutil.copytree(self.result_.folder, target, dirs_exist_ok=True)
        bundle(load_result(target, space=_code(self.space)), self.task_)
        return target

    # -- what fit is made of ------------------------------------------------------------------------------

    def _checked(self, X: object, y: object) -> tuple[Images, NDArray[np.int64]]:
        """The images of `fit`, and the number of each one's class."""
        rows, shape = rows_of(X)
        flat, labels = validate_data(self, rows, y, dtype="numeric")
        check_classification_targets(labels)
        self.layout_, self.bytes_ = layout(shape, flat.shape[1]), flat.dtype == np.uint8
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has one class, {str(self.classes_[0])!r}; a classifier needs at least two classes"
            )
        counts = np.bincount(numbers)
        if counts.min() < LEAST:
            raise ValueError(
                f"class {str(self.classes_[counts.argmin()])!r} has {counted(int(counts.min()), 'image')}, "
                f"wanted at least {LEAST}: one each to learn from, to select by and to test with"
            )
        return self._shaped(flat), numbers.astype(np.int64)

    def _images(self, X: object) -> Images:
        """Images to be classified, which have to be like those of `fit`."""
        rows, shape = rows_of(X)
        flat: Images = validate_data(self, rows, reset=False, dtype="numeric")
        if shape is not None and shape != self.layout_.shape:
            raise ValueError(
                f"X has images {shape} (H, W, C), but ImageClassifier is expecting {self.layout_.shape}"
            )
        return self._shaped(flat)

    def _shaped(self, flat: Images) -> Images:
        """Rows of pixels as images `[n, H, W, C]`, uint8 or float32 as those of `fit`."""
        if self.bytes_ and (flat.min() < 0 or flat.max() > 255):
            raise ValueError(
                f"X has pixels from {flat.min():g} to {flat.max():g}, but ImageClassifier is expecting "
                "bytes, 0 to 255, as it was fitted on"
            )
        if not (self.bytes_ and flat.dtype == np.uint8):
            flat = flat.astype(np.float32) / (255 if self.bytes_ else 1)
        return self.layout_.shaped(flat)

    def _config(self, task: Task, clock: Clock, seed: int) -> Config:
        """What is chosen for these images and this time, the user's settings on top."""
        names = {"space": self.space if isinstance(self.space, str) else self.space.name, "task": task.name}
        chosen: dict[str, object] = {
            **{"seed": seed, "augment": self.augment, "budget": clock.budget_s},
            **{"baselines": False, "pictures": self.out is not None},
        }
        chosen["audit"] = clock.decide("audit", lambda: allows_audit(task, clock.budget_s or 0.0))
        given = dict(self.settings or {})
        if "budget" in given:
            raise ConfigError("settings: budget is given, but fit keeps to time_budget; set that")
        if self.method in BLACK_BOX or self.method.startswith(OPTUNA):
            chosen["trials"] = UNBOUNDED
        return make_config(with_names({**chosen, **given}, names | {"method": self.method}))

    # -- keeping ------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """The run as the files of its folder: its space is code, and is looked up again."""
        state = dict(super().__getstate__())
        if "result_" in state:
            files = (path for path in sorted(self.result_.folder.iterdir()) if path.is_file())
            state["result_"] = {path.name: path.read_bytes() for path in files if path.name != LOCK}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        files = state.get("result_")
        super().__setstate__({name: value for name, value in state.items() if name != "result_"})
        if files is not None:
            folder = _temporary(self) / "run"
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            self.result_ = load_result(folder, space=_code(self.space))


def _temporary(owner: object) -> Path:
    """A folder that is removed when `owner` is."""
    until_removed = ExitStack()
    folder = until_removed.enter_context(temporary_folder())
    weakref.finalize(owner, until_removed.close)
    return folder


def _code(space: str | Space) -> str | Space | None:
    """What has to be given to read a run of somebody's own space."""
    return space if isinstance(space, Space) or is_plugin(space) else None


def _seconds(budget: float | str) -> float:
    try:
        found = seconds(budget)
        if isinstance(found, int | float) and 0 < found < float("inf"):
            return float(found)
        raise ValueError('wanted seconds above 0, or a time such as "10m"')
    except ValueError as error:
        raise ConfigError(f"time_budget is {budget!r}: {error}") from error


@contextmanager
def _interruptible(clock: Clock) -> Iterator[None]:
    """Ctrl-C makes the job hurry to a result; a second one interrupts it. For the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
        if clock.hurried:
            raise KeyboardInterrupt
        clock.hurry(GRACE_S)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
