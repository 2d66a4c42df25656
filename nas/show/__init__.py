"""The live view of a run: its report, drawn anew as the search goes, and Optuna's dashboard beside it."""
