"""Black-box searchers: pure functions of the history, so that resuming is reading the history again."""

from nas.searchers.evolution import RegularizedEvolution
from nas.searchers.random_search import RandomSearch
from nas.searchers.searcher import Searcher

__all__ = ["RandomSearch", "RegularizedEvolution", "Searcher"]
