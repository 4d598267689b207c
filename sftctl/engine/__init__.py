"""The training engine: torch, transformers, datasets."""
