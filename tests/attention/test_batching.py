"""Padding, batch order and batch size change no answer."""

from __future__ import annotations

import pytest
import torch
from tiny_models import (
    MOST,
    first_token,
    ragged,
    tiny,
)
from tolerance import assert_equal_to_rounding

from interp.attention import Distance, Entropy, KeyMass, Mean, Offset, SumSquares
from interp.batch import Batch


@pytest.fixture(params=MOST)
def model(request):
    return tiny(request.param)


def table(model, batch):
    """[layer, prompt, head, column]: averages over each prompt's real rows."""
    asked = {
        "previous": Mean(Offset(1)),
        "stripe": Mean(Offset(7)),
        "first": Mean(KeyMass(first_token(batch))),
        "entropy": Mean(Entropy()),
        "squares": Mean(SumSquares()),
        "distance": Mean(Distance()),
    }
    answers = model.attention(batch, asked)
    return torch.stack([answers[name] for name in asked], dim=-1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side):
    batch = ragged(45, side, lengths=(45, 30, 9, 30))
    alone = [table(model, Batch.of(row[real][None])) for row, real in zip(batch.ids, batch.mask, strict=True)]
    assert_equal_to_rounding(table(model, batch), torch.cat(alone, dim=1))


def test_batch_order_and_size_change_nothing(model):
    batch = ragged(30, "unpadded", lengths=(30,) * 5)
    whole = table(model, batch)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_equal_to_rounding(table(model, Batch.of(batch.ids[order])), whole[:, order])
    parts = [table(model, Batch.of(part)) for part in batch.ids.split(2)]
    assert_equal_to_rounding(torch.cat(parts, dim=1), whole)


def test_later_tokens_change_nothing(model):
    batch = ragged(30, "unpadded")
    other = Batch.of(torch.cat([batch.ids[:, :20], batch.ids[:, 20:].flip(1)], dim=1))
    asked = {"H": Entropy(), "previous": Offset(1)}
    before, after = model.attention(batch, asked), model.attention(other, asked)
    for name in asked:
        assert_equal_to_rounding(before[name][..., :20], after[name][..., :20], equal_nan=True)
