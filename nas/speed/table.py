"""A table of what benches measure, beside what is asked: each row by a process of its own, kept in a file.

A row that crashes, or that exceeds its time, costs no other row; one that has been measured is not run again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess  # nosec B404
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from nas.files.atomic import read_json, write_json, write_text
from nas.files.temporary import temporary_folder

ROOT = Path(__file__).parents[2]
LAST_WORDS = 1500
"""Characters of what a row said last that its file repeats where it failed."""
NOTED = 400
"""Characters of it below the table."""
WORDS = {
    "ms": "{:.4g} ms",
    "images_per_s": "{:,.0f} images/s",
    "trials_per_hour": "{:,.0f} trials/h",
    "minutes": "{:.3g} min",
    "peak_GiB": "{:.3g} GiB",
    "ratio": "{:.3g}x",
    "times_first": "{:.3g}x the first order",
    "passed": "{:.0f} passed",
    "failed": "{:.0f} failed",
}
"""How numbers are written, by what they tell."""
GROWING = frozenset({"images_per_s", "trials_per_hour", "ratio", "passed"})
"""Of which more is better."""
PLAIN = "plain"
"""How the paths begin that the others are compared with; the first of all of them is the reference."""
_HEAD = (
    *("work", "plain eager", "ours", "ratio", "must", "aim", "kept", "peak GiB", "kernels launched"),
    *("share of the bandwidth floor", "path"),
)
_VERSIONS = {"torch": "torch", "cuda": "CUDA"}

Found = dict[str, Any]
"""A row's file: its command, seconds and warnings, and `found` or `counts` or `error`."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    work: in words. command: arguments of Python, from the folder that holds the engine's checkout. A bench
      gets `--out` and writes JSON; of anything else tests that passed and failed are counted, or itself.
    shows: what is shown of the plain and the own path. must, aim: bounds by what they bound, see `WORDS`.
    limit_s: seconds after which it is given up.
    """

    work: str
    command: str
    shows: str = "ms"
    must: Mapping[str, float] = field(default_factory=dict)
    aim: Mapping[str, float] = field(default_factory=dict)
    limit_s: float = 300.0

    @property
    def is_bench(self) -> bool:
        """Whether it writes what it finds."""
        return "bench_" in self.command


def fill(
    rows: Mapping[str, Row],
    folder: Path,
    *,
    asked: Sequence[str],
    more: Mapping[str, Sequence[str]],
    again: bool = False,
    within_s: float = float("inf"),
    say: Callable[[str], None] = print,
) -> None:
    """Runs the rows that are asked for and have no file in the folder, or a failure in it.

    After each of them the table of all rows that are there is written to `table.md`, too; where there is
    nothing to run it is said only.

    more: arguments that commands get besides, by the script's name. again: run all that are asked for.
    within_s: seconds in which all must end: no row has more than is left of them. say: is told the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + within_s
    files = {name: folder / f"{name}.json" for name in rows}
    there = {name: cast(Found, read_json(file)) for name, file in files.items() if file.exists()}
    missing = [name for name in asked if again or "error" in there.get(name, {"error": "not run"})]
    if not missing:
        say(table(rows, there))
    for name in missing:
        row, left = rows[name], until - time.monotonic()
        if left <= 0:
            break
        command = shlex.split(row.command)
        arguments = more.get(Path(command[0]).stem, ())
        there[name] = _run([*command, *arguments], row, min(row.limit_s, left))
        write_json(files[name], there[name])
        write_text(folder / "table.md", table(rows, there))
        say(table(rows, there))


def table(rows: Mapping[str, Row], there: Mapping[str, Found]) -> str:
    """The rows that are there in Markdown; below them their machines, what they said and failures."""
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    machines: dict[str, list[str]] = {}
    notes = []
    for name, found in ((name, there[name]) for name in rows if name in there):
        lines.append(_line(cells(rows[name], found)))
        if "found" in found:
            machines.setdefault(_machine(found["found"]["machine"]), []).append(name)
        told = (found.get("error"), found.get("said"), *found["warnings"])
        notes += [f"- {name}: {' '.join(words.split())[-NOTED:]}" for words in told if words]
    made = [f"- {machine}: {', '.join(names)}" for machine, names in machines.items()]
    return "\n".join([*lines, "", *made, *notes, ""])


def _machine(known: Mapping[str, object]) -> str:
    versions = [f"{word} {known[key]}" for key, word in _VERSIONS.items() if known.get(key)]
    return ", ".join([str(known["hardware"]), *versions])


