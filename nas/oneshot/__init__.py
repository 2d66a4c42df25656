"""Weight sharing: all architectures of a space in one supernet, searched by gradients or by sampling.

Begin with `darts_step`, which is Algorithm 1 of DARTS, then `supernet` and `search`; `methods` names the
parts that each published method is made of, `path_training` is the other way to train shared weights.
"""
