"""The page of faults is complete."""

import re
from pathlib import Path

from nas.evaluate.failure_summary import ADVICE

TEXT = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_fault_has_one_row():
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \| ", TEXT, re.MULTILINE)]
    assert numbers[:92] == list(range(1, 93))
    assert numbers == sorted(set(numbers))


def test_every_reason_of_a_failed_trial_has_advice_and_a_row():
    section = TEXT.split("## Failed trials")[1].split("##")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([\w-]+)`", "".join(rows))) == set(ADVICE)
