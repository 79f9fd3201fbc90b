"""Shares that keys receive: the closed form of uniform attention, dense patterns, padding, windows; kinds of keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from probe_cases import blind, eager, resting
from tiny_models import ragged, tiny

import interp
from interp.batch import Batch
from interp.errors import NotApplicable
from probes.sinks.places import places, random_keys, shares, uniform_shares

DENSE = 1e-5


@pytest.mark.parametrize(("length", "first"), [(16, None), (64, 0.0741), (128, 0.0424), (256, 0.0239), (1024, 0.0073)])
def test_uniform_attention_gives_the_first_token_its_harmonic_share(length, first):
    position = np.arange(length)[None]
    found, seen = uniform_shares(position, np.array([length]), window=None, causal=True)
    assert abs(found[0, 0] - (1 / np.arange(1, length + 1)).sum() / length) < 1e-12
    assert first is None or round(found[0, 0], 4) == first
    assert seen[0].tolist() == list(range(length, 0, -1))
    both, all_see = uniform_shares(position, np.array([length]), window=None, causal=False)
    assert_allclose(both, 1 / length)
    assert (all_see == length).all()


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt_oss"])
@pytest.mark.parametrize("side", ["unpadded", "left", "right"])
def test_blind_heads_give_every_key_its_uniform_share(architecture, side):
    model = blind(architecture)
    if architecture == "gpt_oss":  # queries have a bias, and the slot takes a share of its own
        for name, parameter in model.torch_module.named_parameters():
            if "q_proj" in name:
                parameter.data.zero_()
            if name.endswith("sinks"):
                parameter.data.fill_(-1e4)
    found = shares(model, ragged(33, side))
    expected = np.broadcast_to(found.uniform[:, :, None], found.alpha.shape)
    assert_allclose(found.alpha, expected, atol=1e-6)
    assert (np.isnan(found.alpha).all(2) == (found.position < 0)[:, None]).all()
    assert_allclose(
        found.of(found.at(0)), np.broadcast_to(found.uniform_of(found.at(0)), found.alpha.shape[:3]), atol=1e-6
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_shares_are_those_of_dense_eager_patterns(architecture, side):
    model, batch = tiny(architecture), ragged(33, side)
    dense, found = eager(model, batch), shares(model, batch)
    for b, mask in enumerate(batch.mask.numpy()):
        rows = mask.nonzero()[0]
        for i, window in enumerate(model.info.windows):
            for k in rows:
                queries = rows[(rows >= k) & (rows - k < (window or 99))]
                assert_allclose(found.alpha[b, i, :, k], dense[i, b, :, queries, k].mean(0), atol=DENSE)
                uniform = np.mean([1 / min(window or 99, (rows <= q).sum()) for q in queries])
                assert abs(found.uniform[b, i, k] - uniform) < 1e-9


def test_a_set_of_keys_is_measured_over_the_queries_that_see_its_first():
    model, batch = tiny("llama"), ragged(20, "left")
    dense, found = eager(model, batch), shares(model, batch)
    keys = found.at(3) | found.at(5)
    for b in range(len(batch.ids)):
        start = int(batch.first[b])
        mass = dense[:, b, :, start + 3 :, start + 3] + dense[:, b, :, start + 3 :, start + 5]
        assert_allclose(found.of(keys)[b], mass.mean(-1), atol=DENSE)
    nothing = np.zeros_like(keys)
    assert np.isnan(found.of(nothing)).all()
    assert found.where(keys) == 3
    assert found.where(nothing) is None
    keys[0] = found.at(4)[0]
    assert found.where(keys) is None


def test_places_of_tokens():
    model = resting(token=1)
    texts = ["<bos> w5 . w6 . w7", ". w5 w6 ."]
    batch = Batch.of(texts, model.tokenizer, side="left", spans={"document": ["w6 .", "w5 w6"]})
    found = {name: [row.nonzero()[0].tolist() for row in keys] for name, keys in places(model, batch).items()}
    assert found == {"first": [[0], [2]], "delimiter": [[2], [5]], "document": [[3, 4], [3, 4]]}
    assert set(places(tiny("llama"), ragged(16, "left"))) == {"first"}  # no tokenizer


def test_random_keys_are_of_no_kind_after_the_first_and_early():
    model, batch = tiny("llama"), ragged(40, "left", lengths=(40, 32))
    found = shares(model, batch)
    taken = {"first": found.at(0), "x": found.at(2)}
    draws = random_keys(found, taken, 3, draws=50, seed=0)
    assert all((keys.sum(1) == 3).all() for keys in draws)
    drawn = {int(p) for keys in draws for p in found.position[keys]}
    assert drawn == set(range(1, 16)) - {2}
    assert random_keys(found, taken, 15, draws=2, seed=0) == []


def test_windows_both_ways_are_refused():
    model = tiny("llama")
    changed = interp.load(model.torch_module)
    changed.info = model.info.__class__(**{**model.info.as_dict(), "causal": False, "windows": (3, 3)})
    with pytest.raises(NotApplicable, match="both ways within a window"):
        shares(changed, torch.arange(16)[None])
