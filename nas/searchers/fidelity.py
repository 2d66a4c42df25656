"""Fidelities: how much an evaluation may spend, and ladders of them for searches that promote the best."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from itertools import accumulate, pairwise

from nas.data.task import Task
from nas.errors import ConfigError, SpaceError, check_length, shown, unknown
from nas.space.loading import load
from nas.space.space import Space
from nas.types import MOST

MAX_TEXT = 10_000
"""Characters of a ladder."""


@dataclass(frozen=True)
class Fidelity:
    """One rung: what an evaluation may spend. All shares are in (0, 1].

    epochs: trained in this rung, at least 1.
    images: share of the training images; the validation images stay whole.
    width, cells: factors on the space's settings of these names.
    image_size: factor on the side of the images.
    """

    epochs: int
    images: float = 1.0
    width: float = 1.0
    cells: float = 1.0
    image_size: float = 1.0

    def __post_init__(self) -> None:
        if type(self.epochs) is not int or not 1 <= self.epochs <= MOST:
            raise ConfigError(
                f"fidelity: epochs is {shown(self.epochs)}, but must be an integer of at least 1 and at most "
                f"{MOST:,}"
            )
        for name, share in self.shares.items():
            if not _is_share(share):
                raise ConfigError(f"fidelity: {name} is {share!r}, but must be above 0 and at most 1")

    @property
    def shares(self) -> dict[str, float]:
        """All but the epochs, by name."""
        return {name: share for name, share in asdict(self).items() if name != "epochs"}

    def __str__(self) -> str:
        cut = [f"{name}={share!r}" for name, share in self.shares.items() if share != 1]
        return ",".join([f"epochs={self.epochs}", *cut])


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


@dataclass(frozen=True)
class Ladder:
    """The rungs that a trial climbs, cheapest first; from rung to rung no share shrinks.

    A trial's `fidelity` is the number of epochs it has been granted so far, over all rungs up to its own.
    """

    rungs: tuple[Fidelity, ...]

    def __post_init__(self) -> None:
        if not self.rungs:
            raise ConfigError(
                "ladder: it has no rungs, but must have at least one, e.g. 'epochs=1; epochs=3'"
            )
        for number, (low, high) in enumerate(pairwise(self.rungs), 2):
            for name, share in high.shares.items():
                if share < low.shares[name]:
                    raise ConfigError(
                        f"ladder: {name} falls from {low.shares[name]} to {share} at rung {number}, but must "
                        "stay or grow; put the rungs in order, cheapest first"
                    )

    @property
    def granted(self) -> tuple[int, ...]:
        """[rungs] epochs granted by the end of each rung, strictly increasing."""
        return tuple(accumulate(rung.epochs for rung in self.rungs))

    def rung(self, fidelity: int) -> int:
        """The position of the rung that ends after so many granted epochs."""
        if fidelity not in self.granted:
            raise ConfigError(
                f"ladder: no rung ends after {fidelity} epochs; its rungs end after "
                f"{', '.join(map(str, self.granted))}. Has the study another ladder?"
            )
        return self.granted.index(fidelity)

    def __len__(self) -> int:
        return len(self.rungs)

    def __str__(self) -> str:
        return "; ".join(map(str, self.rungs))


def parse_fidelity(text: str) -> Fidelity:
    """The inverse of `str`: `"epochs=3,width=0.5"`; what is not named is not cut."""
    check_length("fidelity", text, MAX_TEXT)
    known = [field.name for field in fields(Fidelity)]
    values: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or name in values:
            raise ConfigError(
                f"fidelity {shown(text)}: wanted NAME=NUMBER, each once, as in 'epochs=3,width=0.5'"
            )
        if name not in known:
            raise ConfigError(f"fidelity {shown(text)}: {unknown('setting', name, known)}")
        values[name] = _number(value, text, whole=name == "epochs")
    if "epochs" not in values:
        raise ConfigError(f"fidelity {shown(text)}: epochs is missing; say for how many the rung trains")
    return Fidelity(**values)  # type: ignore[arg-type]


def _number(value: str, text: str, *, whole: bool) -> float:
    try:
        return int(value) if whole else float(value)
    except ValueError as error:
        wanted = "a whole number" if whole else "a number"
        raise ConfigError(f"fidelity {shown(text)}: got {shown(value)}, wanted {wanted}") from error


def parse_ladder(text: str) -> Ladder:
    """The inverse of `str`: rungs between semicolons, as in `"epochs=1,width=0.5; epochs=3; epochs=9"`."""
    check_length("ladder", text, MAX_TEXT)
    return Ladder(tuple(parse_fidelity(part) for part in text.split(";")))


def geometric(least: int, most: int, eta: int = 3) -> Ladder:
    """Rungs of epochs alone that end after `least`, `least * eta`, `least * eta²`, ..., `most` epochs.

    Where `most` is not such a product, the steps are equal ones as near to `eta` as they can be.
    """
    if not 1 <= least <= most or eta < 2:
        raise ConfigError(
            f"ladder: got {least} to {most} epochs by factors of {eta}, wanted at least 1, at least as many, "
            "and a factor of at least 2"
        )
    steps = max(1, round(math.log(most / least, eta)))
    granted = sorted({round(least * (most / least) ** (i / steps)) for i in range(steps + 1)})
    return Ladder(tuple(Fidelity(high - low) for low, high in pairwise([0, *granted])))


# -- what a rung means ---------------------------------------------------------------------------------


def scaled_space(space: Space, fidelity: Fidelity) -> Space:
    """The space at the size of a rung: the settings that it scales multiplied and rounded, at least 1.

    A setting `image_size` follows the images where the space has one.

    Raises:
        SpaceError: when the space cannot be made at another size, or would have other decisions.
    """
    cut = {name: share for name, share in fidelity.shares.items() if name != "images" and share != 1}
    if "image_size" not in space.settings:
        cut.pop("image_size", None)
    if not cut:
        return space
    settings = {name: _scaled(space, name, share) for name, share in cut.items()}
    scaled = load(space.origin, {**space.settings, **settings})
    if scaled.decisions != space.decisions:
        sizes = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise SpaceError(
            f"space {space.name!r} has other decisions at {sizes}; a rung may change its size only"
        )
    return scaled


def _scaled(space: Space, name: str, share: float) -> int:
    if not space.origin:
        raise SpaceError(
            f"space {space.name!r} was made by hand, so a rung cannot change its {name}; "
            "load it by name or as FILE.py:FUNCTION"
        )
    value = space.settings.get(name)
    if type(value) is not int:
        raise SpaceError(
            f"space {space.name!r} has no whole number {name!r} among its settings for a rung to change; "
            f"it has {', '.join(space.settings)}"
        )
    return max(1, round(value * share))


def scaled_task(task: Task, fidelity: Fidelity) -> Task:
    """The task with a rung's share of the training images, at its size."""
    side = max(1, round(task.image_shape[1] * fidelity.image_size))
    return task.subset(fidelity.images).resized(side)
