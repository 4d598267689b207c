"""A state to disk and back, whole or not at all: checkpoints, and the final model."""
