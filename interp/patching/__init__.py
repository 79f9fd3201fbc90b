"""Activation patching and node attribution: what one activation of another run does to the metric."""
