"""Genotypes beside the decisions that they answer: checked, and from words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nas.errors import SpaceError, unknown
from nas.text import shown
from nas.types import Decision, Genotype


def check_genotype(genotype: Genotype, decisions: Sequence[Decision], *, space: str) -> None:
    """Raises SpaceError unless `genotype` has one option index in range for every decision."""
    if len(genotype) != len(decisions):
        raise SpaceError(f"space {space!r} has {len(decisions)} decisions, got a genotype of {len(genotype)}")
    for d, option in zip(decisions, genotype, strict=True):
        if isinstance(option, bool) or not isinstance(option, int | np.integer):
            raise SpaceError(
                f"decision {d.name!r} got {shown(option)}, a {type(option).__name__}; a genotype has one "
                "option index for each decision, a whole number"
            )
        if not 0 <= option < len(d.options):
            raise SpaceError(
                f"decision {d.name!r} got option {option}, but its {len(d.options)} options are 0 to "
                f"{len(d.options) - 1}"
            )


def from_words(choices: Mapping[str, str], decisions: Sequence[Decision], *, space: str) -> Genotype:
    """The genotype of an architecture given as decision name to option name.

    Raises:
        SpaceError: when a decision or an option is unknown, or a decision is not chosen.
    """
    names = {d.name for d in decisions}
    for name in choices:
        if name not in names:
            raise SpaceError(f"space {space!r}: {unknown('decision', str(name), names)}")
    for d in decisions:
        if d.name not in choices:
            raise SpaceError(f"space {space!r}: decision {d.name!r} is not chosen; wanted one of {d.options}")
        if choices[d.name] not in d.options:
            raise SpaceError(f"decision {d.name!r}: {unknown('option', str(choices[d.name]), d.options)}")
    return tuple(d.options.index(choices[d.name]) for d in decisions)
