"""Attention statistics by kernels of Triton: one pass over keys for all that are asked; a second one for mass received.

`method="triton"` of `interp.attention.measure`, and what "auto" takes on a GPU where it can. README.md derives and
bounds what it does.
"""