def cells(row: Row, found: Found) -> list[str]:
    """One row of the table, by the names of its head."""
    must, aim = (", ".join(_said(bounds, name) for name in bounds) for bounds in (row.must, row.aim))
    if "error" in found:
        return [row.work, "", "failed", "", must, aim, "no", "", "", "", ""]
    if "counts" in found:
        counts = found["counts"]
        tests = ", ".join(f"{number} {word}" for word, number in counts.items())
        return [row.work, "", tests, "", must, aim, kept(row, counts), "", "", "", ""]
    plain, path, ours = fastest(found["found"])
    shown = [row.shows, *(name for name in row.must if name not in (row.shows, "ratio", "peak_GiB"))]
    return [
        *(row.work, _said(plain, row.shows), ", ".join(_said(ours, name) for name in shown)),
        *(_said(ours, "ratio"), must, aim, kept(row, ours)),
        *(f"{ours['peak_GiB']:.2f}" if "peak_GiB" in ours else "", f"{ours.get('kernels_launched', '')}"),
        *(f"{ours['floor_share']:.0%}" if "floor_share" in ours else "", path),
    ]


def fastest(found: Found) -> tuple[Mapping[str, float], str, Mapping[str, float]]:
    """Of a bench's outcome: the plain path's row, the fastest other path and its row."""
    paths = paths_in(found)
    own = {name: values for name, values in paths.items() if not name.startswith(PLAIN)}
    path = max(own, key=lambda name: own[name]["ratio"])
    ours = own[path]
    if "peak_MiB" in ours:
        ours = ours | {"peak_GiB": ours["peak_MiB"] / 1024}
    return paths[PLAIN], path, ours


def paths_in(found: Found) -> dict[str, dict[str, float]]:
    """What a bench of one piece of work tells of each path."""
    (paths,) = [value["paths"] for name, value in found.items() if name != "machine"]
    return cast(dict[str, dict[str, float]], paths)


def kept(row: Row, ours: Mapping[str, float]) -> str:
    """Whether what must be, and what is aimed at, is reached."""
    if not _within(row.must, ours):
        return "no"
    return "aim" if row.aim and _within(row.aim, ours) else "must" if row.must else ""


def _within(bounds: Mapping[str, float], ours: Mapping[str, float]) -> bool:
    """A number that was not measured is not within its bound."""
    worst = {name: float("-inf") if name in GROWING else float("inf") for name in bounds}
    now = worst | {name: ours[name] for name in bounds if name in ours}
    return all(now[n] >= bound if n in GROWING else now[n] <= bound for n, bound in bounds.items())


def _said(values: Mapping[str, float], name: str) -> str:
    return WORDS[name].format(values[name]) if name in values else ""


def _line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(parts)} |"


def _run(command: list[str], row: Row, limit_s: float) -> Found:
    """What comes of a row's process."""
    begun = time.monotonic()
    with temporary_folder() as folder:
        out, log = folder / "found.json", folder / "log"
        written = ["--out", str(out)] if row.is_bench else []
        status = _ended([*command, *written], log, limit_s)
        words = log.read_text(errors="replace")
        record: Found = {
            "command": shlex.join(command),
            "seconds": round(time.monotonic() - begun, 1),
            "warnings": sorted({line.strip() for line in words.splitlines() if "Warning: execution" in line}),
        }
        if status is None:
            return record | {"error": f"it did not end in {limit_s:.0f} s: {words[-LAST_WORDS:]}"}
        if not row.is_bench:
            said = words[-LAST_WORDS:] if status else "".join(words.splitlines()[-1:])
            return record | {"counts": _counts(words, status), "said": said}
        if status != 0 or not out.exists():
            return record | {"error": f"it ended with status {status}: {words[-LAST_WORDS:]}"}
        return record | _read(row, out.read_text())


def _read(row: Row, text: str) -> Found:
    """What a bench wrote, numbers that are none as words; an error where it is no row of a table."""
    try:
        found = json.loads(text, parse_constant=str)
        if all(path.startswith(PLAIN) for path in paths_in(found)):
            return {"error": f"it timed no path but {', '.join(paths_in(found))}"}
        table({"": row}, {"": {"found": found, "warnings": []}})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {"error": f"it wrote what is no row of a table ({error!r}): {text[:LAST_WORDS]}"}
    return {"found": found}


def _counts(words: str, status: int) -> dict[str, int]:
    """How many tests passed and failed, by the last line of pytest; one that is the process, elsewhere."""
    last = (words.strip().splitlines() or [""])[-1]
    told = re.findall(r"(\d+) (passed|failed|skipped|error)", last)
    if not told:
        return {"passed": int(status == 0), "failed": int(status != 0)}
    counts = {word: int(number) for number, word in told}
    failed = counts.get("failed", 0) + counts.pop("error", 0)
    return {"passed": 0, **counts, "failed": failed}


def _ended(command: Sequence[str], log: Path, limit_s: float) -> int | None:
    """The exit status; None where it took too long, and was killed with all that it had begun."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("wb") as words:
        # Scripts of this repository, without a shell.
        process = subprocess.Popen(  # nosec B603
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            cwd=ROOT,
            # What else is installed for pytest may warn, and warnings are errors.
            env=os.environ | {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            process_group=0,
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
