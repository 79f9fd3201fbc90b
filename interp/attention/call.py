"""`Call`: the inputs of one layer's attention."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interp.attention.masks import CausalMask
from interp.attention.windows import Window
from interp.shapes import Bool, Float, Int, brief


@dataclass(frozen=True)
class Call:
    """Inputs of attention for one layer, after rotary embedding and QK-norm.

    The score of query i and key j is `s_ij = cap(scale * q_i . k_j + bias_ij)` where visible, `cap(x) = c tanh(x / c)`
    under a soft-cap c and the identity without; `p_ij = exp(s_ij - L_i)`, `L_i = log(sum_j exp s_ij + exp sink)`.
    Keys and values stay in their `kv_head` groups: query head h reads group `h // (head / kv_head)`.

    `share` is what part of attention is softmax: the weight of a visible key is `share * p_ij + (1 - share)`, 1 in all
    models but those made to tell constant attention from softmax; such rows sum to more than one. `bias` is what some
    models add to the score of each pair (T5's relative positions); it is as large as the pattern of one prompt.
    `windows` are limits to what some heads of some prompts see, each with the heads that it is for; a head has one or
    none.
    `relu`: no softmax at all, the weight of a visible key is `max(s_ij, 0)`; rows sum to anything from 0 on.
    """

    query: Float[Tensor, "batch head query d_head"]
    key: Float[Tensor, "batch kv_head key d_head"]
    value: Float[Tensor, "batch kv_head key d_value"]
    scale: float
    mask: CausalMask
    softcap: float | None = None
    sinks: Float[Tensor, " head"] | None = None
    share: float = 1.0
    bias: Float[Tensor, "#batch #head query key"] | None = None
    relu: bool = False
    windows: tuple[tuple[Window, Bool[Tensor, "batch head"]], ...] = ()

    __repr__ = brief

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def softmax_share(self) -> builtins.float:
        """What part of attention is softmax: `share`, or 0 where weights are the ReLU of scores."""
        return 0.0 if self.relu else self.share

    def float(self) -> Call:
        """The same call in float32 (or float64 if it already is): statistics are never taken in half precision."""
        if self.query.dtype in (torch.float32, torch.float64):
            return self
        return self.to(torch.float32)

    def to(self, dtype: torch.dtype) -> Call:
        """The same call with every tensor in `dtype`."""
        sinks = None if self.sinks is None else self.sinks.to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        q, k, v = (x.to(dtype) for x in (self.query, self.key, self.value))
        return replace(self, query=q, key=k, value=v, sinks=sinks, bias=bias)

    def biases(self, rows: Int[Tensor, " pair"], heads: Int[Tensor, " pair"], queries: slice) -> Tensor | float:
        """What is added to the scores of some heads of batch rows, [pair query key]; 0 where nothing is."""
        if self.bias is None:
            return 0.0
        size = (*self.query.shape[:2], *self.bias.shape[2:])
        return self.bias.expand(size)[rows, heads, queries]

    def weight(self, p: Tensor, visible: Tensor) -> Tensor:
        """Attention weights of probabilities: `share * p + (1 - share)` at visible keys, p itself where share is 1."""
        return p if self.share == 1.0 else self.share * p + (1.0 - self.share) * visible.to(p.dtype)

    def cap(self, score: Tensor) -> Tensor:
        """Soft-cap the scaled scores, elementwise."""
        return score if self.softcap is None else self.softcap * torch.tanh(score / self.softcap)

    def shared(self, x: Float[Tensor, "batch kv_head key d"]) -> Float[Tensor, "batch head key d"]:
        """Every query head's view of a per-group tensor (a copy where groups are larger than one)."""
        return x if self.group == 1 else x.repeat_interleave(self.group, dim=1)
