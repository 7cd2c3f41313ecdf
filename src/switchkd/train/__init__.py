"""Training: recipes, stages, the trainer and its checkpoints."""
