"""`expert_units`: the neurons of an MLP that has no single output projection (a mixture of experts), found by gradients.

Whatever its code, such an MLP is a sum of a_i W_out[i]: rows of parameters, each times a number of the token. For a
vector u, the gradient of u . m with respect to these rows is a (x) u, and with respect to no other parameter: so the
parameters are told, and the numbers read. An expert's weight in the mixture is part of its neurons' a.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import SiteError
from interp.numerics import wide
from interp.shapes import brief
from interp.weights.stream import Reads

SLACK = 1e-3
"""How far a gradient may be from a (x) u, relative to its largest entry."""


@dataclass(frozen=True, eq=False)
class ExpertUnits:
    """m = activations @ matrix + bias, for each token.

    Attributes:
        activations: of each neuron: what its row of `matrix` is multiplied by, an expert's weight included; 0 where the
            token is not sent to its expert.
        matrix: what each neuron writes.
        bias: the rest of the write: the experts' own biases, times their weights.
        expert: whose a neuron is; experts that all tokens share count on behind the others.
    """

    activations: Float[Tensor, "*token neuron"]
    matrix: Float[Tensor, "neuron d_model"]
    bias: Float[Tensor, "*token d_model"]
    expert: Int[Tensor, " neuron"]

    __repr__ = brief


@dataclass(frozen=True, eq=False)
class _Rows:
    """A parameter whose rows are written; `axis` is the one along the stream, `bias` that they are no neurons'."""

    parameter: nn.Parameter
    axis: int
    bias: bool

    def matrix(self) -> Float[Tensor, "row d_model"]:
        return wide(self.parameter.detach()).movedim(self.axis, -1).flatten(0, -2)

    def numbers(self, grad: Tensor, u: Float[Tensor, " d_model"]) -> Float[Tensor, " row"]:
        return (wide(grad).movedim(self.axis, -1).reshape(-1, len(u)) @ u) / u.square().sum()

    def experts(self) -> Int[Tensor, " row"]:
        """Number of each row's expert among those of this parameter: the axis before the neurons', where there is one."""
        sizes = [n for i, n in enumerate(self.parameter.shape) if i != self.axis]
        per_expert = sizes[-1] if sizes else 1
        return torch.arange(max(1, self.parameter.numel() // self.parameter.shape[self.axis])) // per_expert


def expert_units(reads: Reads, mlp_in: Float[Tensor, "*token d_model"], layer: int) -> ExpertUnits:
    """The split of an MLP's write at each token into neurons, by one gradient a token.

    Args:
        reads: of the layer.
        mlp_in: what the MLP takes.
        layer: named in errors.

    Raises:
        SiteError: the MLP cannot be run by itself, or nothing in it writes rows of a parameter.
    """
    if not reads.whole:
        raise SiteError(f"neurons of layer {layer}: its MLP cannot be run by itself, so that nothing shows its neurons")
    x = mlp_in.flatten(0, -2).detach()
    u = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(layer)).to(x)
    with _wanting_gradients(reads.whole) as parameters, torch.enable_grad():
        gradients = [_gradients(reads, token, u, parameters) for token in x]
        rows = _rows(reads, x, u, parameters, gradients)
    weights = [r for r in rows if not r.bias]
    if not weights:
        raise SiteError(f"neurons of layer {layer}: no parameter of its MLP is written to the stream row by row")
    index = {id(p): i for i, p in enumerate(parameters)}

    def numbers(of: list[_Rows]) -> Tensor:
        per_token = [torch.cat([r.numbers(g[index[id(r.parameter)]], u) for r in of]) for g in gradients]
        return torch.stack(per_token).unflatten(0, mlp_in.shape[:-1])

    expert, first = [], 0
    for r in weights:
        expert.append(r.experts() + first)
        first = int(expert[-1].max()) + 1
    biases = [r for r in rows if r.bias]
    bias = numbers(biases) @ torch.cat([r.matrix() for r in biases]) if biases else torch.zeros_like(mlp_in)
    matrix = torch.cat([r.matrix() for r in weights]) * reads.scale
    scale = reads.scale  # the gradients are of the scaled write, the rows of the bare one
    return ExpertUnits(numbers(weights) / scale, matrix, bias, torch.cat(expert))


def _gradients(reads: Reads, token: Tensor, u: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """d (u . m) / d parameter at one token."""
    out = reads.mlp_of(token[None])
    assert out is not None  # `whole` is not empty
    return list(torch.autograd.grad((wide(out) @ u).sum(), parameters, allow_unused=True, materialize_grads=True))


def _rows(
    reads: Reads, x: Tensor, u: Tensor, parameters: list[nn.Parameter], gradients: list[list[Tensor]]
) -> list[_Rows]:
    """Parameters with a gradient a (x) u at every token; of one module, those with fewer axes are biases."""
    found: list[tuple[nn.Module, _Rows]] = []
    for module in dict.fromkeys(m for top in reads.whole for m in top.modules()):
        for parameter in module.parameters(recurse=False):
            at = next((i for i, p in enumerate(parameters) if p is parameter), None)
            if at is None:
                continue
            own = [wide(g[at]) for g in gradients if bool(g[at].any())]
            axes = [
                k for k, n in enumerate(parameter.shape) if n == len(u) and own and all(_direct(g, k, u) for g in own)
            ]
            if axes:
                found.append((module, _Rows(parameter, axes[0], False)))
    widest = {id(m): max(r.parameter.ndim for own, r in found if own is m) for m, _ in found}
    return [
        _Rows(r.parameter, r.axis, r.parameter.ndim == 1 or r.parameter.ndim < widest[id(module)])
        for module, r in found
    ]


def _direct(grad: Tensor, axis: int, u: Tensor) -> bool:
    rows = grad.movedim(axis, -1)
    rest = rows - (rows @ u)[..., None] * u / u.square().sum()
    return float(rest.abs().max()) <= SLACK * float(rows.abs().max())


@contextmanager
def _wanting_gradients(modules: tuple[nn.Module, ...]) -> Iterator[list[nn.Parameter]]:
    """Parameters of the modules, all of which take gradients inside; then as before."""
    parameters = list(dict.fromkeys(p for m in modules for p in m.parameters() if p.is_floating_point()))
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    try:
        yield parameters
    finally:
        for p, wanted in zip(parameters, before, strict=True):
            p.requires_grad_(wanted)
