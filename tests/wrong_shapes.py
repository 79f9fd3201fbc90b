"""Calls with wrong shapes: part of the run that `test_shapes.py` makes, and of no other."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from interp.plots.attention import pair_map


def test_a_wrong_shape():
    with pytest.raises(TypeCheckError, match="pair_map"):
        pair_map(np.zeros(3), ["a", "b", "c"])


def test_a_wrong_type():
    with pytest.raises(TypeCheckError):
        pair_map([[0.0]], ["a"])
