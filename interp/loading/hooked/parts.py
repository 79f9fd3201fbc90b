"""Norms and MLPs of a HookedTransformer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from interp.loading.hooked.config import HookedConfig


class Norm(nn.Module):
    """gain * c(x) / sqrt(mean(c(x)^2) + eps) + bias, in float32 or wider; c takes off the mean where `centred`.

    Without `gains` ("Pre": they were folded into the next matrix) gain and bias stand at 1 and 0 and are not trained.
    """

    def __init__(self, width: int, eps: float, *, centred: bool, gains: bool) -> None:
        super().__init__()
        self.eps, self.centred = eps, centred
        self.weight = nn.Parameter(torch.ones(width), requires_grad=gains)
        self.bias = nn.Parameter(torch.zeros(width), requires_grad=gains) if centred else None

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The normed stream, in the dtype of x."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        wide = self.weight * wide / (wide.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return (wide if self.bias is None else wide + self.bias).to(x.dtype)


def norm_of(
    config: HookedConfig, kind: str | None = None, *, width: int | None = None, gains: bool | None = None
) -> nn.Module:
    """A norm of the config's kind, or of another; `nn.Identity` in a model without norms."""
    kind = config.norm if kind is None else kind
    if kind is None:
        return nn.Identity()
    gains = config.norm_gains if gains is None else gains
    return Norm(width or config.hidden_size, config.norm_eps, centred=kind == "LN", gains=gains)


def solu(x: Float[Tensor, "*batch neuron"]) -> Float[Tensor, "*batch neuron"]:
    """x * softmax(x) over neurons (Elhage et al. 2022)."""
    return x * x.softmax(-1)


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation of GELU with tanh."""
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
    "gelu": functional.gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "silu": functional.silu,
    "swish": functional.silu,
    "solu": solu,
}
"""Activations by the names TransformerLens gives them; "solu_ln" is "solu" with a LayerNorm behind it."""


class MLP(nn.Module):
    """act(x W_in + b_in) W_out + b_out, or with a gate (act(x W_gate) * (x W_in) + b_in) W_out + b_out."""

    def __init__(self, config: HookedConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.activation or ""]
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False) if config.gated else None
        self.in_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=not config.gated)
        self.gated_bias = nn.Parameter(torch.zeros(config.intermediate_size)) if config.gated else None
        gains = config.norm_neurons == "LN"
        neurons = config.norm_neurons is not None
        self.ln = norm_of(config, "LN", width=config.intermediate_size, gains=gains) if neurons else nn.Identity()
        self.out_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What the MLP adds to the stream."""
        if self.gate_proj is None:
            neurons = self.act(self.in_proj(x))
        else:
            neurons = self.act(self.gate_proj(x)) * self.in_proj(x) + self.gated_bias
        return self.out_proj(self.ln(neurons))
