"""Whole jobs, a search, a retraining, a calibration: their settings and their phases."""
