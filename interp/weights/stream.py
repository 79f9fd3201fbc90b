"""`Reads` and `Writes` of a layer: norms from the residual stream, linear maps to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.numerics import device_of, evaluating, exactly, input_dtype, transposed
from interp.shapes import brief
from interp.weights.norms import Norm


@dataclass(frozen=True, eq=False)
class Reads:
    """One layer's two reads.

    Attributes:
        attn, mlp: the norm in between; None where the stream is read as it is.
        parallel: both read the stream that enters the layer; otherwise the MLP reads what attention has added to.
        missing: why a kind of site does not exist here.
        whole: modules that, called one after another, make `mlp_out` of `mlp_in` but for `scale`; none where that is
            not so simple.
        scale: what the last of them is multiplied by.
    """

    attn: Norm | None
    mlp: Norm | None
    parallel: bool
    missing: Mapping[str, str]
    whole: tuple[nn.Module, ...] = ()
    scale: float = 1.0

    __repr__ = brief

    def mlp_of(self, mlp_in: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"] | None:
        """Write of the MLP for an input `mlp_in`, without a pass of the model; None where `whole` is empty."""
        if not self.whole:
            return None
        x = mlp_in.flatten(0, -2)[None]
        with evaluating(self.whole[0]):
            for module in self.whole:
                output = module(x)
                x = output if isinstance(output, Tensor) else output[0]
        return (x * self.scale if self.scale != 1.0 else x).view(mlp_in.shape)


@dataclass(frozen=True, eq=False)
class Write:
    """out = scale * norm(x W + b) for the input x of a projection: z of all heads, or an MLP's neurons.

    With the norm's divisor held at its value for some x, this is linear: out = (x / divisor) `matrix` + `bias`.
    """

    projection: nn.Module
    norm: Norm | None = None
    scale: float = 1.0

    def matrix(self, width: int) -> Float[Tensor, "width d_model"]:
        """W with gain, centring and multiplier folded in; float32 where the model is in half precision."""
        matrix = self.rows(width)
        return self.scale * (matrix if self.norm is None else self.norm.to(self._device).linear(matrix))

    def rows(self, width: int, at: Int[Tensor, " row"] | None = None) -> Float[Tensor, "row d_model"]:
        """Rows of W alone, before norm and multiplier; some of them, or all."""
        columns = torch.arange(width, device=self._device)
        at = columns if at is None else at.to(self._device)
        basis = (at[:, None] == columns).to(input_dtype(self.projection))
        return float32(exactly(self.projection, basis)) - self.rest(width)

    def rest(self, width: int) -> Float[Tensor, " d_model"]:
        """b alone, before norm and multiplier."""
        zero = torch.zeros(1, width, dtype=input_dtype(self.projection), device=self._device)
        return float32(exactly(self.projection, zero))[0]

    def pull_back(self, direction: Float[Tensor, "*batch d_model"], width: int) -> Float[Tensor, "*batch width"]:
        """`matrix` @ direction, the matrix not being formed: what each input adds along a direction of the stream."""
        along = float32(direction).to(self._device)
        along = along if self.norm is None else self.norm.to(self._device).transpose(along)
        x = torch.zeros(*along.shape[:-1], width, dtype=input_dtype(self.projection), device=self._device)
        return self.scale * float32(transposed(self.projection, x, along))

    def divisor(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch 1"]:
        """Divisor of the norm behind the projection at inputs x; ones without a norm."""
        if self.norm is None:
            return torch.ones_like(x[..., :1], dtype=torch.promote_types(x.dtype, torch.float32))
        return self.norm.divisor(float32(exactly(self.projection, x.to(self._device, input_dtype(self.projection)))))

    def bias(self, width: int, divisor: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch d_model"]:
        """Constant part of the write, b and the norm's own bias, at a divisor."""
        bias = self.rest(width).expand(*divisor.shape[:-1], -1)
        if self.norm is None:
            return bias * self.scale
        norm = self.norm.to(self._device)
        return (norm.linear(bias) / divisor.to(bias) + norm.bias) * self.scale

    @property
    def _device(self) -> torch.device:
        return device_of(self.projection)


@dataclass(frozen=True, eq=False)
class Writes:
    """One layer's two writes; None where there is no such map, `missing` saying why by kind of site.

    With `attn_out` among what is missing, the layer is not told apart at all. `rest` says what the layer adds beside
    the two (attention to a source, a state space); empty where it adds nothing else.
    """

    attn: Write | None
    mlp: Write | None
    missing: Mapping[str, str]
    rest: str = ""

    __repr__ = brief


def float32(x: Tensor) -> Tensor:
    """In float32, or in float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
