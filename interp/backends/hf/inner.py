"""Norms of q, k and v inside attention, fitted to what they do to random inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.backends.hf.anatomy import AttentionPart
from interp.backends.hf.feed import Feeder
from interp.backends.hf.read_norms import forgets_scale, read_eps
from interp.errors import BackendError
from interp.numerics import device_of, input_dtype
from interp.weights.norms import HeadNorm

ROWS = 64  # random inputs a norm is fitted to
LATER = 5  # a position other than 0, to see which norms come after rotary


@contextlib.contextmanager
def bypassed(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, these modules hand on what they are given."""
    handles = [norm.register_forward_hook(lambda module, args, output: args[0]) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inner_norms(feeder: Feeder, part: AttentionPart, width: int) -> tuple[nn.Module, ...]:
    """Leaves that run inside the attention module before its attention call, keep the shape, and forget the scale."""
    norms: list[nn.Module] = []
    for leaf, (entry, shape) in _leaf_inputs(feeder, part, _leaves(part.module), width).items():
        same = shape == entry.shape and entry.is_floating_point()
        if same and _forgets_scale(leaf, entry.shape):
            norms.append(leaf)
    return tuple(norms)


def read_inner(
    feeder: Feeder, part: AttentionPart, norms: Sequence[nn.Module], width: int
) -> tuple[HeadNorm | None, HeadNorm | None, HeadNorm | None]:
    """Norms of q, k and v: for each None, or a norm over a head or over the whole projection, with its gains.

    Raises:
        BackendError: a norm of another form than gain * c(x) / sqrt(mean(c(x)^2) + eps) + bias.
    """
    if not norms:
        return None, None, None
    rows = torch.randn(ROWS, width, generator=torch.Generator().manual_seed(1))
    records = _leaf_inputs(feeder, part, norms, width)
    with bypassed(norms):
        raw = _qkv(feeder, part, rows)
    full = _qkv(feeder, part, rows)
    later = _after_rotary(feeder, part, norms, width)
    fits: list[HeadNorm | None] = [None, None, None]
    for i, name in enumerate(("queries", "keys", "values")):
        acting = [n for n in norms if not torch.equal(raw[i], _alone(feeder, part, norms, n, rows)[i])]
        if acting:
            eps = read_eps(acting[0], tuple(records[acting[0]][0].shape[1:]))
            fits[i] = _fit(raw[i], full[i], eps, acting[0] in later, f"layer {part.layer}: norm of {name}")
    return fits[0], fits[1], fits[2]


def _qkv(feeder: Feeder, part: AttentionPart, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    call = feeder(part, rows)
    return call.q[:, 0], call.k[:, 0], call.v[:, 0]


def _alone(
    feeder: Feeder, part: AttentionPart, norms: Sequence[nn.Module], norm: nn.Module, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with one norm at work."""
    with bypassed([n for n in norms if n is not norm]):
        return _qkv(feeder, part, rows)


def _leaves(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if m is not module and next(m.children(), None) is None]


def _leaf_inputs(
    feeder: Feeder, part: AttentionPart, leaves: Sequence[nn.Module], width: int, position: int = 0
) -> dict[nn.Module, tuple[Tensor, torch.Size]]:
    """Input and shape of the output of each leaf that runs before attention, for one random token."""
    records: dict[nn.Module, tuple[Tensor, torch.Size]] = {}
    feeder.prepare((position,))  # by a pass of the whole model, whose tensors are not these

    def hook(module: nn.Module, args: tuple, output: object) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            records[module] = (args[0], output.shape)

    handles = [leaf.register_forward_hook(hook) for leaf in leaves]
    try:
        feeder(part, torch.randn(1, width, generator=torch.Generator().manual_seed(2)), (position,))
    finally:
        for handle in handles:
            handle.remove()
    return records


def _after_rotary(feeder: Feeder, part: AttentionPart, norms: Sequence[nn.Module], width: int) -> frozenset[nn.Module]:
    """Norms whose input changes with the position of the token."""
    if feeder.context is not None and feeder.context <= LATER:
        return frozenset()
    first, later = (_leaf_inputs(feeder, part, norms, width, position) for position in (0, LATER))
    return frozenset(n for n in norms if not torch.allclose(first[n][0], _last_token(later[n][0], first[n][0])))


def _last_token(x: Tensor, single: Tensor) -> Tensor:
    """The last token's part of a tensor; `single` is that of one token, and differs in the axis of positions if any."""
    for axis, (many, one) in enumerate(zip(x.shape, single.shape, strict=True)):
        if many != one:
            x = x.narrow(axis, many - one, one)
    return x


def _forgets_scale(leaf: nn.Module, shape: torch.Size) -> bool:
    """Whether four times the input gives the same output: a norm does, a linear map does not."""
    device = device_of(leaf) if list(leaf.parameters()) else None
    return forgets_scale(
        leaf, torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(device, input_dtype(leaf))
    )


def _fit(
    raw: Float[Tensor, "row head d"], after: Float[Tensor, "row head d"], eps: float, after_rotary: bool, what: str
) -> HeadNorm:
    """The norm that takes `raw` to `after`: per head or whole, centred or not, whichever form fits."""
    best: tuple[float, HeadNorm] | None = None
    target = after.double()
    for whole in (False, True):
        for centred in (False, True):
            plain = HeadNorm.plain(raw.shape[1:], eps, centred=centred, whole=whole, after_rotary=after_rotary)
            unit = plain(raw.double())
            deviation = unit - unit.mean(0)
            variance = deviation.square().sum(0)
            gain = (deviation * target).sum(0) / variance.where(variance > 0, torch.ones_like(variance))
            gain = gain.where(variance > 0, torch.ones_like(gain))
            bias = target.mean(0) - gain * unit.mean(0)
            error = float((gain * unit + bias - target).norm() / target.norm().clamp(min=1e-30))
            if best is None or error < best[0] / 10:  # with one head, "whole" fits as well: the first form stands
                best = error, plain.with_gain(gain.float(), bias.float())
    if best is None or best[0] > 1e-3:
        raise BackendError(f"{what} has another form than gain * x / sqrt(mean(x^2) + eps) + bias")
    return best[1]
