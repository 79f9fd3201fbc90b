"""Figures of one's own arrays: every number in its cell, tokens as text, and what is no such array."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from interp.errors import SchemaError
from interp.plots import head_map, pattern_map, token_map, top_heads

TOKENS = ["<b>", " is", "\n"]
SHOWN = ["&lt;b&gt;", " is", "↵"]


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_a_map_of_heads_takes_numbers_by_layer_and_head(kind):
    heat = head_map(kind([[0.0, 1.0, -2.0], [3.0, 0.5, 0.25]]), unit="nats").data[0]
    assert_allclose(heat.z, [[0.0, 1.0, -2.0], [3.0, 0.5, 0.25]])
    assert heat.text[1][0] == "<b>L1H0</b><br>3 nats"
    best = top_heads(kind([[0.0, 1.0], [3.0, 0.5]]), 2)
    assert list(best.layout.yaxis.ticktext) == ["L1H0", "L0H1"]


def test_a_pattern_is_drawn_by_query_and_key_with_its_tokens():
    pattern = torch.tensor([[[1.0, 0, 0], [0.4, 0.6, 0], [0.2, 0.3, 0.5]], [[1.0, 0, 0], [1, 0, 0], [0, 0, 1]]])
    figure = pattern_map(pattern, TOKENS, names=["L0H1", "L2H3"])
    assert [note.text for note in figure.layout.annotations] == ["L0H1", "L2H3"]
    for heat, own in zip(figure.data, pattern.numpy(), strict=True):
        lower = np.tril_indices(3)
        assert_allclose(np.array(heat.z)[lower], own[lower], atol=1e-6)
        assert np.isnan(np.array(heat.z)[np.triu_indices(3, 1)]).all()  # later keys, of which nothing is said
    assert list(figure.layout.xaxis2.ticktext) == SHOWN
    assert figure.data[0].customdata[2][1] == "↵ looks at  is"
    signed = pattern_map(pattern[0] - pattern[1]).data[0]
    assert (signed.zmin, signed.zmax) == (-1.0, 1.0)


def test_values_stand_on_their_tokens():
    running, words = token_map(torch.tensor([1.0, -2.0, 3.0]), TOKENS, per_line=2).data
    assert_allclose(running.z, [[1, -2], [3, np.nan]])
    assert list(words.text) == [*SHOWN, ""]
    assert (list(words.x), list(words.y)) == ([0, 1, 0, 1], [0, 0, 1, 1])
    figure = token_map(np.arange(6).reshape(2, 3), TOKENS, names=["a", "b"])
    assert_allclose(figure.data[0].z, [[0, 1, 2], [3, 4, 5]])
    assert (list(figure.data[0].y), list(figure.layout.xaxis.ticktext)) == (["a", "b"], SHOWN)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: head_map(torch.zeros(4)), r"expected numbers \[layer head\]; got shape \(4,\)"),
        (lambda: head_map("x"), "got str 'x'"),
        (lambda: head_map(np.zeros((0, 3))), r"got shape \(0, 3\)"),
        (lambda: pattern_map(torch.zeros(65, 2, 2)), "65 patterns at once"),
        (lambda: pattern_map(torch.zeros(2, 3, 3), TOKENS[:2]), "2 tokens for 3 keys"),
        (lambda: pattern_map(torch.zeros(2, 3, 3), names=["a"]), "1 names for 2 patterns"),
        (lambda: token_map([1.0], "a"), "in a list"),
        (lambda: token_map([[1.0]], ["a"], names=["b", "c"]), "2 names for 1 rows"),
    ],
)
def test_what_is_no_such_array_is_refused(draw, message):
    with pytest.raises(SchemaError, match=message):
        draw()


def test_all_heads_of_a_large_layer_are_seen_at_a_glance():
    figure = pattern_map(torch.rand(32, 5, 5), unit="probability")
    assert len([trace for trace in figure.data if trace.type == "heatmap"]) == 32
    assert {(trace.zmin, trace.zmax) for trace in figure.data} == {(0, 1)}
    assert figure.layout.height < 900
