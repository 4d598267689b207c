"""Where bytes lie: offloaded activations, what the process keeps, and the plan of the peak before anything loads."""
