"""Black-box searchers: pure functions of the history, so that resuming is reading the history again."""

from nas.searchers.evolution import RegularizedEvolution
from nas.searchers.local import LocalSearch
from nas.searchers.nsga2 import Nsga2
from nas.searchers.predictor_guided import Guided
from nas.searchers.random_search import RandomSearch
from nas.searchers.searcher import Searcher
from nas.searchers.spos import Generational

__all__ = [
    "Generational",
    "Guided",
    "LocalSearch",
    "Nsga2",
    "RandomSearch",
    "RegularizedEvolution",
    "Searcher",
]
