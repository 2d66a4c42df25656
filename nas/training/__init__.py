"""Training one network: recipes, steps, checkpoints, one process or many; begin with `train`, then `loop`."""
