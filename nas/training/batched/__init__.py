"""Batched execution of cells: the same modules, several of a kind in one call, channels last in memory.

Begin at `cells.run`, which runs one cell; `execution_plan` says which of its operations run together.
"""
