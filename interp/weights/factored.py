"""`FactoredMatrix`: a product of two thin matrices; norms, SVD, parts and sums from the factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from interp.errors import BackendError

BLOCK = 2**24  # entries of the product that may exist at one time (64 MiB in float32)
DENSE = 2**28  # entries above which `dense` refuses (1 GiB in float32)
Index = int | slice | Sequence[int] | Tensor | None


@dataclass(frozen=True, eq=False)
class FactoredMatrix:
    """M = left @ right, of rank at most `rank`; leading axes, such as heads, are a batch.

    A d_vocab x d_vocab or d_model x d_model circuit is never built: products, norms and spectra come from the factors,
    in O((m + n) rank^2).
    """

    left: Float[Tensor, "... m rank"]
    right: Float[Tensor, "... rank_ n"]  # the sizes are compared below, with an error that says more

    def __post_init__(self) -> None:
        """Check that the factors meet."""
        if self.left.ndim < 2 or self.right.ndim < 2 or self.left.shape[-1] != self.right.shape[-2]:
            raise BackendError(
                f"factors of shapes {list(self.left.shape)} and {list(self.right.shape)} do not meet; "
                "expected [..., m, rank] and [..., rank, n]"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product."""
        batch = torch.broadcast_shapes(self.left.shape[:-2], self.right.shape[:-2])
        return (*batch, self.left.shape[-2], self.right.shape[-1])

    @property
    def rank(self) -> int:
        """Inner size: the rank unless the factors are degenerate."""
        return self.left.shape[-1]

    @property
    def T(self) -> FactoredMatrix:  # noqa: N802 - the field's name
        """Transpose."""
        return FactoredMatrix(self.right.mT, self.left.mT)

    def __repr__(self) -> str:
        """Shape and rank."""
        return f"FactoredMatrix({' x '.join(map(str, self.shape))}, rank {self.rank})"

    @property
    def ndim(self) -> int:
        """Axes of the product: 2, and those of the batch."""
        return len(self.shape)

    def __getitem__(self, index: Any) -> Any:
        """Part of the product, one index an axis, axes of the batch first: `f[3, 5]`, `f[[1, 2]]`, `f[..., 2:9, :]`.

        Each axis is indexed on its own, as in TransformerLens: `f[ids, ids]` is the len(ids) x len(ids) part of M, not
        its diagonal. Integers for a row or a column take that axis away, and what is left is a tensor; slices and lists
        leave a FactoredMatrix.

        Raises:
            BackendError: more indices than axes, one that is none, or out of range.
        """
        places = [_plain(x) for x in (index if isinstance(index, tuple) else (index,))]
        holes = [i for i, x in enumerate(places) if x is Ellipsis]
        if len(holes) > 1 or len(places) - len(holes) > self.ndim:
            raise BackendError(f"{len(places)} indices for a matrix of shape {list(self.shape)}")
        fill: list[Any] = [slice(None)] * (self.ndim - len(places) + len(holes))
        at = holes[0] if holes else len(places)
        places = [*places[:at], *fill, *places[at + len(holes) :]]
        batch = self.shape[:-2]
        left, right = (x.expand(*batch, *x.shape[-2:]) for x in (self.left, self.right))
        axis = 0
        for place, size in zip(places[:-2], batch, strict=True):
            left, right = (_take(x, axis, place, size) for x in (left, right))
            axis += not isinstance(place, int)
        row, column = places[-2:]
        left = _take(left, left.ndim - 2, row, self.shape[-2], keep=True)
        right = _take(right, right.ndim - 1, column, self.shape[-1], keep=True)
        part = FactoredMatrix(left, right)
        if not isinstance(row, int) and not isinstance(column, int):
            return part
        dense = part.dense()
        dense = dense[..., 0] if isinstance(column, int) else dense
        return dense.select(-1 if isinstance(column, int) else -2, 0) if isinstance(row, int) else dense

    def __matmul__(self, other: Tensor | FactoredMatrix) -> Any:
        """Product with a matrix on the right (the thinner inner size is kept), or with a vector (a tensor then)."""
        if not isinstance(other, Tensor | FactoredMatrix):
            raise BackendError(f"a product with a FactoredMatrix takes a tensor or another one; got {_kind(other)}")
        size = other.shape[-2] if other.ndim > 1 else other.shape[-1]
        if size != self.shape[-1]:
            raise BackendError(f"a product of shapes {list(self.shape)} and {list(other.shape)} does not meet")
        if isinstance(other, Tensor):
            product = self.right @ other
            return self.left @ product if other.ndim == 1 else FactoredMatrix(self.left, product)
        inner = self.right @ other.left
        if other.rank < self.rank:
            return FactoredMatrix(self.left @ inner, other.right)
        return FactoredMatrix(self.left, inner @ other.right)

    def __rmatmul__(self, other: Tensor) -> Any:
        """Product with a matrix or a vector on the left."""
        if not isinstance(other, Tensor) or other.ndim < 1 or other.shape[-1] != self.shape[-2]:
            raise BackendError(f"a product of {_kind(other)} with a matrix of shape {list(self.shape)} does not meet")
        return (other @ self.left) @ self.right if other.ndim == 1 else FactoredMatrix(other @ self.left, self.right)

    def __mul__(self, factor: float | int | Tensor) -> FactoredMatrix:
        """Multiple by a number, or by one for each matrix of the batch."""
        if isinstance(factor, Tensor):
            if factor.ndim > self.ndim - 2:
                raise BackendError(
                    f"factors of shape {list(factor.shape)} for a batch {list(self.shape[:-2])}: one a matrix; for "
                    "one a row or a column, multiply `left` or `right`"
                )
            return FactoredMatrix(self.left * factor[..., None, None], self.right)
        if not isinstance(factor, int | float):
            raise BackendError(
                f"a FactoredMatrix is multiplied by numbers, and by matrices with @; got {_kind(factor)}"
            )
        return FactoredMatrix(self.left * factor, self.right)

    __rmul__ = __mul__

    def __truediv__(self, factor: float | int | Tensor) -> FactoredMatrix:
        """Multiple by one over a number."""
        return self * (1 / factor)

    def __neg__(self) -> FactoredMatrix:
        """-M."""
        return self * -1

    def __add__(self, other: FactoredMatrix) -> FactoredMatrix:
        """M + N, with the factors of both side by side: [A, C] [B; D] = A B + C D, of rank at most the sum of ranks."""
        if isinstance(other, int | float) and other == 0:  # where `sum` begins
            return self
        if not isinstance(other, FactoredMatrix):
            raise BackendError(f"to a FactoredMatrix another one is added; got {_kind(other)}: add it to dense()")
        if self.shape[-2:] != other.shape[-2:]:
            raise BackendError(f"matrices of shapes {list(self.shape)} and {list(other.shape)} cannot be added")
        batch = torch.broadcast_shapes(self.shape[:-2], other.shape[:-2])
        (a, b), (c, d) = ([x.expand(*batch, *x.shape[-2:]) for x in (m.left, m.right)] for m in (self, other))
        return FactoredMatrix(torch.cat([a, c], -1), torch.cat([b, d], -2))

    __radd__ = __add__

    def __sub__(self, other: FactoredMatrix) -> FactoredMatrix:
        """M - N."""
        return self + (-other if isinstance(other, FactoredMatrix) else other)

    def sum(self, axis: int = 0) -> FactoredMatrix:
        """Sum over an axis of the batch, factors side by side: `weights.ov(3)[[1, 4]].sum()` is OV of heads 1 and 4.

        Raises:
            BackendError: no such axis of the batch.
        """
        batch = self.shape[:-2]
        if not 0 <= axis < len(batch):
            raise BackendError(f"no axis {axis} to sum over: the batch is {list(batch)}; rows and columns: dense()")
        left, right = (x.expand(*batch, *x.shape[-2:]) for x in (self.left, self.right))
        return FactoredMatrix(
            left.movedim(axis, -2).flatten(-2),  # ... m (axis rank)
            right.movedim(axis, -3).flatten(-3, -2),
        )

    def dense(self) -> Float[Tensor, "*batch m n"]:
        """The product itself.

        Raises:
            BackendError: it would hold more than 2^28 entries; ask for rows, or take `topk`.
        """
        size = torch.Size(self.shape).numel()
        if size > DENSE:
            shape = " x ".join(map(str, self.shape))
            raise BackendError(f"a dense {shape} matrix takes {size * 4 / 2**30:.1f} GiB; use rows(), topk() or svd()")
        return self.left @ self.right

    def row(self, index: int) -> Float[Tensor, "*batch n"]:
        """One row of M."""
        return self.rows(index, index + 1 or None)[..., 0, :]

    def rows(self, start: int, stop: int | None) -> Float[Tensor, "*batch some n"]:
        """Rows start..stop-1 of M."""
        return self.left[..., start:stop, :] @ self.right

    def diagonal(self) -> Float[Tensor, "*batch k"]:
        """M_ii = sum_r left_ir right_ri."""
        k = min(self.shape[-2:])
        return (self.left[..., :k, :] * self.right[..., :k].mT).sum(-1)

    def trace(self) -> Float[Tensor, "*batch"]:
        """Sum of the diagonal of a square M."""
        self._square("trace")
        return self.diagonal().sum(-1)

    def norm(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm of M, from the triangular factors of both."""
        return torch.linalg.matrix_norm(_triangle(self.left) @ _triangle(self.right.mT).mT)

    def eigenvalues(self) -> Complex[Tensor, "*batch rank"]:
        """Eigenvalues of a square M that can differ from zero: those of right @ left, rank x rank, in float64.

        With an inner size above the matrix's own, the surplus are zeros.
        """
        self._square("eigenvalues")
        return torch.linalg.eigvals(self.right.double() @ self.left.double())

    def svd(
        self,
    ) -> tuple[Float[Tensor, "*batch m k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k n"]]:
        """U, S, Vh with M = U diag(S) Vh, from QR of the factors and the SVD of the k x k core; S falls."""
        q_left, r_left = torch.linalg.qr(self.left)
        q_right, r_right = torch.linalg.qr(self.right.mT)
        u, s, vh = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
        return q_left @ u, s, vh @ q_right.mT

    def singular_values(self) -> Float[Tensor, "*batch k"]:
        """Singular values of M, falling."""
        return torch.linalg.svdvals(_triangle(self.left) @ _triangle(self.right.mT).mT)

    def positivity(self) -> Float[Tensor, "*batch"]:
        """Sum of Re(lambda) over sum of |lambda|, in [-1, 1]; 0 where every eigenvalue is 0."""
        return positivity(self.eigenvalues())

    def topk(
        self, k: int, *, largest: bool = True, block: int = BLOCK
    ) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
        """The k largest (or smallest) entries of each row and their columns; at most `block` entries exist at once."""
        m, n = self.shape[-2:]
        if len(self.shape) != 2 or not 0 < k <= n:
            raise BackendError(f"top {k} of each row of a {list(self.shape)} matrix: expected one matrix and k <= {n}")
        step = max(1, block // n)
        parts = [self.rows(a, min(a + step, m)).topk(k, largest=largest) for a in range(0, m, step)]
        return torch.cat([f.values for f in parts]), torch.cat([f.indices for f in parts])

    def _square(self, what: str) -> None:
        m, n = self.shape[-2:]
        if m != n:
            raise BackendError(f"{what} of a {m} x {n} matrix: only square matrices have one")


def _kind(value: object) -> str:
    """What a value is, in an error."""
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _plain(place: Any) -> Any:
    """An index, with numbers of numpy and torch as integers."""
    return int(place) if getattr(place, "ndim", None) == 0 and hasattr(place, "__index__") else place


def _take(x: Tensor, axis: int, place: Index, size: int, *, keep: bool = False) -> Tensor:
    """What an index takes along an axis; `keep` leaves an integer's axis in place."""
    if isinstance(place, slice):
        if place.step is None or place.step > 0:
            return x[(slice(None),) * axis + (place,)]
        place = list(range(*place.indices(size)))
    many = not isinstance(place, int)
    try:
        ids = torch.as_tensor(place if many else [place], device=x.device)
        ids = ids.nonzero()[:, 0] if ids.dtype == torch.bool and len(ids) == size else ids
        if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError
    except (TypeError, ValueError, RuntimeError) as error:
        raise BackendError(f"an index is an integer, a slice or a list of integers; got {place!r:.40}") from error
    if len(ids) and not (-size <= int(ids.min()) and int(ids.max()) < size):
        raise BackendError(f"index {place!r:.40} is out of range for an axis of {size}")
    taken = x.index_select(axis, ids.long() % size)
    return taken if many or keep else taken.select(axis, 0)


def positivity(eigenvalues: Complex[Tensor, "*batch rank"]) -> Float[Tensor, "*batch"]:
    """Sum of Re(lambda) over sum of |lambda|, in [-1, 1]; 0 where every eigenvalue is 0."""
    size = eigenvalues.abs().sum(-1)
    ratio = eigenvalues.real.sum(-1) / size.clamp(min=torch.finfo(torch.float64).tiny)
    return ratio.float()


def _triangle(x: Tensor) -> Tensor:
    """R of x = Q R, when x is tall; x itself when that is no saving."""
    return torch.linalg.qr(x, mode="r").R if x.shape[-2] > x.shape[-1] else x
