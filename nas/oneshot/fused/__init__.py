"""Fused execution of cells: the same modules, several of a kind in one call, channels last in memory."""
