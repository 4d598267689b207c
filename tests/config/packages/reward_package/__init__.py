"""An example of a package that adds a group of settings of its own to sftctl."""
