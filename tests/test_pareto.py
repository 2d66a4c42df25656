"""Ranking by several objectives: hand cases from the definitions, brute force and Monte Carlo."""

import numpy as np
import pytest

from nas.searchers.goals import selection_order
from nas.searchers.pareto import crowding, dominates, front, hypervolume, ranks

LADDER = np.array([[1.0, 4.0], [2.0, 3.0], [4.0, 1.0], [1.0, 3.0], [2.0, 1.0], [1.0, 1.0]])
"""Fronts by hand: rows 0-2, then 3 and 4, then 5."""


def tables(count, *, objectives=(1, 2, 3)):
    """Small random tables with many ties and duplicated rows."""
    for seed in range(count):
        draw = np.random.default_rng(seed)
        shape = (int(draw.integers(1, 25)), int(draw.choice(objectives)))
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


def test_dominance_needs_nowhere_worse_and_somewhere_better():
    rows = np.array([[1.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 1.0]])
    expected = [[False] * 4, [True, False, False, True], [True, False, False, True], [False] * 4]
    assert dominates(rows, rows).tolist() == expected


def test_ranks_by_hand():
    assert ranks(LADDER).tolist() == [0, 0, 0, 1, 1, 2]
    assert front(LADDER).tolist() == [0, 1, 2]


def test_ranks_against_peeling_by_definition():
    for scores in tables(60):
        expected = brute_ranks(scores, lambda j, i, rows=scores: brute_dominates(rows[j], rows[i]))
        assert ranks(scores).tolist() == expected


def test_front_is_rank_zero_with_ties_and_duplicates():
    for scores in tables(100):
        assert front(scores).tolist() == np.flatnonzero(ranks(scores) == 0).tolist()


def test_equal_rows_are_on_the_front_together():
    rows = np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
    assert front(rows).tolist() == [0, 2, 3]
    assert ranks(rows).tolist() == [0, 1, 0, 0]


def test_objectives_of_very_different_scales():
    """Both sums are 1e17 in floating point, though the second row dominates."""
    rows = np.array([[1e17, 0.5], [1e17, 0.9]])
    assert front(rows).tolist() == [1]
    assert front(rows[:, ::-1]).tolist() == [1]


def test_nothing_has_no_front():
    assert front(np.zeros((0, 2))).tolist() == []
    assert ranks(np.zeros((0, 2))).tolist() == []


# -- constraints --------------------------------------------------------------------------------------


def test_constraint_domination_by_hand():
    """Feasible before infeasible, then the smaller violation, whatever the scores (NSGA-II, §VI-A)."""
    scores = np.array([[9.0, 9.0], [1.0, 1.0], [8.0, 8.0], [2.0, 0.0], [0.0, 0.0]])
    violations = np.array([0.5, 0.0, 0.1, 0.0, 0.0])
    assert ranks(scores, violations).tolist() == [3, 0, 2, 0, 1]


def test_constraint_domination_by_definition():
    for seed, scores in enumerate(tables(60)):
        excess = np.random.default_rng(seed).choice([0.0, 0.0, 0.5, 1.0], size=len(scores))

        def beats(j, i, rows=scores, excess=excess):
            return excess[j] < excess[i] or (excess[j] == excess[i] and brute_dominates(rows[j], rows[i]))

        assert ranks(scores, excess).tolist() == brute_ranks(scores, beats)


def test_no_violations_change_nothing():
    for scores in tables(20):
        assert ranks(scores, np.zeros(len(scores))).tolist() == ranks(scores).tolist()


# -- crowding -----------------------------------------------------------------------------------------


def test_crowding_by_hand():
    """Neighbours' distances over the extent, summed over objectives; ends are infinite (NSGA-II, §III-B)."""
    rows = np.array([[4.0, 0.0], [0.0, 10.0], [1.0, 8.0], [3.0, 1.0]])
    inner = [(3 - 0) / 4 + (10 - 1) / 10, (4 - 1) / 4 + (8 - 0) / 10]
    assert crowding(rows) == pytest.approx([np.inf, np.inf, *inner])


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_are_ends(count):
    assert np.isinf(crowding(LADDER[:count])).all()


def test_crowding_of_equal_rows_is_finite_but_for_two_of_them():
    distance = crowding(np.ones((5, 2)))
    assert sorted(distance) == [0, 0, 0, np.inf, np.inf]


def test_selection_goes_by_front_and_then_prefers_the_lonely():
    rows = np.array([[1.0, 1.0], [0.0, 10.0], [10.0, 0.0], [4.9, 5.1], [5.0, 5.0], [9.0, 1.0], [0.0, 9.0]])
    order = selection_order(rows, np.zeros(len(rows)))
    assert set(order[:2]) == {1, 2}
    # Distances on the first front, whose extent is 10 in both objectives.
    inner = {3: (5.0 + 5.0) / 10, 4: (9 - 4.9 + 5.1 - 1) / 10, 5: (10 - 5 + 5 - 0) / 10}
    assert order[2:5] == sorted(inner, key=inner.__getitem__, reverse=True)
    assert set(order[5:]) == {0, 6}


# -- hypervolume --------------------------------------------------------------------------------------


def test_hypervolume_by_hand():
    zero = np.zeros(2)
    assert hypervolume(np.array([[2.0, 3.0]]), zero) == 6
    assert hypervolume(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]), zero) == 6
    assert hypervolume(np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([0.0, 1.0])) == 3
    assert hypervolume(np.array([[5.0], [3.0]]), np.array([1.0])) == 4
    boxes = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    assert hypervolume(boxes, np.zeros(3)) == 6 + 6 - 2


def test_what_is_not_above_the_reference_adds_nothing():
    reference = np.array([1.0, 1.0])
    assert hypervolume(np.array([[0.5, 9.0], [1.0, 9.0], [9.0, 1.0]]), reference) == 0
    assert hypervolume(np.zeros((0, 2)), reference) == 0
    assert hypervolume(np.array([[2.0, 3.0], [0.0, 99.0]]), reference) == 2


def test_hypervolume_of_whole_numbers_counts_unit_cells():
    for scores in tables(60):
        cells = np.indices((5,) * scores.shape[1]).reshape(scores.shape[1], -1).T
        covered = (scores[:, None, :] > cells[None]).all(-1).any(0).sum()
        assert hypervolume(scores, np.zeros(scores.shape[1])) == pytest.approx(covered)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_against_monte_carlo(objectives):
    draw = np.random.default_rng(0)
    scores, reference = draw.random((12, objectives)), np.full(objectives, 0.1)
    points = 0.1 + 0.9 * draw.random((100_000, objectives))
    share = (scores[:, None, :] > points[None]).all(-1).any(0).mean()
    assert hypervolume(scores, reference) == pytest.approx(share * 0.9**objectives, abs=0.005)


def test_dominated_rows_and_order_do_not_change_the_hypervolume():
    for scores in tables(40):
        reference, draw = np.full(scores.shape[1], -1.0), np.random.default_rng(1)
        whole = hypervolume(scores, reference)
        assert hypervolume(scores[front(scores)], reference) == pytest.approx(whole)
        assert hypervolume(scores[draw.permutation(len(scores))], reference) == pytest.approx(whole)
