"""Tokens of a prompt, one BOS rule for all backends: ids, texts, positions, next tokens, the loss."""
