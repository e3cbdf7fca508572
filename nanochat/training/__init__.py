"""Training: one loop for every stage that changes weights, its checkpoints, its guards and its processes."""
