"""Values, texts and files as somebody with bad intentions or a bad disk would make them."""

import contextlib
import json
import os
import signal

from hypothesis import settings
from hypothesis import strategies as st

from nas.errors import NasError

LONGER = os.environ.get("NAS_FUZZ")
EXAMPLES = int(LONGER or 100)
fuzzed = settings(max_examples=EXAMPLES, derandomize=LONGER is None)
slowly = settings(fuzzed, max_examples=EXAMPLES // 3)
"""For fuzzed tests, the second where an example takes long; NAS_FUZZ=20000 looks longer and elsewhere."""

NAMES = (
    "<script>alert('x')</script>",
    "q\"uo'te & amp; ]]> <!-- -- -->",
    "two\nlines\r\n\ttabs",
    "\x1b[31mred\x1b[0m \x07 \x9b31m",
    "nul\0",
    "\u202eright to left\u202c \u200f\u2066",
    "$\\frac{1}{0}$ $x^2$ \\text{",
    "%s %(name)s {0} {name}",
    "\ud800 lone",
    "🚀 é ß 漢字",
    "x" * 10_000,
    "../../etc/passwd",
    " ",
    "",
)
"""Names that break whatever takes them for markup, mathematics, commands, formats or paths."""


class Hang(BaseException):
    """Something took longer than it may; nothing in the engine catches it."""


@contextlib.contextmanager
def in_time(seconds=30):
    """Raises `Hang` in a block that takes too long."""

    def fail(*_):
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    left, _ = signal.getitimer(signal.ITIMER_REAL)  # of a limit around this one, if there is any
    signal.setitimer(signal.ITIMER_REAL, min(seconds, left or seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)


def survived(call, *arguments, **settings):
    """What a call gives, or the engine's own error that it raises in place; both within a time limit."""
    with in_time():
        try:
            return call(*arguments, **settings)
        except NasError as error:
            assert str(error)
            return error


texts = st.sampled_from([name[:2000] for name in NAMES]) | st.text(max_size=30)
whole = st.integers(-3, 9) | st.integers() | st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), 10**400])
numbers = whole | st.floats() | st.sampled_from([0.5, 1e308, -0.0, 5e-324])
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
"""Anything that Python can hold of JSON's kinds, also what JSON cannot."""

_finite = st.floats(allow_nan=False, allow_infinity=False)
_json_scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 9) | _finite | texts
)
json_values = st.recursive(
    _json_scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
"""What a JSON file may hold."""


@st.composite
def mutated_json(draw, value):
    """A copy of a JSON value with up to three places replaced, removed, repeated or added."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value)) if isinstance(value, dict | list) else []
        if not places:
            return draw(json_values)
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "replace", "remove", "repeat", "swap"])):
            case "replace":
                holder[key] = draw(json_values)
            case "remove":
                del holder[key]
            case "repeat" if isinstance(holder, list):
                holder.insert(key, holder[key])
            case "repeat":
                holder[draw(texts)] = holder[key]
            case "swap":
                other, place = draw(st.sampled_from(places))
                with contextlib.suppress(KeyError, IndexError):  # removed before
                    holder[key] = json.loads(json.dumps(other[place]))
    return value


def _places(value):
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, inner in items:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


@st.composite
def mutated_text(draw, text, tokens=()):
    """A text with up to four pieces cut out, doubled, or put in from elsewhere."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 20)))
        piece = draw(
            st.just("")
            | st.just(2 * text[start:end])
            | texts
            | st.sampled_from([*tokens, "9" * 5000, "~", "("])
        )
        text = text[:start] + piece + text[end:]
    return text


@st.composite
def mutated_bytes(draw, data):
    """Bytes with up to four changed, some cut off, or something put in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(0, len(changed) - 1)))
        match draw(st.sampled_from(["flip", "flip", "cut", "insert"])):
            case "flip" if changed:
                changed[position] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del changed[position:]
            case _:
                changed[position:position] = draw(st.binary(max_size=20))
    return bytes(changed)
