"""Dense scores of a few heads of a few batch rows at a time, where a pattern is captured or edited.

A pair is one head of one batch row; nothing is computed for the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from interp.attention.call import Call
from interp.shapes import Bool, Float, Int

TILE = 1 << 24  # scores held at a time


def query_spans(call: Call, pairs: int) -> Iterator[slice]:
    """Query rows in pieces whose scores for so many pairs fit in a tile."""
    step = max(1, TILE // max(1, pairs * call.mask.n_key))
    for first in range(0, call.mask.n_query, step):
        yield slice(first, min(first + step, call.mask.n_query))


def pair_scores(
    call: Call, rows: Int[Tensor, " pair"], heads: Int[Tensor, " pair"], span: slice
) -> tuple[Float[Tensor, "pair query key"], Bool[Tensor, "pair query key"]]:
    """s_ij of some pairs and query rows in float32 or wider, -inf where not visible, and what is visible."""
    wide = torch.promote_types(call.query.dtype, torch.float32)
    query, key = call.query[rows, heads, span].to(wide), call.key[rows, heads // call.group].to(wide)
    visible = call.mask.tile(rows, span, slice(0, call.mask.n_key))
    score = call.cap(call.scale * query @ key.mT + call.biases(rows, heads, span))
    return score.masked_fill(~visible, -torch.inf), visible


def pair_values(call: Call, rows: Int[Tensor, " pair"], heads: Int[Tensor, " pair"]) -> Float[Tensor, "pair key d"]:
    """Values that each pair reads."""
    return call.value[rows, heads // call.group]
