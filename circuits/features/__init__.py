"""Circuits of dictionary features: attribution graphs of one prompt, exact in a model whose bends are held."""
