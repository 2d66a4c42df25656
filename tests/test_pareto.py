"""Ranking by several objectives: hand cases from the definitions, brute force and Monte Carlo."""

import numpy as np
import pytest

from nas.searchers.pareto import crowding, dominates, front, hypervolume, ranks


def tables(count):
    """Small random tables with many ties and duplicated rows."""
    for seed in range(count):
        draw = np.random.default_rng(seed)
        shape = (int(draw.integers(1, 25)), int(draw.choice((1, 2, 3))))
        yield draw.integers(0, 5, size=shape).astype(float)


def brute_dominates(a, b):
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


def brute_ranks(rows, beats):
    """Peels one front after the other, by definition."""
    found = [-1] * len(rows)
    for rank in range(len(rows)):
        left = [i for i, r in enumerate(found) if r < 0]
        for i in left:
            if not any(beats(j, i) for j in left):
                found[i] = rank
    return found


def test_ranks_and_fronts_against_peeling_by_definition():
    for scores in tables(30):
        expected = brute_ranks(scores, lambda j, i, rows=scores: brute_dominates(rows[j], rows[i]))
        assert ranks(scores).tolist() == ranks(scores, np.zeros(len(scores))).tolist() == expected
        assert front(scores).tolist() == np.flatnonzero(ranks(scores) == 0).tolist()
        brute = [[brute_dominates(a, b) for b in scores] for a in scores]
        assert dominates(scores, scores).tolist() == brute
    assert front(np.zeros((0, 2))).tolist() == ranks(np.zeros((0, 2))).tolist() == []


def test_constraint_domination_by_hand_and_by_definition():
    """Feasible before infeasible, then the smaller violation, whatever the scores (NSGA-II, §VI-A)."""
    scores = np.array([[9.0, 9.0], [1.0, 1.0], [8.0, 8.0], [2.0, 0.0], [0.0, 0.0]])
    assert ranks(scores, np.array([0.5, 0.0, 0.1, 0.0, 0.0])).tolist() == [3, 0, 2, 0, 1]
    for seed, rows in enumerate(tables(30)):
        excess = np.random.default_rng(seed).choice([0.0, 0.0, 0.5, 1.0], size=len(rows))

        def beats(j, i, rows=rows, excess=excess):
            return excess[j] < excess[i] or (excess[j] == excess[i] and brute_dominates(rows[j], rows[i]))

        assert ranks(rows, excess).tolist() == brute_ranks(rows, beats)


def test_crowding_by_hand():
    """Neighbours' distances over the extent, summed over objectives; ends are infinite (NSGA-II, §III-B)."""
    rows = np.array([[4.0, 0.0], [0.0, 10.0], [1.0, 8.0], [3.0, 1.0]])
    inner = [(3 - 0) / 4 + (10 - 1) / 10, (4 - 1) / 4 + (8 - 0) / 10]
    assert crowding(rows) == pytest.approx([np.inf, np.inf, *inner])
    assert np.isinf(crowding(rows[:2])).all()
    assert sorted(crowding(np.ones((5, 2)))) == [0, 0, 0, np.inf, np.inf]


# -- hypervolume --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "reference", "volume"),
    [
        ([[2, 3]], [0, 0], 6),
        ([[1, 3], [2, 2], [3, 1]], [0, 0], 6),
        ([[1, 3], [2, 2]], [0, 1], 3),
        ([[5], [3]], [1], 4),
        ([[1, 2, 3], [3, 2, 1]], [0, 0, 0], 6 + 6 - 2),
        ([[0.5, 9], [1, 9], [9, 1]], [1, 1], 0),  # nothing is above the reference
        ([[2, 3], [0, 99]], [1, 1], 2),
    ],
)
def test_hypervolume_by_hand(scores, reference, volume):
    assert hypervolume(np.array(scores, dtype=float), np.array(reference, dtype=float)) == volume


def test_hypervolume_of_whole_numbers_counts_unit_cells():
    for scores in tables(30):
        cells = np.indices((5,) * scores.shape[1]).reshape(scores.shape[1], -1).T
        covered = (scores[:, None, :] > cells[None]).all(-1).any(0).sum()
        whole = hypervolume(scores, np.zeros(scores.shape[1]))
        assert whole == pytest.approx(covered)
        assert hypervolume(scores[front(scores)][::-1], np.zeros(scores.shape[1])) == pytest.approx(whole)
