"""What an error says of a name that is unknown."""

import pytest

from nas.errors import unknown
from nas.run.config import Config
from nas.searchers.method_names import METHODS

SPACES = ("darts", "nasbench101", "nasbench201", "toy")


@pytest.mark.parametrize(
    ("known", "got", "meant"),
    [
        (SPACES, "dart", "'darts'"),
        (SPACES, "DARTS", "'darts'"),
        (SPACES, "tory", "'toy'"),
        (SPACES, "nasbench", "'nasbench101' or 'nasbench201'"),
        (SPACES, "nasbench21", "'nasbench201'"),
        (METHODS, "evolve", "'evolution'"),
        (METHODS, "random_search", "'random'"),
        (METHODS, "nsga-ii", "'nsga2'"),
        (Config.model_fields, "trails", "'trials'"),
        (Config.model_fields, "epoch", "'epochs'"),
    ],
)
def test_a_name_that_is_near_is_proposed(known, got, meant):
    assert unknown("name", got, known) == f"no name {got!r}; did you mean {meant}?"
