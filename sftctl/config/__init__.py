"""The configuration layer: sources -> layers -> one strict, frozen Bundle. Knows no torch, no numpy."""
