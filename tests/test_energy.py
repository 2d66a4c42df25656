"""Energy in a report: one unit for the whole table, and plain numbers."""

import pytest

from nas.show.report.workers import _energy, _unit


@pytest.mark.parametrize(
    ("joules", "part", "words"),
    [
        (113, 71.9, "71.9 J"),
        (3599, 1380, "1,380 J"),
        (11_000, 1380, "0.383 Wh"),
        (11_000, 11_000, "3.06 Wh"),
        (7.2e6, 3600, "0.001 kWh"),
        (7.2e9, 7.2e9, "2,000 kWh"),
        (0, 0, "0 J"),
    ],
)
def test_the_largest_number_chooses_the_unit(joules, part, words):
    unit, factor = _unit(joules)
    assert _energy(part / factor, unit) == words
