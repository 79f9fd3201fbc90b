"""Attention of a bridge: statistics from its dense patterns, and what its heads write, from the output projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.attention import Call, CausalMask, Statistic
from interp.attention.naive import answer
from interp.backends.hf.read_norms import read_norm
from interp.errors import NotFinite
from interp.numerics import exactly, input_dtype


class DenseStatistics:
    """Answers to questions about attention, from each layer's pattern as it was used (edits included).

    The definitions are those of `interp.attention.naive`, the oracle of the fused implementation.
    """

    def __init__(self, questions: Mapping[str, Statistic], layers: tuple[int, ...], mask: Bool[Tensor, "batch pos"]):
        self.questions, self.layers, self.mask = questions, layers, mask
        self.answers: dict[int, dict[str, Tensor]] = {}
        for question in questions.values():
            question.check(batch=mask.shape[0], n_query=mask.shape[1], n_key=mask.shape[1])

    def ask(
        self,
        layer: int,
        pattern: Float[Tensor, "batch head query key"],
        visible: Bool[Tensor, "batch query key"],
        slot: Float[Tensor, "batch head query"] | None,
    ) -> None:
        """Answer every question for one layer; `slot` is the probability of a sink logit's extra slot."""
        if layer not in self.layers:
            return
        if not bool(torch.isfinite(pattern).all()):
            raise NotFinite(f"layer {layer}: attention is not finite: NaN or infinite weights, or overflow")
        batch, heads, n, _ = pattern.shape

        def is_visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return visible[row, query, key]

        mask = CausalMask(batch, n, n, predicate=is_visible, padding=self.mask, device=pattern.device)
        empty = pattern.new_zeros(batch, heads, n, 1)
        sinks = None if slot is None else pattern.new_zeros(heads)
        lse = pattern.new_zeros(batch, heads, n) if slot is None else -slot.float().log()
        call = Call(empty, empty, empty, 1.0, mask, None, sinks)  # only the mask and the slot are looked at
        self.answers[layer] = {k: answer(q, pattern.float(), call, lse).cpu() for k, q in self.questions.items()}


def slot_left(
    slot: Float[Tensor, "batch head query"] | None,
    pattern: Float[Tensor, "batch head query key"],
    used: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head query"] | None:
    """Probability of the sink slot behind edits of the pattern: what a changed row leaves, 1 - sum_j p_ij."""
    if slot is None or used is pattern:
        return slot
    left = (1 - used.float().sum(-1)).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where((used == pattern).all(-1), slot.float(), left)


class HeadOutputs:
    """Write of each head to the stream: z_h W_O[h], through the frozen norm behind attention where there is one."""

    def __init__(self, attention: Any, norm_after: nn.Module | None, heads: int, d_value: int) -> None:
        self.projection = attention.o.original_component
        self.w_o = output_matrix(self.projection, heads, d_value)
        self.norm = None if norm_after is None else read_norm(norm_after, self.w_o.shape[-1])

    def __call__(self, z: Float[Tensor, "batch pos head d_value"]) -> Float[Tensor, "batch pos head d_model"]:
        """Every head's write."""
        out = torch.einsum("bphd,hdm->bphm", z, self.w_o.to(z))
        if self.norm is None:
            return out
        whole = self.projection(z.flatten(-2))
        gain = self.norm.linear(out.float()) / self.norm.divisor(whole.float())[:, :, None]
        return gain.to(z)


def output_matrix(projection: nn.Module, heads: int, d_value: int) -> Float[Tensor, "head d_value d_model"]:
    """W_O of each head, read off the output projection by feeding it a basis."""
    weight = next(projection.parameters())
    basis = torch.eye(heads * d_value, device=weight.device, dtype=input_dtype(projection))
    matrix = exactly(projection, basis[None])[0] - exactly(projection, torch.zeros_like(basis[None, :1]))[0]
    return matrix.float().unflatten(0, (heads, -1))
