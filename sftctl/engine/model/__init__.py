"""The model: loading, isolated attention, adapters, the head. Each proves itself before step 1."""
