"""Attention statistics without attention matrices: ask for a number, never for the pattern.

    from interp.attention import Mean, Offset, measure

`statistics` says what can be asked, `naive` answers densely (the oracle), `fused` answers from fused attention and its
log-sum-exp in O(n) memory, `streamed` with one pass over tiles of scores, `triton` with kernels of our own, `flex` from
FlexAttention; `hook` puts any of them inside a transformers model.
The derivations are in README.md beside this file. Needs torch and transformers, nothing else.
"""

from interp.attention._measure import METHODS, measure, methods_used
from interp.attention.call import Call
from interp.attention.hook import Recorder, StopForward, current_recorder, intercept, number_layers, set_recorder
from interp.attention.masks import CausalMask
from interp.attention.statistics import (
    ByDistance,
    Distance,
    Entropy,
    KeyMass,
    Mean,
    Offset,
    Pairs,
    Received,
    Rows,
    Statistic,
    SumSquares,
    TopKeys,
    span_mass,
)
from interp.attention.windows import Window, WindowMask

__all__ = [
    "METHODS",
    "ByDistance",
    "Call",
    "CausalMask",
    "Distance",
    "Entropy",
    "KeyMass",
    "Mean",
    "Offset",
    "Pairs",
    "Received",
    "Recorder",
    "Rows",
    "Statistic",
    "StopForward",
    "SumSquares",
    "TopKeys",
    "Window",
    "WindowMask",
    "current_recorder",
    "intercept",
    "measure",
    "methods_used",
    "number_layers",
    "set_recorder",
    "span_mass",
]
