"""What can be said of a space without building a network: are its decisions and its projection sound?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from nas.errors import FAULTS, NasError, SpaceError, describe, staying
from nas.space.space import Space

TRACES = 3


def check_listing(space: Space) -> None:
    """Checks what can be chosen; allocates nothing.

    Raises:
        SpaceError: when there is nothing to choose, a name is misspelt, or listings and projections fail.
    """
    with blaming(space):
        if not space.decisions:
            raise SpaceError("build asked the chooser nothing, so there is nothing to search; call choose.op")
        for decision in space.decisions:
            if len(decision.options) < 2:
                raise SpaceError(
                    f"decision {decision.name!r} has the single option {decision.options[0]!r}; "
                    "give it another one, or build the module without asking"
                )
        for _ in range(TRACES):
            _check_repeatable(space)
        _check_names(space)
        _check_project(space)


@contextmanager
def blaming(space: Space, where: str = "") -> Iterator[None]:
    """Turns whatever a block raises into a SpaceError that says which space, and where in it."""
    who = f"space {space.name!r}"
    try:
        with staying():
            yield
    except NasError as error:
        text = str(error)
        if text.startswith(who):
            raise
        raise SpaceError(f"{who}{where}: {text}{_remedy(space, text)}") from error
    except FAULTS as error:
        raise SpaceError(f"{who}{where}: {describe(error)}{_remedy(space, str(error))}") from error


def _remedy(space: Space, text: str) -> str:
    """What is lacking in a function that makes a space and takes nothing from the task."""
    for words, name in (("channels", "in_channels"), ("gave logits", "classes")):
        if space.origin and name not in space.settings and words in text:
            return f"; let {space.origin} take an argument {name!r}, which the task gives"
    return ""


def _check_repeatable(space: Space) -> None:
    again = replace(space).decisions
    if differing := sorted({d.name for d in set(again) ^ set(space.decisions)}):
        raise SpaceError(
            f"listed twice, build asked different decisions: {differing[:3]} came up once only; "
            "build must depend on nothing but the chooser's answers"
        )
    if again != space.decisions:
        raise SpaceError("listed twice, build asked its decisions in another order; iterate over no set")


def _check_names(space: Space) -> None:
    """Compares the words of names that are the same but for one word and have the same options."""
    words: dict[tuple[object, ...], list[tuple[str, str]]] = {}
    for decision in space.decisions:
        parts = re.split(r"([a-z]{4,})", decision.name)
        for i in range(1, len(parts), 2):
            alike = words.setdefault((decision.options, i, *parts[:i], *parts[i + 1 :]), [])
            for word, name in alike:
                if _is_slip(word, parts[i]):
                    raise SpaceError(
                        f"decision {decision.name!r} has the options of {name!r}; did you mean {name!r}? "
                        "one name is one decision; if two are meant, tell their names further apart"
                    )
            alike.append((parts[i], decision.name))


def _is_slip(a: str, b: str) -> bool:
    """Whether two words differ by two swapped neighbours or by one letter that is neither first nor last.

    A first or last letter often tells apart on purpose: `qproj` and `kproj`, `kernelh` and `kernelw`.
    """
    short, long = sorted((a, b), key=len)
    inside = range(1, len(long) - 1)
    if len(short) < len(long):
        return any(long[:i] + long[i + 1 :] == short for i in inside)
    wrong = [i for i, (p, q) in enumerate(zip(a, b, strict=True)) if p != q]
    if len(wrong) == 2:
        i, j = wrong
        return j == i + 1 and (a[i], a[j]) == (b[j], b[i])
    return len(wrong) == 1 and wrong[0] in inside


def _check_project(space: Space) -> None:
    reached = set()
    for i, decision in enumerate(space.decisions):
        for option in range(len(decision.options)):
            scores = [np.zeros(len(d.options)) for d in space.decisions]
            scores[i][option] = 1.0
            reached.add(space.nearest(scores))
    if len(reached) == 1 and space.count != 1:
        raise SpaceError(
            f"project ignores its scores: whatever is preferred, it gave {space.choices(*reached)}; "
            "return the valid genotype whose options score highest"
        )
