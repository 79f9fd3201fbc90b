"""Sinks at any token: planted ones at their place and nowhere else, reasons against dense loops, removal of columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from probe_cases import blind, eager, named, resting
from tiny_models import ragged, tiny

import interp
from interp.batch import Batch
from interp.sites import Site
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import FirstTokenSink
from probes.sinks.places import shares
from probes.sinks.reasons import UNITS, reasons, score_scales
from probes.sinks.removal import cut, loss, random_other_keys

QUICK = {"n_prompts": 12, "length": 40}


def labelled(result) -> set[tuple[str, str, str]]:
    """(head, input, place) of the labelled rows."""
    rows = result.table[result.table["label"].fillna(False).astype(bool)]
    return set(zip(rows["component"], rows["input"], rows["place"], strict=True))


def pick(result, variant, **where):
    """The one row of a variant."""
    rows = result.table[result.table["variant"] == variant]
    for name, value in where.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.fixture(scope="module")
def dotted():
    """Prompts with one "." at different places, and a model of which one head keeps to it."""
    model = resting(token=1)
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(60, generator=generator)[:40] + 4 for _ in range(12)])
    at = torch.randint(2, 18, (12,), generator=generator)
    ids[torch.arange(12), at] = 1
    return model, ids, at, interp.analyze(model, "sinks", prompts=ids, n_random=2)


def test_a_sink_on_a_delimiter_is_found_there_alone(dotted):
    _, _, at, found = dotted
    assert labelled(found) == {("L0H0", "given", "delimiter")}
    row = pick(found, "share", component="L0H0", place="delimiter")
    assert row["value"] > 0.6
    assert row["position"] is pd.NA
    assert len(set(at.tolist())) > 3
    assert pick(found, "rate_0.5", component="L0H0", place="delimiter")["value"] == 1
    assert pick(found, "share", component="L0H0", place="first")["value"] < 0.2


def test_what_removal_of_the_sink_does_is_the_loss_of_the_edited_run(dotted):
    model, ids, at, found = dotted
    batch = Batch.of(ids)
    keys = torch.nn.functional.one_hot(at, 40).bool()
    rows = found.interventions.set_index("set_id")
    for way, renormalise in (("renormalised", True), ("values alone", False)):
        row = rows.loc[f"{way}, delimiter of given: L0H0"]
        edits = cut(model, batch, [(0, 0)], keys, renormalise=renormalise)
        assert abs(row["edited"] - loss(model, batch, edits)) < 1e-6
        assert abs(row["clean"] - loss(model, batch)) < 1e-6
        assert row["n_random"] == 2
        draws = [random_other_keys(batch, keys, seed=s) for s in (0, 1)]
        others = [loss(model, batch, cut(model, batch, [(0, 0)], x, renormalise=renormalise)) for x in draws]
        assert abs(row["random_mean"] - np.mean(others)) < 1e-6
        assert abs(row["edited"] - row["clean"]) > abs(row["random_mean"] - row["clean"])


def test_a_cut_column_is_empty_and_rows_that_have_another_key_sum_to_one():
    model, batch = tiny("llama"), ragged(20, "left")
    keys = torch.nn.functional.one_hot(batch.first, 20).bool()
    pattern = model.run(batch, capture=["L1.pattern"], edits=cut(model, batch, [(1, 3)], keys))["L1.pattern"]
    before = model.run(batch, capture=["L1.pattern"])["L1.pattern"]
    for b, start in enumerate(batch.first.tolist()):
        assert pattern[b, 3, start, start] == 1  # it sees nothing else
        assert float(pattern[b, 3, start + 1 :, start].abs().max()) == 0
        assert_allclose(pattern[b, 3, start:].sum(-1), 1, atol=1e-6)
        scaled = before[b, 3, start + 1 :, start + 1 :]
        assert_allclose(pattern[b, 3, start + 1 :, start + 1 :], scaled / scaled.sum(-1, keepdim=True), atol=1e-5)
    assert torch.equal(pattern[:, :3], before[:, :3])
    lost = model.run(batch, capture=["L1.pattern"], edits=cut(model, batch, [(1, 3)], keys, renormalise=False))
    assert_allclose(lost["L1.pattern"][0, 3, 1:], before[0, 3, 1:] * ~keys[0], atol=1e-7)


def test_random_other_keys_are_others_and_as_many():
    batch = ragged(20, "left")
    keys = torch.nn.functional.one_hot(batch.first, 20).bool()
    for s in range(5):
        other = random_other_keys(batch, keys, seed=s)
        assert (other.sum(1) == 1).all()
        assert not (other & (keys | ~batch.mask)).any()


def test_a_sink_on_a_position_is_found_elsewhere():
    found = interp.analyze(resting(position=5), "sinks", bos="none", causal=False, **QUICK)
    assert {(head, place) for head, _, place in labelled(found)} == {("L0H0", "elsewhere")}
    row = pick(found, "share", component="L0H0", place="elsewhere", input="random")
    assert row["position"] == 5
    assert row["value"] > 0.5


def test_the_null_is_uniform_attention_and_blind_heads_have_it():
    found = interp.analyze(blind("mistral"), "sinks", causal=False, **QUICK)
    rows = found.table[(found.table["variant"] == "share") & (found.table["place"] == "first")]
    assert_allclose(rows["value"], rows["null"], atol=1e-6)
    window = 17
    assert_allclose(rows["null"], (1 / np.arange(1, window + 1)).sum() / window, atol=1e-9)
    assert not rows["label"].any()
    assert set(rows["input"]) == {"random", "repeated"}
    assert "no tokenizer" in found.provenance["data"]["left_out"]["text"]


def test_spans_are_places_whose_keys_are_taken_together():
    model = resting(token=2)
    ids = torch.stack([torch.randperm(60)[:40] + 4 for _ in range(8)])
    ids[:, 3], ids[:, 6] = 2, 2
    batch = Batch.of(ids, spans={"register": [[(3, 4), (6, 7)]] * 8})
    found = interp.analyze(model, "sinks", prompts=batch, causal=False)
    assert labelled(found) == {("L0H0", "given", "register")}
    row = pick(found, "share", component="L0H0", place="register")
    pattern = eager(model, batch)[0, :, 0]
    assert abs(row["value"] - (pattern[:, 3:, 3] + pattern[:, 3:, 6]).mean()) < 1e-5


def test_what_goes_to_no_key_is_the_share_of_the_sink_logits():
    for architecture in ("gpt_oss", "llama"):
        model, ids = tiny(architecture), torch.stack([torch.randperm(60)[:20] for _ in range(3)])
        found = interp.analyze(model, "sinks", prompts=ids, causal=False)
        slot = found.table[found.table["variant"] == "slot"]["value"].to_numpy(float)
        dense = 1 - eager(model, Batch.of(ids)).sum(-1).mean((1, 3)).ravel()
        assert_allclose(slot, dense, atol=1e-5)
        assert (slot > 0.01).any() == (architecture == "gpt_oss")


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss", "gpt2", "qwen3"])
def test_reasons_are_those_of_loops_over_queries_and_keys(architecture):
    model, batch = tiny(architecture), ragged(24, "left")
    key = (batch.first + 2).numpy()
    found = reasons(model, batch, key)
    scales = score_scales(model, batch)
    kinds = ("q", "k", "v", "z", "scores")
    acts = model.run(batch, capture=[Site(kind, i) for kind in kinds for i in range(2)]).acts
    dense = eager(model, batch)
    for layer, window in enumerate(model.info.windows):
        q, k, v, z, s = (acts[Site(kind, layer)].double() for kind in kinds)
        group = q.shape[2] // k.shape[2]
        for b, head in ((0, 0), (1, 5)):
            row = {name: found[name][b, layer, head] for name in UNITS}
            at, start = int(key[b]), int(batch.first[b])
            own, n = k[b, at, head // group], batch.ids.shape[1]
            gaps, norms, angles, paid = [], [], [], []
            for i in range(at + 1, n if window is None else min(n, at + window)):
                low = start if window is None else max(start, i - window + 1)
                others = torch.stack([k[b, j, head // group] for j in range(low, i + 1) if j != at])
                score, rest = float(q[b, i, head] @ own), (others @ q[b, i, head]).numpy()
                a1, a0 = float(own.norm()), float(others.norm(dim=-1).mean())
                b1, b0 = score / a1, rest.mean() / a0
                gaps.append(scales[layer] * (score - rest.mean()))
                norms.append(scales[layer] * (a1 - a0) * (b1 + b0) / 2)
                angles.append(scales[layer] * (b1 - b0) * (a1 + a0) / 2)
                size = float(v[b, at, head // group].norm() / z[b, i, head].norm())
                paid.append(dense[layer, b, head, i, at] * size)
                whole, cap = scales[layer] * score, model.info.softcap
                capped = whole if cap is None else cap * np.tanh(whole / cap)
                assert abs(capped - float(s[b, head, i, at])) < 1e-3
            assert_allclose(row["gap"], np.mean(gaps), rtol=1e-3, atol=1e-4)
            assert_allclose(row["gap_norm"], np.mean(norms), rtol=1e-3, atol=1e-4)
            assert_allclose(row["gap_angle"], np.mean(angles), rtol=1e-3, atol=1e-4)
            assert_allclose(row["gap_norm"] + row["gap_angle"], row["gap"], rtol=1e-3, atol=1e-4)
            assert_allclose(row["gap_sd"], np.std(gaps), rtol=1e-2, atol=1e-3)
            assert_allclose(row["output_share"], np.mean(paid), rtol=1e-3)
            for name, x in (("value_norm_ratio", v), ("key_norm_ratio", k)):
                sizes = x[b, start:, head // group].norm(dim=-1).numpy()
                others = np.sort(np.delete(sizes, at - start))
                assert_allclose(row[name], sizes[at - start] / others[(len(others) - 1) // 2], rtol=1e-4)
            cosines = [torch.cosine_similarity(q[b, i, head], own, 0) for i in range(at + 1, at + 1 + len(gaps))]
            assert_allclose(row["cosine"], np.mean(cosines), atol=1e-4)
            assert row["cosine_elsewhere"] != row["cosine"]


def test_a_key_drawn_by_its_direction_and_one_drawn_by_its_length():
    model = resting(token=1)
    ids = torch.stack([torch.randperm(60)[:30] + 4 for _ in range(4)])
    ids[:, 3] = 1
    found = reasons(model, Batch.of(ids), np.full(4, 3))
    assert (found["gap"][:, 0, 0] > 2).all()
    assert (found["gap_sd"][:, 0, 0] < 0.2 * found["gap"][:, 0, 0]).all()  # a bias: whatever the query
    assert found["key_norm_ratio"][:, 0, 0].min() > 3
    assert shares(model, Batch.of(ids)).alpha[:, 0, 0, 3].min() > 0.5


def test_a_planted_sink_is_found_and_nothing_in_a_model_without_one():
    for mechanisms in ([FirstTokenSink()], []):
        made = factory.plant(mechanisms, seed=0)
        model = interp.load(made.model, tokenizer=made.tokenizer)
        found = labelled(interp.analyze(model, "sinks", bos="forced", causal=False, **QUICK))
        heads = named(made, "sink") if mechanisms else []
        assert found == {(head, kind, "first") for head in heads for kind in ("random", "repeated")}
        token = interp.analyze(model, "sink_prefixes", **QUICK).table
        rows = token[(token["variant"] == "token") & token["label"].fillna(False).astype(bool)]
        assert rows["component"].tolist() == heads
