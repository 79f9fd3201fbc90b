"""Shapes in signatures are checked while tests run: in a function's first calls of every test."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from interp.plots.attention import pair_map


@pytest.mark.parametrize("again", range(2))
def test_a_wrong_shape_is_an_error_in_every_test(again):
    with pytest.raises(TypeCheckError, match="pair_map"):
        pair_map(np.zeros(3), ["a", "b", "c"])


def test_a_wrong_type_is_one_too():
    with pytest.raises(TypeCheckError):
        pair_map([[0.0]], ["a"])
