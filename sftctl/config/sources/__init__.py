"""One file a kind of source; each reads it into a Layer whose every leaf knows its origin."""
