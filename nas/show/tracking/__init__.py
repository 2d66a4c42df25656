"""Experiment trackers: TensorBoard, MLflow, or your own, told of every trial and epoch of a job."""
