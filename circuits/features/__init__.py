"""Circuits by way of dictionaries: attribution graphs of one prompt, and heads told apart by codes of their outputs."""
