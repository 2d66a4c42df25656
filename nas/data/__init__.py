"""What is learned from: images and their targets, read, checked, divided, augmented; and their problem.

Begin with `task`, then `problem` (loss, metric, predictions) and `datasets`, which reads what has a name.
"""
