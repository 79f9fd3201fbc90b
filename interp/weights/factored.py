"""`FactoredMatrix`: a product of two thin matrices; norms, SVD and entries from the factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from interp.errors import BackendError

BLOCK = 2**24  # entries of the product that may exist at one time (64 MiB in float32)
DENSE = 2**28  # entries above which `dense` refuses (1 GiB in float32)


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

    def __getitem__(self, index: int | slice) -> FactoredMatrix:
        """Matrix (or matrices) of a batch, along its first axis."""
        if len(self.shape) < 3:
            raise BackendError(f"a single {list(self.shape)} matrix has no batch to index; see row()")
        batch = self.shape[:-2]
        left = self.left.expand(*batch, *self.left.shape[-2:])
        right = self.right.expand(*batch, *self.right.shape[-2:])
        return FactoredMatrix(left[index], right[index])

    def __matmul__(self, other: Tensor | FactoredMatrix) -> FactoredMatrix:
        """Product with a matrix on the right; the thinner inner size is kept."""
        if isinstance(other, Tensor):
            return FactoredMatrix(self.left, self.right @ other)
        inner = self.right @ other.left
        if other.rank < self.rank:
            return FactoredMatrix(self.left @ inner, other.right)
        return FactoredMatrix(self.left, inner @ other.right)

    def __rmatmul__(self, other: Tensor) -> FactoredMatrix:
        """Product with a matrix on the left."""
        return FactoredMatrix(other @ self.left, self.right)

    def __mul__(self, factor: float | int) -> FactoredMatrix:
        """Scalar multiple."""
        return FactoredMatrix(self.left * factor, self.right)

    __rmul__ = __mul__

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


def positivity(eigenvalues: Complex[Tensor, "*batch rank"]) -> Float[Tensor, "*batch"]:
    """Sum of Re(lambda) over sum of |lambda|, in [-1, 1]; 0 where every eigenvalue is 0."""
    size = eigenvalues.abs().sum(-1)
    ratio = eigenvalues.real.sum(-1) / size.clamp(min=torch.finfo(torch.float64).tiny)
    return ratio.float()


def _triangle(x: Tensor) -> Tensor:
    """R of x = Q R, when x is tall; x itself when that is no saving."""
    return torch.linalg.qr(x, mode="r").R if x.shape[-2] > x.shape[-1] else x
