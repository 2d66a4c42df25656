"""Training one network: recipes, steps, checkpoints, in one process or many.

Begin with `train`, then `loop`, whose steps a supernet takes too; `batched` runs equal operations as one.
"""
