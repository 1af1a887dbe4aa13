"""Training: the world model, and the shipped encoder."""
