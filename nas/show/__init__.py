"""What people look at: pictures, the report of a run, its live view, and what trackers are told.

Begin with `report`, which puts sections together; `draw` makes figures from plain values.
"""
