"""The methods of search by name, and what each kind of them is."""

from __future__ import annotations

DIFFERENTIABLE = (
    *("darts", "darts2", "gdas", "snas", "drnas", "pcdarts", "sdarts-rs", "sdarts-adv", "fairdarts"),
    *("beta-darts", "gaea", "oles", "is-darts", "pdarts"),
)
AUTO = "auto"
"""The default method."""
BLACK_BOX = (AUTO, "random", "evolution", "local", "nsga2", "guided", "tpe", "gp")
SHARED = ("spos",)
"""Methods that are black-box searches on shared weights only."""
OPTUNA = "optuna:"
"""What stands before the name of an Optuna sampler where that is the method."""
OWN = "own:"
"""What stands before the name of a method that was given in Python, in a run's record."""
METHODS = (*BLACK_BOX, *SHARED, *DIFFERENTIABLE)


def is_own(path: str, *, optuna: bool = True) -> bool:
    """Whether a method is a user's own function, or was given in Python.

    optuna: whether the samplers of Optuna are not, as for methods; a space has no such names.
    """
    return ":" in path and not (optuna and path.startswith(OPTUNA))


def by_gradients(method: str) -> bool:
    """Whether a method, of the engine's or a user's own, searches by gradients, so that trials are epochs."""
    return method in DIFFERENTIABLE or is_own(method)
