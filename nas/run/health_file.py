"""How healthy a differentiable search was, epoch by epoch, as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.files.atomic import write_json
from nas.results.schemas import EpochRecord

if TYPE_CHECKING:  # the pictures' library is not for those who draw none
    from nas.show.draw import HealthSeries


def write_health(
    folder: Path, epochs: Sequence[Mapping[str, Any]], *, title: str, pictures: bool = True
) -> None:
    """health.json, and with pictures health.svg and health.png.

    epochs: the fields of an `EpochRecord` of each, and whatever else was measured.
    """
    write_json(folder / "health.json", {"epochs": [dict(epoch) for epoch in epochs]})
    if not pictures:
        return
    from nas import draw

    series = series_of([EpochRecord.model_construct(**epoch) for epoch in epochs])
    draw.save(draw.draw_health(series, title=title), folder / "health.svg", folder / "health.png")


def series_of(epochs: Sequence[EpochRecord]) -> HealthSeries:
    """The record of a search as its picture wants it."""
    from nas.show.draw import HealthSeries

    kinds = dict.fromkeys(kind for epoch in epochs for kind in epoch.skip_shares)

    def column(name: str) -> NDArray[np.float64]:
        return np.array([getattr(epoch, name) for epoch in epochs], dtype=float)

    return HealthSeries(
        epochs=np.array([epoch.epoch for epoch in epochs]),
        skip_shares={kind: np.array([e.skip_shares.get(kind, np.nan) for e in epochs]) for kind in kinds},
        entropy=column("alpha_entropy"),
        eigenvalue=np.abs(column("eigenvalue")),
        mean=column("eigenvalue_mean"),
        alarm=column("eigenvalue_alarm"),
        matching=column("gradient_matching"),
        gap=column("discretisation_gap"),
        supernet_acc=column("val_acc"),
        changes=np.array([int(epoch.changes) for epoch in epochs]),
        events=[(place, event) for place, epoch in enumerate(epochs) for event in epoch.events],
    )
