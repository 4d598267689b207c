"""sftctl: one typed, layered configuration becomes a fine-tuning run that can be proven."""
