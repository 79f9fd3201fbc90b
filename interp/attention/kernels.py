"""Fused softmax attention that also returns its log-sum-exp, on whatever device the tensors are.

PyTorch computes the log-sum-exp in every fused kernel but drops it in `scaled_dot_product_attention`; the
kernels themselves hand it over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from interp.shapes import Float

aten = torch.ops.aten
TILE = 1 << 21
"""Numbers of the pattern formed at a time: 8 MiB in float32."""


def flash(
    query: Float[Tensor, "batch head query d"],
    key: Float[Tensor, "batch kv_head key d"],
    value: Float[Tensor, "batch kv_head key d_value"],
    *,
    scale: float,
    causal: bool = False,
    bias: Float[Tensor, "batch #head query key"] | None = None,
) -> tuple[Float[Tensor, "batch head query d_value"], Float[Tensor, "batch head query"]]:
    """softmax(scale q k^T + bias) v and its log-sum-exp (float32 or wider), in O(n) memory without a bias.

    `causal` aligns query 0 with key 0. Widths are padded as the kernel at hand demands. Groups need not be expanded.
    """
    held = value.requires_grad and not (query.requires_grad or key.requires_grad)
    if held and bias is None and torch.is_grad_enabled() and not query.is_cuda and query.dtype.itemsize >= 4:  # noqa: PLR2004
        return _HeldPattern.apply(query, key, value, scale, causal)  # pyright: ignore[reportReturnType]
    return _flash(query, key, value, scale, causal, bias)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    width = value.shape[-1]
    if query.is_cuda:
        output, lse = _cuda(query, key, value, scale, causal, bias)
    else:
        output, lse = _cpu(query, key, value, scale, causal, bias)
    return output[..., :width], lse[..., : query.shape[2]]


class _HeldPattern(torch.autograd.Function):
    """Attention where values alone have a gradient: dv_j = sum_i p_ij dz_i, without those of queries and keys.

    The kernel's own backward pass works out all three, of every row. `gradient_of_values` is several times faster, and
    much more where one token is asked about.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool
    ) -> tuple[Tensor, Tensor]:
        output, lse = _flash(query, key, value, scale, causal, None)
        ctx.save_for_backward(query, key, lse)
        ctx.scale, ctx.causal = scale, causal
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor, None, None]:
        query, key, lse = ctx.saved_tensors
        return None, None, gradient_of_values(query, key, lse, grads[0], ctx.scale, ctx.causal), None, None


def gradient_of_values(
    query: Float[Tensor, "batch head query d"],
    key: Float[Tensor, "batch kv_head key d"],
    lse: Float[Tensor, "batch head query"],
    grad: Float[Tensor, "batch head query d_value"],
    scale: float,
    causal: bool,
) -> Float[Tensor, "batch kv_head key d_value"]:
    """sum_i exp(s_ij - L_i) g_i for each key j, summed over the heads of its group; p_ij is held.

    Rows of the pattern are formed a tile at a time, those alone that have a gradient; once for all of the batch where
    it is of copies of one prompt.
    """
    batch, heads, kv, n_key = len(query), query.shape[1], key.shape[1], key.shape[2]
    rows = grad.abs().amax((0, 1, 3)).nonzero()[:, 0]
    copies = batch > 1 and all(bool((x == x[:1]).all()) for x in (query, key))
    if copies:
        query, key, lse = query[:1], key[:1], lse[:1]
        grad = grad.movedim(0, -2).flatten(-2)[None]
    total = grad.new_zeros(len(query), kv, n_key, grad.shape[-1])
    for some in rows.split(max(1, TILE // (len(query) * heads * n_key))) if len(rows) else ():
        seen = int(some[-1]) + 1 if causal else n_key
        q, g, level = (
            x[:, :, some].unflatten(1, (kv, -1)).flatten(2, 3) for x in (query, grad, lse[..., None].to(query))
        )
        score = (q * scale) @ key[:, :, :seen].mT - level
        if causal:
            later = torch.arange(seen, device=some.device) > some[:, None]
            score = score.masked_fill_(later.repeat(heads // kv, 1), -torch.inf)
        total[:, :, :seen] += score.exp_().mT @ g
    return total[0].unflatten(-1, (batch, -1)).movedim(-2, 0) if copies else total


def _cpu(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    d = max(q.shape[-1], v.shape[-1])
    q, k, v = (pad(x, (0, d - x.shape[-1])) if x.shape[-1] < d else x for x in (q, k, v))
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)


def _cuda(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    half = q.dtype in (torch.float16, torch.bfloat16)
    d = -(-max(q.shape[-1], v.shape[-1]) // 8) * 8  # both kernels want widths in multiples of eight
    q, k, v = (pad(x, (0, d - x.shape[-1])) if x.shape[-1] < d else x for x in (q, k, v))
    if half and bias is None and d <= 256:
        output, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
        return output, lse
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    if bias is not None:
        bias = _aligned(bias.expand(*q.shape[:3], k.shape[2]))
    output, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, 0.0, causal, scale=scale)
    return output, lse


def _aligned(bias: Tensor) -> Tensor:
    """The memory-efficient kernel reads a bias whose rows start at multiples of eight elements."""
    n = bias.shape[-1]
    return pad(bias, (0, -n % 8))[..., :n]
