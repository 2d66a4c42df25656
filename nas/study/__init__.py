"""The search loop: a searcher is asked, a trial evaluated, its outcome written down.

Begin with `study`; `workers` is where trials are evaluated, `storage` where they are written.
"""

from nas.study.measuring import Evaluator, Measure
from nas.study.study import Study

__all__ = ["Evaluator", "Measure", "Study"]
