"""Fused softmax attention that also returns its log-sum-exp, on whatever device the tensors are.

PyTorch computes the log-sum-exp in every fused kernel but drops it in `scaled_dot_product_attention`; the
kernels themselves hand it over.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from interp.shapes import Float

aten = torch.ops.aten


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
    width = value.shape[-1]
    if query.is_cuda:
        output, lse = _cuda(query, key, value, scale, causal, bias)
    else:
        output, lse = _cpu(query, key, value, scale, causal, bias)
    return output[..., :width], lse[..., : query.shape[2]]


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
