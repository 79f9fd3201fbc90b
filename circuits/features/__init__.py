"""Circuits by way of features: heads told apart by the discrete codes of their outputs."""
