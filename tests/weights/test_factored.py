"""A matrix of two factors is its product: spectra, entries, products, without the big matrix."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_equal_to_rounding
from torch.testing import assert_close

from interp.errors import BackendError
from interp.weights.factored import FactoredMatrix

SHAPES = {
    "tall": (30, 4, 20),
    "wide": (20, 4, 30),
    "square": (25, 6, 25),
    "over-full": (5, 8, 5),
    "batch": (3, 12, 4, 12),
}


@pytest.fixture(params=SHAPES)
def factored(request):
    *batch, m, r, n = SHAPES[request.param]
    return FactoredMatrix(torch.randn(*batch, m, r), torch.randn(*batch, r, n))


def test_a_factored_matrix_is_its_product(factored):
    dense = factored.left @ factored.right
    assert factored.shape == dense.shape
    assert_equal_to_rounding(factored.dense(), dense)
    assert_equal_to_rounding(factored.T.dense(), dense.mT)
    assert_equal_to_rounding(factored.row(3), dense[..., 3, :])
    assert_equal_to_rounding(factored.row(-1), dense[..., -1, :])
    assert_equal_to_rounding(factored.rows(1, 4), dense[..., 1:4, :])
    assert_equal_to_rounding(factored.diagonal(), dense.diagonal(dim1=-2, dim2=-1))
    assert_close(factored.norm(), torch.linalg.matrix_norm(dense), rtol=1e-4, atol=1e-4)
    assert_equal_to_rounding((2 * factored).dense(), 2 * dense)


def test_spectra_of_a_factored_matrix_are_those_of_its_product(factored):
    dense = factored.dense()
    u, s, vh = factored.svd()
    k = s.shape[-1]
    assert k <= min(*dense.shape[-2:], factored.rank)
    want = torch.linalg.svdvals(dense)
    assert_close(s, want[..., :k], rtol=1e-4, atol=1e-4)
    assert_close(factored.singular_values()[..., :k], want[..., :k], rtol=1e-4, atol=1e-4)
    assert_close(u @ (s[..., None] * vh), dense, rtol=1e-4, atol=1e-4)
    assert_close(u.mT @ u, torch.eye(k).expand(*s.shape[:-1], k, k), rtol=0, atol=1e-4)
    if dense.shape[-1] != dense.shape[-2]:
        with pytest.raises(BackendError, match="only square matrices"):
            factored.eigenvalues()
        with pytest.raises(BackendError, match="trace of a"):
            factored.trace()
        return
    ours, full = factored.eigenvalues(), torch.linalg.eigvals(dense.double())
    for power in (1, 2, 3):  # power sums say that the nonzero eigenvalues are the same, in whatever order
        size = float(ours.abs().max() ** power)
        assert_close(ours.pow(power).sum(-1), full.pow(power).sum(-1), rtol=1e-3, atol=1e-3 * size)
    assert_close(factored.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1), rtol=1e-4, atol=1e-4)


def test_products_of_factored_matrices():
    a, b = FactoredMatrix(torch.randn(9, 2), torch.randn(2, 8)), FactoredMatrix(torch.randn(8, 3), torch.randn(3, 7))
    x, y = torch.randn(8, 5), torch.randn(6, 9)
    assert_equal_to_rounding((a @ b).dense(), a.dense() @ b.dense())
    assert_equal_to_rounding((b.T @ a.T).dense(), b.dense().T @ a.dense().T)
    assert (a @ b).rank == (b.T @ a.T).rank == 2
    assert_equal_to_rounding((a @ x).dense(), a.dense() @ x)
    assert_equal_to_rounding((y @ a).dense(), y @ a.dense())


def test_heads_of_a_batch():
    matrix = FactoredMatrix(torch.randn(4, 6, 2), torch.randn(2, 5))
    assert matrix.shape == (4, 6, 5)
    assert_equal_to_rounding(matrix[2].dense(), matrix.dense()[2])
    with pytest.raises(BackendError, match="has no batch to index"):
        matrix[2][0]


@pytest.mark.parametrize("block", [1, 70, 10**6])
@pytest.mark.parametrize("largest", [True, False])
def test_top_entries_of_each_row_in_blocks(block, largest):
    matrix = FactoredMatrix(torch.randn(13, 4), torch.randn(4, 29))
    values, columns = matrix.topk(5, largest=largest, block=block)
    want = matrix.dense().topk(5, largest=largest)
    assert_equal_to_rounding(values, want.values)
    assert_close(columns, want.indices)


def test_factored_matrices_refuse():
    with pytest.raises(BackendError, match="do not meet"):
        FactoredMatrix(torch.randn(4, 3), torch.randn(2, 4))
    matrix = FactoredMatrix(torch.randn(20_000, 1), torch.randn(1, 20_000))
    with pytest.raises(BackendError, match="20000 x 20000 matrix takes 1.5 GiB; use rows"):
        matrix.dense()
    with pytest.raises(BackendError, match="top 0 of each row"):
        matrix.topk(0)
