"""Training: the loop, checkpoints, progress, plots."""
