"""Black-box searchers: pure functions of the history, so that resuming is reading the history again.

Begin with `searcher`; `evolution` shows what one looks like, `scheduler` who says how long trials train.
"""

from nas.searchers.evolution import Generational, Nsga2, RegularizedEvolution
from nas.searchers.local import LocalSearch
from nas.searchers.predictor_guided import Guided
from nas.searchers.searcher import RandomSearch, Searcher

__all__ = [
    "Generational",
    "Guided",
    "LocalSearch",
    "Nsga2",
    "RandomSearch",
    "RegularizedEvolution",
    "Searcher",
]
