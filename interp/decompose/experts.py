"""`expert_units`: neurons of an MLP that has no single output projection (a mixture of experts), found by gradients.

Whatever its code, such an MLP is a sum of a_i W_out[i]: rows of parameters, each times a number of the token. For a
vector u, the gradient of u . m with respect to these rows is a (x) u, and with respect to no other parameter: so the
parameters are told, and the numbers read. An expert's weight in the mixture is part of its neurons' a.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import BackendError, SiteError
from interp.numerics import wide
from interp.shapes import brief
from interp.weights.stream import Reads

SLACK = 1e-3
"""How far a gradient may be from a (x) u, relative to its largest entry; and the sum of neurons from the write. Four
roundings where the parameters' are coarser."""
ROUND, PATIENCE = 8, 4
"""Random tokens at a time that show which parameters are written, and rounds that show nothing new before it ends."""


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
        """Each row's expert among those of this parameter: the axis before the neurons', where there is one."""
        sizes = [n for i, n in enumerate(self.parameter.shape) if i != self.axis]
        per_expert = sizes[-1] if sizes else 1
        return torch.arange(max(1, self.parameter.numel() // self.parameter.shape[self.axis])) // per_expert


def expert_units(reads: Reads, mlp_in: Float[Tensor, "*token d_model"], layer: int) -> ExpertUnits:
    """The split of an MLP's write at each token into neurons, by one gradient a token.

    Neurons are numbered parameter by parameter as the module lists them, expert by expert within one.

    Args:
        reads: of the layer.
        mlp_in: what the MLP takes.
        layer: named in errors.

    Raises:
        SiteError: the MLP cannot be run by itself, or nothing in it writes rows of a parameter.
        BackendError: the neurons do not sum to what the MLP writes.
    """
    if not reads.whole:
        raise SiteError(f"neurons of layer {layer}: its MLP cannot be run by itself, so that nothing shows its neurons")
    x = mlp_in.flatten(0, -2).detach()
    u = _probe(x, layer)
    rows = _written_rows(reads, x, u)
    weights, biases = [r for r in rows if not r.bias], [r for r in rows if r.bias]
    if not weights:
        raise SiteError(f"neurons of layer {layer}: no parameter of its MLP is written to the stream row by row")
    own = [r.parameter for r in (*weights, *biases)]
    numbers, out = [], []
    with _wanting_gradients(own), torch.enable_grad():
        for token in x:
            m, gradients = _gradients(reads, token, u, own)
            numbers.append([r.numbers(g, u) for r, g in zip((*weights, *biases), gradients, strict=True)])
            out.append(m)
    shape, scale = mlp_in.shape[:-1], reads.scale  # gradients are of the scaled write, rows of the bare one
    a = torch.stack([torch.cat(n[: len(weights)]) for n in numbers]) / scale
    matrix = torch.cat([r.matrix() for r in weights]) * scale
    bias = torch.zeros_like(wide(x))
    if biases:
        bias = torch.stack([torch.cat(n[len(weights) :]) for n in numbers]) @ torch.cat([r.matrix() for r in biases])
    whole = torch.cat(out)
    error = float((a @ matrix + bias - whole).norm() / whole.norm().clamp(min=torch.finfo(whole.dtype).tiny))
    if not error <= _slack(weights[0].parameter):
        raise BackendError(
            f"neurons of layer {layer} miss what its MLP writes by {error:.1e} of it: not all were found"
        )
    expert, first = [], 0
    for r in weights:
        expert.append(r.experts() + first)
        first = int(expert[-1].max()) + 1
    return ExpertUnits(a.unflatten(0, shape), matrix, bias.unflatten(0, shape), torch.cat(expert))


def silenced(reads: Reads, mlp_in: Float[Tensor, "*token d_model"], at: Int[Tensor, " neuron"]) -> Reads:
    """The MLP without some of its neurons: a copy in which their rows are zero. `mlp_in` is of the size it takes."""
    x = mlp_in.flatten(0, -2)[:1].detach()
    rows = [r for r in _written_rows(reads, x.expand(2, -1), _probe(x, 0)) if not r.bias]
    copies = copy.deepcopy(reads.whole)
    pairs = zip(
        (p for m in reads.whole for p in m.parameters()), (p for m in copies for p in m.parameters()), strict=True
    )
    twin = {id(p): q for p, q in pairs}
    first = 0
    for r in rows:
        own = twin[id(r.parameter)].data.movedim(r.axis, -1)
        count = own[..., 0].numel()
        local = at[(at >= first) & (at < first + count)] - first
        own[torch.unravel_index(local.to(own.device), own.shape[:-1])] = 0.0
        first += count
    return replace(reads, whole=copies)


_rows_of: WeakKeyDictionary[nn.Module, list[_Rows]] = WeakKeyDictionary()


def _written_rows(reads: Reads, x: Tensor, u: Tensor) -> list[_Rows]:
    """Parameters with a gradient a (x) u at every token; of one module, those with fewer axes are biases.

    Random tokens of the size of those at hand show them, so that it does not depend on the prompts which experts are
    numbered; until `PATIENCE` rounds of tokens have shown no parameter more.
    """
    if reads.whole[0] in _rows_of:
        return _rows_of[reads.whole[0]]
    modules = dict.fromkeys(m for top in reads.whole for m in top.modules())
    pairs = [
        (m, p) for m in modules for p in m.parameters(recurse=False) if p.is_floating_point() and len(u) in p.shape
    ]
    parameters = list(dict.fromkeys(p for _, p in pairs))
    generator, size = torch.Generator().manual_seed(0), x.float().square().mean().sqrt()
    axes: dict[nn.Parameter, set[int]] = {}
    idle = 0
    with _wanting_gradients(parameters), torch.enable_grad():
        while idle < PATIENCE and parameters:
            before = len(axes)
            for token in torch.randn(ROUND, len(u), generator=generator):
                _, gradients = _gradients(reads, (token * float(size)).to(x), u, parameters)
                for p, g in zip(parameters, gradients, strict=True):
                    if bool(g.any()):
                        own = {k for k, n in enumerate(p.shape) if n == len(u) and _direct(wide(g), k, u, _slack(p))}
                        axes[p] = axes.get(p, own) & own
            idle = 0 if len(axes) > before else idle + 1
    found = [(m, _Rows(p, min(axes[p]), False)) for m, p in pairs if axes.get(p)]
    widest = {id(m): max(r.parameter.ndim for own, r in found if own is m) for m, _ in found}
    rows = [replace(r, bias=r.parameter.ndim == 1 or r.parameter.ndim < widest[id(m)]) for m, r in found]
    _rows_of[reads.whole[0]] = rows
    return rows


def _gradients(
    reads: Reads, token: Float[Tensor, " d_model"], u: Tensor, parameters: list[nn.Parameter]
) -> tuple[Tensor, list[Tensor]]:
    """m, and d (u . m) / d parameter, at one token."""
    dtype = min((p.dtype for p in parameters), key=lambda d: d.itemsize)  # a router may be in a finer one
    out = reads.mlp_of(token[None].to(dtype))
    assert out is not None  # `whole` is not empty
    m = wide(out)
    return m.detach(), list(torch.autograd.grad((m @ u).sum(), parameters, allow_unused=True, materialize_grads=True))


def _probe(x: Float[Tensor, "token d_model"], seed: int) -> Float[Tensor, " d_model"]:
    return torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(seed)).to(x)


def _direct(grad: Tensor, axis: int, u: Tensor, slack: float) -> bool:
    rows = grad.movedim(axis, -1)
    rest = rows - (rows @ u)[..., None] * u / u.square().sum()
    return float(rest.abs().max()) <= slack * float(rows.abs().max())


def _slack(parameter: Tensor) -> float:
    return max(SLACK, 4 * torch.finfo(parameter.dtype).eps)


@contextmanager
def _wanting_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Parameters take gradients inside; then as before."""
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p, wanted in zip(parameters, before, strict=True):
            p.requires_grad_(wanted)
