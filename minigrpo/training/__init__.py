"""A run's life: what it starts from, its folder, checkpoints and the supervised warm-up."""
