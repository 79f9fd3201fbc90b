"""The default backend: a transformers model, observed and hooked through its attention interface."""
