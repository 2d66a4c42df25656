"""Black-box searchers: pure functions of the history, so that resuming is reading the history again.

Begin with `searcher`; `evolution` shows what one looks like, `scheduler` who says how long trials train.
"""
