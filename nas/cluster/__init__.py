"""Starting workers elsewhere: through SLURM or Ray."""
