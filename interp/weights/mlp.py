"""`MLPWeights`: what one layer's neurons read and write."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from interp.shapes import brief
from interp.weights.norms import Norm


@dataclass(frozen=True, eq=False)
class MLPWeights:
    """One layer's MLP, in float32 on the CPU; row vectors.

    With x = `norm` of the stream (None: the stream itself) and f the activation, neurons (site `mlp_post`) are
    a = f(x W_in + b_in), or with a gate a = f(x W_gate + b_gate) * (x W_in + b_in); mlp_out = norm_after(a W_out +
    b_out). A residual multiplier is inside what stands last.
    """

    layer: int
    w_in: Float[Tensor, "d_model d_mlp"]
    w_gate: Float[Tensor, "d_model d_mlp"] | None
    w_out: Float[Tensor, "d_mlp d_model"]
    b_in: Float[Tensor, " d_mlp"]
    b_gate: Float[Tensor, " d_mlp"] | None
    b_out: Float[Tensor, " d_model"]
    norm: Norm | None
    norm_after: Norm | None

    __repr__ = brief

    def folded(self) -> MLPWeights:
        """The same MLP reading x / scale(x) of the stream, and writing before a frozen division.

        The gain (and LayerNorm's centring) before it goes into W_in and W_gate, its bias into theirs; the gain behind
        it into W_out and b_out. Divisors are what is left out.
        """
        m = self
        if m.norm is not None:
            n = m.norm
            m = replace(m, w_in=n.transpose(m.w_in.mT).mT, b_in=m.b_in + n.bias @ m.w_in, norm=None)
            if self.w_gate is not None and self.b_gate is not None:
                gate = n.transpose(self.w_gate.mT).mT
                m = replace(m, w_gate=gate, b_gate=self.b_gate + n.bias @ self.w_gate)
        if m.norm_after is not None:
            n = m.norm_after
            m = replace(m, w_out=n.linear(m.w_out), b_out=n.linear(m.b_out) + n.bias, norm_after=None)
        return m
