"""Many processes: started by torch's elastic launcher, joined, and with the weights divided among them."""
