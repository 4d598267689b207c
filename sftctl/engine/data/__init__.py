"""The data path: rows -> rendered text with spans -> ids and labels -> bins -> plan -> batches. No torch here."""
