"""The bundle that a search writes when it is finished; one that cannot be written takes nothing from it."""

from __future__ import annotations

from pathlib import Path

from nas.data.task import Task
from nas.errors import MismatchError, NasError
from nas.export.bundle import CARD, bundle
from nas.files.folder_lock import FolderLock
from nas.files.paths import is_file
from nas.results.result import Result
from nas.show.progress import Progress


def is_bundled(folder: Path) -> bool:
    """Whether a run has a bundle: its card is written last."""
    return is_file(folder / CARD)


def bundle_at_end(result: Result, task: Task, progress: Progress) -> None:
    """Writes and proves the bundle of a run that has just finished, or notes why there is none.

    Raises:
        MismatchError: when a form is not the scored model; the run is finished and whole all the same.
    """
    progress.note("export: writing model.py, model.pt2 and model.onnx, and proving each (--no-export: not)")
    try:
        with FolderLock(result.folder):
            bundle(result, task, tell=lambda line: progress.note(f"export: {line}"))
    except MismatchError as error:
        raise MismatchError(
            f"{error}. The run in {result.folder} is finished and whole; with --no-export its command "
            "leaves it as it is"
        ) from error
    except NasError as error:
        progress.note(
            f"WARNING: no bundle: {error}. The run is finished and whole; nas export {result.folder} tries "
            "again"
        )
