"""The tolerance lets rounding pass, and nothing else."""

import numpy as np
import pytest
import torch
from tolerance import assert_equal_to_rounding, rounding

EPS = torch.finfo(torch.float32).eps
VALUES = torch.linspace(-3, 5, 24).view(4, 6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_noise_passes_and_a_hundred_times_as_much_fails(scale):
    x = VALUES * scale
    noise = 2 * EPS * 5 * scale * torch.randn_like(x).clamp(-3, 3)
    assert_equal_to_rounding(x + noise, x)
    with pytest.raises(AssertionError):
        assert_equal_to_rounding(x + 100 * noise, x)
    one = x.clone()
    one[2, 3] += 100 * EPS * 5 * scale
    with pytest.raises(AssertionError, match="head 3"):
        assert_equal_to_rounding(one, x, msg="head 3")


def test_a_sum_in_another_order_passes():
    terms = np.random.default_rng(0).normal(size=(500, 4096)).astype(np.float32)
    for depth in (64, 4096):
        forwards, backwards = (np.cumsum(terms[:, :depth][:, ::step], axis=1)[:, -1] for step in (1, -1))
        assert (forwards != backwards).any()
        assert_equal_to_rounding(forwards, backwards, depth=depth)


def test_the_depth_and_the_dtype_are_what_the_tolerance_is_made_of():
    assert rounding(VALUES, depth=256) == pytest.approx(2 * rounding(VALUES, depth=64))
    assert rounding(VALUES, dtype=torch.float64) == pytest.approx(2.0**-29 * rounding(VALUES))
    assert rounding(VALUES) == pytest.approx(32 * EPS * 5)


def test_arrays_tables_and_numbers_are_compared_too():
    off = VALUES.double().numpy() + 1e-6
    assert_equal_to_rounding(off, VALUES)
    assert_equal_to_rounding(5.000001, 5)
    for far in (off + 1e-4, off[:, :5]):
        with pytest.raises(AssertionError):
            assert_equal_to_rounding(far, VALUES)
    with pytest.raises(AssertionError):
        assert_equal_to_rounding(off, VALUES.double(), dtype=torch.float64)
    with pytest.raises(AssertionError):  # as torch.testing has it: a tensor of another dtype is another result
        assert_equal_to_rounding(VALUES.double(), VALUES)


def test_nan_is_equal_where_that_is_said():
    x = VALUES.clone()
    x[0, 0] = torch.nan
    assert_equal_to_rounding(x, x, equal_nan=True)
    for actual, expected, equal_nan in ((x, x, False), (VALUES, x, True), (x, VALUES, True)):
        for of in (torch.Tensor.clone, torch.Tensor.numpy):
            with pytest.raises(AssertionError):
                assert_equal_to_rounding(of(actual), of(expected), equal_nan=equal_nan)


def test_infinity_is_no_yardstick():
    x = VALUES.clone()
    x[0, 0] = torch.inf
    assert_equal_to_rounding(x, x)
    with pytest.raises(AssertionError):
        assert_equal_to_rounding(x + 1e-3, x)


def test_what_should_be_zero_needs_a_scale():
    zero, noise = np.zeros(3), np.full(3, 1e-7)
    with pytest.raises(AssertionError):
        assert_equal_to_rounding(noise, zero)
    assert_equal_to_rounding(noise, zero, scale=1.0)


@pytest.mark.parametrize(("dtype", "depth"), [(torch.bfloat16, 64), (torch.float16, 64), (torch.float32, 10**9)])
def test_a_tolerance_that_tells_nothing_is_refused(dtype, depth):
    with pytest.raises(ValueError, match="would tell nothing"):
        rounding(VALUES, dtype=dtype, depth=depth)
