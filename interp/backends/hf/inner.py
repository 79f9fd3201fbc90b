"""Norms of q, k and v inside attention, fitted to what they do to random inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.backends.hf.anatomy import AttentionPart
from interp.backends.hf.feed import Feeder
from interp.backends.hf.read_norms import forgets_scale, read_eps, read_norm
from interp.backends.hf.watch import visible_modules
from interp.errors import BackendError
from interp.numerics import device_of, input_dtype, wide
from interp.weights.norms import HeadNorm, Norm

ROWS = 64  # random inputs a norm is fitted to
LATER = 5  # a position other than 0, to see which norms come after rotary


@contextlib.contextmanager
def bypassed(norms: Mapping[nn.Module, Norm | None]) -> Iterator[None]:
    """Inside, these modules hand on what they are given; on a latent, with their gain."""

    def hook(norm: Norm | None) -> Any:
        def through(module: nn.Module, args: tuple, output: object) -> Tensor:
            return args[0] if norm is None else norm.to(args[0].device).linear(args[0]).to(args[0].dtype)

        return through

    handles = [module.register_forward_hook(hook(norm)) for module, norm in norms.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inner_norms(feeder: Feeder, part: AttentionPart, width: int) -> dict[nn.Module, Norm | None]:
    """Leaves that run inside the attention module before its attention call, keep the shape, and forget the scale.

    With each, the norm itself where it is of a latent from which q, or k and v, are made; None where it is of those.
    """
    sizes = {part.n_heads * part.d_head, part.n_kv_heads * part.d_head, part.n_kv_heads * part.d_value}
    norms: dict[nn.Module, Norm | None] = {}
    for leaf, (entry, shape) in _leaf_inputs(feeder, part, _leaves(part.module), width).items():
        same = shape == entry.shape and entry.is_floating_point()
        if same and _forgets_scale(leaf, entry.shape):
            size = entry[0].numel()
            own = size in sizes or (size in (part.d_head, part.d_value) and _of_one_head(feeder, part, leaf, width))
            norms[leaf] = None if own else read_norm(leaf, entry.shape[-1])
    return norms


def read_inner(
    feeder: Feeder, part: AttentionPart, norms: Mapping[nn.Module, Norm | None], width: int
) -> tuple[HeadNorm | None, HeadNorm | None, HeadNorm | None]:
    """Norms of q, k and v: for each None, or a norm over a head or over the whole projection, with its gains.

    Raises:
        BackendError: a norm of another form than gain * c(x) / sqrt(mean(c(x)^2) + eps) + bias.
    """
    if not norms:
        return None, None, None
    ranks = [len(norm.gain) for norm in norms.values() if norm is not None]
    rows = torch.randn(max([ROWS, *(2 * r for r in ranks)]), width, generator=torch.Generator().manual_seed(1))
    records = _leaf_inputs(feeder, part, [*norms], width)
    with bypassed(norms):
        raw = _qkv(feeder, part, rows)
    full = _qkv(feeder, part, rows)
    later = _after_rotary(feeder, part, [*norms], width)
    fits: list[HeadNorm | None] = [None, None, None]
    for i, name in enumerate(("queries", "keys", "values")):
        acting = [n for n in norms if not torch.equal(raw[i], _alone(feeder, part, norms, n, rows)[i])]
        what = f"layer {part.layer}: norm of {name}"
        of_latent = [n for n in acting if norms[n] is not None]
        if of_latent:
            if len(acting) > 1:
                raise BackendError(f"{what} and another of the latent that they are made of: not covered")
            latent = _inputs(feeder, part, acting[0], rows)
            fits[i] = _fit_latent(raw[i], full[i], latent, norms[acting[0]], what)
        elif acting:
            eps = read_eps(acting[0], tuple(records[acting[0]][0].shape[1:]))
            fits[i] = _fit(raw[i], full[i], eps, acting[0] in later, what)
    return fits[0], fits[1], fits[2]


def _qkv(feeder: Feeder, part: AttentionPart, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    call = feeder(part, rows)
    return call.q[:, 0], call.k[:, 0], call.v[:, 0]


def _alone(
    feeder: Feeder, part: AttentionPart, norms: Mapping[nn.Module, Norm | None], norm: nn.Module, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with one norm at work."""
    with bypassed({n: form for n, form in norms.items() if n is not norm}):
        return _qkv(feeder, part, rows)


def _leaves(module: nn.Module) -> list[nn.Module]:
    return [m for _, m in visible_modules(module) if m is not module and next(m.children(), None) is None]


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


def _of_one_head(feeder: Feeder, part: AttentionPart, norm: nn.Module, width: int) -> bool:
    """Whether a norm is at work on one head of q, k or v: each head has its own."""
    row = torch.randn(1, width, generator=torch.Generator().manual_seed(2))
    full = _qkv(feeder, part, row)
    with bypassed({norm: None}):
        without = _qkv(feeder, part, row)
    return sum(int((x != y).any(-1).sum()) for x, y in zip(full, without, strict=True)) <= 1


def _inputs(feeder: Feeder, part: AttentionPart, norm: nn.Module, rows: Tensor) -> Float[Tensor, "row rank"]:
    """What a norm takes of each row."""
    taken: list[Tensor] = []
    feeder.prepare((0,))
    handle = norm.register_forward_pre_hook(lambda _, args: taken.append(args[0].detach()))
    try:
        feeder(part, rows)
    finally:
        handle.remove()
    return wide(torch.cat([x.flatten(0, -2) for x in taken])).cpu()


def _fit_latent(
    raw: Float[Tensor, "row head d"],
    after: Float[Tensor, "row head d"],
    latent: Float[Tensor, "row rank"],
    norm: Norm | None,
    what: str,
) -> HeadNorm:
    """The norm of a latent as one of the heads that are made of it: some channels are divided by the latent's size."""
    assert norm is not None  # it is that of a latent: `inner_norms` has read it
    scaled = raw.double() / norm.divisor(latent).double()[:, :, None]
    bias, untouched = (after - scaled).mean(0), (after - raw.double()).abs().amax((0, 1))
    error = (after - scaled - bias).abs().amax((0, 1))
    divided = error < untouched
    bias = torch.where(divided, bias, 0.0)
    size = float(after.abs().max())
    centred = norm.linear(latent).double() / norm.gain.double()
    columns = raw.double()[..., divided].flatten(1)
    back = torch.linalg.pinv(torch.linalg.lstsq(centred, columns, driver="gelsd").solution)
    missed = (columns @ back - centred).abs().max() / centred.abs().max()
    if float(torch.where(divided, error, untouched).max()) > 1e-3 * size or float(missed) > 1e-3:
        raise BackendError(f"{what} is of a latent that cannot be told from them, so that there is no one matrix")
    full = torch.zeros(*raw.shape[1:], back.shape[1], dtype=back.dtype)
    full[:, divided] = back.unflatten(0, (raw.shape[1], -1))
    plain = HeadNorm.plain(raw.shape[1:], norm.eps, centred=False, whole=True, after_rotary=False)
    return replace(plain, bias=bias.float(), latent=full.flatten(0, 1).float(), divided=divided)


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
