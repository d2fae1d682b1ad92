"""Training: the loop, checkpoints, progress and plots."""
