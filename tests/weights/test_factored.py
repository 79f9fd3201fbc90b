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
    assert_equal_to_rounding(matrix[torch.tensor(2)][0], matrix.dense()[2, 0])


INDICES = (
    2, (2, 3), (2, 3, 4), slice(1, 3), (slice(None), 1), (slice(None), slice(1, 4)), [0, 2], ([0, 2], [1, 1, 5]),
    (-1, -2), (..., 3), (1, ..., 3), (slice(None), slice(None), slice(None, None, 2)), (0, slice(None, None, -1)),
    (..., [1, 0], 2),
)  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_parts_of_a_factored_matrix_are_those_of_its_product(index):
    matrix = FactoredMatrix(torch.randn(4, 6, 2), torch.randn(2, 5))
    places = index if isinstance(index, tuple) else (index,)
    hole = places.index(...) if ... in places else len(places)
    places = [*places[:hole], *[slice(None)] * (3 - len(places) + (... in places)), *places[hole + 1 :]]
    want = matrix.dense()
    for axis, place in reversed(list(enumerate(places))):  # each axis on its own
        numbers = range(want.shape[axis])[place] if isinstance(place, slice) else place
        numbers = [numbers] if isinstance(numbers, int) else list(numbers)
        want = want.index_select(axis, torch.tensor(numbers) % want.shape[axis])
        want = want.squeeze(axis) if isinstance(place, int) else want
    ours = matrix[index]
    tensor = isinstance(places[1], int) or isinstance(places[2], int)
    assert isinstance(ours, torch.Tensor if tensor else FactoredMatrix)
    assert ours.shape == want.shape
    assert_equal_to_rounding(ours if tensor else ours.dense(), want)


def test_sums_of_factored_matrices():
    a, b = (
        FactoredMatrix(torch.randn(3, 9, 2), torch.randn(3, 2, 7)),
        FactoredMatrix(torch.randn(9, 4), torch.randn(4, 7)),
    )
    total = a + b
    assert (total.ndim, total.shape, total.rank) == (3, (3, 9, 7), 6)
    assert_equal_to_rounding(total.dense(), a.dense() + b.dense())
    assert_equal_to_rounding((b - a / 2).dense(), b.dense() - a.dense() / 2)
    assert_equal_to_rounding(sum([a[0], a[2]]).dense(), a.dense()[0] + a.dense()[2])
    assert_equal_to_rounding(a.sum().dense(), a.dense().sum(0))
    assert_equal_to_rounding((a * torch.tensor([1.0, -2.0, 0.5])).dense()[1], -2 * a.dense()[1])
    assert_equal_to_rounding(b @ torch.ones(7), b.dense().sum(1))
    assert_equal_to_rounding(torch.ones(9) @ b, b.dense().sum(0))
    assert a.sum().rank == 6
    deep = FactoredMatrix(torch.randn(2, 3, 4, 2), torch.randn(2, 1, 2, 5))
    assert_equal_to_rounding(deep.sum(1).dense(), deep.dense().sum(1))


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
    for wrong, reason in (
        (lambda: matrix[20_000], "index 20000 is out of range for an axis of 20000"),
        (lambda: matrix["L3"], "an index is an integer, a slice or a list of integers; got 'L3'"),
        (lambda: matrix[0, 0, 0], "3 indices for a matrix"),
        (lambda: matrix + torch.ones(2), r"another one is added; got a tensor of shape \[2\]"),
        (lambda: matrix * torch.ones(2), "one a matrix"),
        (lambda: matrix @ torch.ones(3, 3), "does not meet"),
        (lambda: matrix @ "L3", "takes a tensor or another one; got str"),
        (matrix.sum, "no axis 0 to sum over"),
    ):
        with pytest.raises(BackendError, match=reason):
            wrong()
