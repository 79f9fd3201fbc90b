"""Attention scores by component of the query's stream and of the key's."""

from __future__ import annotations

import pytest
import torch
from tiny_models import SPANNING, ragged, tiny
from tolerance import assert_equal_to_rounding
from torch.testing import assert_close

from interp.decompose import decompose, score_parts
from interp.errors import BackendError, SiteError


@pytest.mark.parametrize("name", SPANNING)
def test_parts_sum_to_the_scores_of_the_pattern(name):
    """Head 6 shares its keys in grouped-query models; prompts are padded."""
    model, batch = tiny(name), ragged(24, "left")
    parts = score_parts(model, batch, "L1H6", query=-2)
    assert parts.error < 1e-5
    assert_equal_to_rounding(parts.values.sum((0, 1)), parts.scores)
    pattern = model.run(batch, capture=["L1H6.pattern"])["L1H6.pattern"][:, -2].log()
    capped = parts.scores if model.info.softcap is None else model.info.softcap * (parts.scores / 3.0).tanh()
    seen = parts.mask & pattern.isfinite()  # softmax: scores but for a constant of the query
    for b in range(len(pattern)):
        one, other = pattern[b, seen[b]], capped[b, seen[b]]
        assert_close(one - one[0], other - other[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_part_is_the_quadratic_form_of_two_components(name):
    model, batch = tiny(name), ragged(20, "unpadded")
    parts = score_parts(model, batch, "L1H6", query=15, key=4)
    weights, stream = model.weights(), decompose(model, batch, layer=0, position=None)
    qk = weights.qk(1, 6, offset=11, fold_norm=True).dense() * weights[1].scale
    x = stream.vectors / weights[1].norm.divisor(stream.residual)
    want = torch.einsum("abm,mn,cbn->acb", x[:, :, 15], qk, x[:, :, 4])
    assert parts.terms[:-1] == stream.terms
    assert_close(parts.values[:-1, :-1, :, 0], want, rtol=1e-3, atol=1e-5)
    assert torch.equal(parts["L0H3", "embed"], parts.values[stream.names.index("L0H3"), 0])
    table = parts.table()
    assert len(table) == len(parts.terms) ** 2 * 3
    assert set(table["key"]) == {4}
    row = parts.top(1).iloc[0]
    size = parts[row["query_component"], row["key_component"]].mean()
    assert abs(row["value"] - float(size)) < 1e-5
    assert abs(float(size)) == pytest.approx(float(parts.values.mean((2, 3)).abs().max()), abs=1e-5)


def test_scores_refuse():
    with pytest.raises(SiteError, match="L0H9 is out of range; heads are 0 to 7"):
        score_parts(tiny("gpt2"), [[1, 2, 3]], "L0H9")
    with pytest.raises(BackendError, match="parts miss the scores by"):
        score_parts(tiny("gpt2"), [[1, 2, 3]], "L0H3", tolerance=0.0)
