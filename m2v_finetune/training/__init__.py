"""Training: the trainer and its steps, checkpoints, the feature cache, the run folder and results."""
