"""The table of faults is complete, and every test that it names exists."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
ROWS = {int(number): (fault, happens, tests) for number, fault, happens, tests in ROW.findall(TEXT)}


def test_every_fault_has_one_row():
    numbers = [int(row[0]) for row in ROW.findall(TEXT)]
    assert numbers[:92] == list(range(1, 93))
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("number", ROWS)
def test_every_row_names_tests_that_exist(number):
    entries = ROWS[number][2].split("<br>")
    assert all(NAMED.fullmatch(entry) for entry in entries), entries
    for file, name in NAMED.findall(ROWS[number][2]):
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            f"{file}::{name}"
        )


def test_every_reason_has_advice_and_a_row():
    from nas.evaluate.failure_summary import ADVICE

    section = TEXT.split("## Failed trials")[1].split("##")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`([\w-]+)`", "".join(rows)))
    assert named == set(ADVICE)
