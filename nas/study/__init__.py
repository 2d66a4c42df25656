"""The search loop: a searcher is asked, a trial evaluated, its outcome written down.

Begin with `study`; `workers` is where trials are evaluated, `storage` where they are written.
"""
