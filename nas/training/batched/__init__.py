"""Fused execution of cells: the same modules, several of a kind in one call, channels last in memory.

`execution` says which way the cells of a network run. `cells` runs one cell: `rules` say how layers run
together, `plan` which operations do, as far as `trust` has seen that they may.
"""
