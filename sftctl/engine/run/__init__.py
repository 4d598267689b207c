"""What accompanies a run: who is told, what stops it, what can happen to its machine, and the best value so far."""
