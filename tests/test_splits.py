import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.data.splits import stratified
from nas.seeding import rng


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(2, 40), min_size=1, max_size=8), share=st.floats(0, 1))
def test_stratified_takes_in_proportion_and_leaves_the_rest(counts, share):
    y = np.repeat(np.arange(len(counts)), counts)
    take = round(share * len(y))
    taken, rest = stratified(y, take, rng(0))
    assert sorted([*taken, *rest]) == list(range(len(y)))
    assert set(y[taken]) == set(y[rest]) == set(range(len(counts)))
    assert len(taken) == min(max(take, len(counts)), len(y) - len(counts))
    for label, count in enumerate(counts):
        exact = count * len(taken) / len(y)
        got = int((y[taken] == label).sum())
        # One image a class is kept on either side, at the cost of the other classes.
        assert abs(got - exact) <= len(counts)
        assert 1 <= got <= count - 1


def test_an_even_division_is_exact():
    y = np.repeat(np.arange(3), (10, 20, 30))
    taken, _ = stratified(y, 30, rng(0))
    assert np.bincount(y[taken]).tolist() == [5, 10, 15]


def test_both_parts_come_shuffled():
    y = np.repeat(np.arange(2), 50)
    for part in stratified(y, 50, rng(0)):
        assert len(set(y[part][:10])) == 2


@pytest.mark.parametrize("spare", [0, 2])
def test_least_and_spare_win_over_the_number_to_take(spare):
    y = np.repeat(np.arange(2), 5)
    assert len(stratified(y, 0, rng(0), least=2, spare=spare)[0]) == 4
    assert len(stratified(y, 10, rng(0), least=2, spare=spare)[1]) == 2 * spare
