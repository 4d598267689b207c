"""The command line: one file a command; render.py alone draws."""
