"""Fidelities: how much an evaluation may spend, and ladders of them for searches that promote the best."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from itertools import accumulate, pairwise

from nas.errors import ConfigError, check_length, shown, unknown
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
            if type(share) not in (int, float) or not 0 < share <= 1:
                raise ConfigError(f"fidelity: {name} is {share!r}, but must be above 0 and at most 1")

    @property
    def shares(self) -> dict[str, float]:
        """All but the epochs, by name."""
        return {name: share for name, share in asdict(self).items() if name != "epochs"}

    def __str__(self) -> str:
        cut = [f"{name}={share!r}" for name, share in self.shares.items() if share != 1]
        return ",".join([f"epochs={self.epochs}", *cut])


@dataclass(frozen=True)
class Ladder:
    """The rungs that a trial climbs, cheapest first; from rung to rung no share shrinks.

    A trial's `fidelity` is the number of epochs it has been granted so far, over all rungs up to its own.
    """

    rungs: tuple[Fidelity, ...]

    def __post_init__(self) -> None:
        if not self.rungs:
            raise ConfigError("rungs: it has no rungs, but must have at least one, e.g. 'epochs=1; epochs=3'")
        for number, (low, high) in enumerate(pairwise(self.rungs), 2):
            for name, share in high.shares.items():
                if share < low.shares[name]:
                    raise ConfigError(
                        f"rungs: {name} falls from {low.shares[name]} to {share} at rung {number}, but must "
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
                f"rungs: no rung ends after {fidelity} epochs; its rungs end after "
                f"{', '.join(map(str, self.granted))}. Has the study another ladder?"
            )
        return self.granted.index(fidelity)

    def __len__(self) -> int:
        return len(self.rungs)

    def __str__(self) -> str:
        return "; ".join(map(str, self.rungs))


def parse_fidelity(text: str) -> Fidelity:
    """The inverse of `str`: `"epochs=3,width=0.5"`; what is not named is not cut."""
    known = [field.name for field in fields(Fidelity)]
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in known:
            raise ConfigError(f"fidelity {shown(text)}: {unknown('setting', name, known)}")
        try:
            if name in values:
                raise ValueError
            values[name] = int(value) if name == "epochs" else float(value)
        except ValueError as error:
            raise ConfigError(
                f"fidelity {shown(text)}: got {shown(part)}, wanted NAME=NUMBER, each once, a whole number "
                "of epochs, as in 'epochs=3,width=0.5'"
            ) from error
    if "epochs" not in values:
        raise ConfigError(f"fidelity {shown(text)}: epochs is missing; say for how many the rung trains")
    return Fidelity(**values)  # type: ignore[arg-type]


def parse_ladder(text: str) -> Ladder:
    """The inverse of `str`: rungs between semicolons, as in `"epochs=1,width=0.5; epochs=3; epochs=9"`."""
    check_length("rungs", text, MAX_TEXT)
    return Ladder(tuple(parse_fidelity(part) for part in text.split(";")))


def geometric(least: int, most: int, eta: int = 3) -> Ladder:
    """Rungs of epochs alone that end after `least`, `least * eta`, `least * eta²`, ..., `most` epochs.

    Where `most` is not such a product, the steps are equal ones as near to `eta` as they can be.
    """
    if not 1 <= least <= most or eta < 2:
        raise ConfigError(
            f"rungs: got {least} to {most} epochs by factors of {eta}, wanted at least 1, at least as many, "
            "and a factor of at least 2"
        )
    steps = max(1, round(math.log(most / least, eta)))
    granted = sorted({round(least * (most / least) ** (i / steps)) for i in range(steps + 1)})
    return Ladder(tuple(Fidelity(high - low) for low, high in pairwise([0, *granted])))
