"""Weights as linear maps: matrices of heads, factored products, composition, norms, and how layers read and write."""
