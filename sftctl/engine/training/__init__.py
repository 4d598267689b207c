"""The loop and the step: batches in, losses, gradients and updates. No file, no screen, no configuration."""
