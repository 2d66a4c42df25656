"""Whole jobs, a search, a retraining, a calibration: their settings and their phases.

Begin with `pipeline`, which tells a job from top to bottom, then `config`, which declares every setting once.
"""
