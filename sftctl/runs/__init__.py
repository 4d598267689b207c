"""The run directory and all that is written to it. No torch here."""
