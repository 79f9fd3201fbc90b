"""Calibration of places, sorting and rotary bases: planted biases are found, answers come back, controls do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import spearmanr
from tiny_models import tiny
from transformers import LlamaConfig, LlamaForCausalLM

import interp
from interp.edits import Apply, AttentionBias, RotaryBase
from interp.errors import NotApplicable, SiteError, TaskError
from interp.measurement.documents import Documents, baseline_mass, needle_documents, span_mass
from interp.measurement.registry import analyze
from interp.zoo.planted import factory
from probes.attention import choose_bases, sorted_orders, troughs, vote, waveform
from probes.attention._attention_buckets import own_base
from probes.attention._attention_sorting import ranks

HEAD, SIZES = "L1H3", {"n_prompts": 10, "n_documents": 5, "length": 64}
BIAS = [1.7, 0.5, 0.0, 0.5, 1.7]


@pytest.fixture(scope="module")
def model():
    made = factory.plant((factory.Retrieval(),), architecture="llama", seed=1)
    assert made.truth.parts("retrieval") == (HEAD,)
    return interp.load(made.model, tokenizer=made.tokenizer)


@pytest.fixture(scope="module")
def documents(model):
    return needle_documents(model, **SIZES)


@pytest.fixture(scope="module")
def biased(documents):
    """Attention to the document at each place is more by its bias, whatever it holds."""
    layout = documents[0].laid_out()
    spans = [layout.batch.span(name) for name in layout.places]
    added = sum(b * s / s.sum(1, keepdim=True) for b, s in zip(BIAS, spans, strict=True))
    return Apply(f"{HEAD}.pattern", lambda p: p + added[:, None])


def rows(result, variant):
    return result.table[result.table["variant"] == variant]


def test_documents_are_laid_out_in_any_order(documents):
    docs, dummies = documents
    assert docs.gold.tolist() == [0, 1, 2, 3, 4] * 2
    order = docs.order().flip(1)
    for layout, places in ((docs.laid_out(), docs.order()), (docs.laid_out(order), order)):
        for i in (0, 7):
            ids = layout.batch.ids[i].tolist()
            for place, k in enumerate(places[i].tolist()):
                span = layout.batch.span(layout.places[place])[i]
                assert layout.batch.ids[i][span].tolist() == list(docs.documents[i][k])
            assert ids[layout.rows[i].start] == docs.question[i][-1] and layout.asking[i].sum() == 1
            answer = docs.documents[i][int(docs.gold[i])]
            assert docs.answer[i][0] in answer
    replaced = docs.replaced(2, dummies)
    sizes = [[len(d) for d in prompt] for prompt in docs.documents]
    assert [[len(d) for d in prompt] for prompt in replaced.documents] == sizes
    assert replaced.documents[2][2] == dummies[2][: sizes[2][2]] and replaced.documents[2][1] == docs.documents[2][1]
    with pytest.raises(TaskError, match="expected one number throughout"):
        Documents((), (((1,), (2,)), ((1,),)), ((3,), (3,)), ((4,), (4,)), torch.tensor([0, 0]))


def test_a_planted_bias_of_places_is_recovered_and_taken_out(model, documents, biased):
    """P26: additive b(k); found by raw attention at the ends alone, by calibrated attention everywhere."""
    with model.editing([biased]):
        bias = baseline_mass(model, *documents)[:, 1, 3].mean(0)
    assert np.corrcoef(bias, BIAS)[0, 1] >= 0.99
    result = analyze(model, "position_calibration", **SIZES, n_random=3, temperature=0.02, edits=[biased])
    assert rows(result, "found")["value"].tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert rows(result, "found_calibrated")["value"].tolist() == [1.0] * 5
    gain = rows(result, "gain").iloc[0]
    assert gain["value"] > 0.2 and gain["null"] < -1.0 and gain["p"] < 1e-3
    head = rows(result, "bias")["value"]
    assert_allclose(head - head.min(), np.array(BIAS) / 8, atol=0.02)  # a mean over eight heads, one of them biased


def test_without_a_bias_there_is_nothing_to_gain(model):
    result = analyze(model, "position_calibration", **SIZES, n_random=2)
    assert abs(rows(result, "gain")["value"].iloc[0]) < 0.01
    assert rows(result, "found")["value"].tolist() == [1.0] * 5


def test_attention_that_likes_late_documents_is_sorted_in_three_rounds(model, documents):
    """P27: the document with the answer never moves forward, and is last after three rounds at most."""
    docs, _ = documents
    ramp = AttentionBias(f"{HEAD}.pattern", 0.5 * torch.arange(docs.laid_out().batch.ids.shape[1]))
    with model.editing([ramp]):
        orders = sorted_orders(model, docs, rounds=3)
        places = np.stack([ranks(order, docs) for order in orders])
        mass = span_mass(model, docs.laid_out())[:, [1]].mean((1, 2))
    assert (np.diff(places, axis=0) <= 0).all() and places[0].max() == 4 and not places[-1].any()
    assert torch.equal(orders[1][0], mass[0].argsort(stable=True))
    result = analyze(model, "attention_sorting", **SIZES, n_random=3, edits=[ramp])
    assert rows(result, "accuracy")["value"].tolist() == [0.8, 1.0, 1.0, 1.0]
    gain = rows(result, "gain").iloc[0]
    assert gain["value"] > 1.0 and gain["null"] < 0.3 and gain["p"] < 1e-3
    assert rows(result, "rank")["value"].iloc[0] == rows(result, "rank")["null"].iloc[0] == 2.0


@pytest.mark.parametrize("base", [5000.0, 10000.0, 25000.0])
def test_troughs_are_those_of_the_analytic_curve(base):
    """Within one token of the minima of the continuous wave."""
    planes, distance = 16, 120
    fine = np.arange(0, distance, 0.01)
    curve = np.cos(fine[:, None] * base ** (-np.arange(planes) / planes)).mean(1)
    minima = fine[1:-1][(curve[1:-1] < curve[:-2]) & (curve[1:-1] < curve[2:])]
    found = troughs(waveform(base, planes=planes, distance=distance))
    assert len(found) > 5
    assert all(np.abs(minima - t).min() <= 1 for t in found)
    assert np.mean([np.abs(found - m).min() <= 1 for m in minima]) > 0.9  # some lie between two tokens
    assert waveform(base, planes=planes, distance=2)[0] == 1.0


@pytest.fixture(scope="module")
def waver():
    """One head whose queries and keys are ones in the first channel of each plane, whatever the token."""
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        attention_bias=True, max_position_embeddings=64,
    )  # fmt: skip
    module = LlamaForCausalLM(config).eval()
    attention = module.model.layers[0].self_attn
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.zero_()
            projection.bias.copy_(torch.arange(16) < 8)
    return interp.load(module)


def test_scores_and_recall_of_a_rotary_head_are_the_wave(waver):
    ids, n = torch.arange(3, 39)[None], 36
    for base, edits in ((10000.0, []), (500.0, [RotaryBase("pattern", 500.0)])):
        run = waver.run(ids, edits=edits, capture=["L0.scores", "L0.pattern"])
        wave = waveform(base, planes=8, distance=n)
        assert_allclose(run["L0.scores"][0, 0, -1].numpy()[::-1], 8 / 4 * wave, atol=2e-4)
        recall = run["L0.pattern"][0, 0, -1].numpy()[::-1]  # of a needle at each distance
        assert spearmanr(recall, 1 - wave).statistic < -0.99
    assert own_base(waver) == (pytest.approx(10000.0, rel=1e-2), 8)


def test_bases_are_chosen_to_fill_troughs():
    candidates = np.linspace(1e4, 3e4, 9).tolist()
    chosen = choose_bases(1e4, candidates, n_bases=4, planes=16, distance=200)
    assert chosen[0] == 1e4 and len(set(chosen)) == 4 and set(chosen) <= set(candidates)
    waves = {b: waveform(b, planes=16, distance=200) for b in candidates}
    for i in range(1, 4):  # each fills the troughs of the highest wave so far
        best = np.max([waves[b] for b in chosen[:i]], axis=0)
        low = troughs(best)
        gains = {b: np.maximum(best, waves[b])[low].mean() for b in candidates if b not in chosen[:i]}
        assert chosen[i] == max(gains, key=gains.__getitem__)
    means = {b: waves[b].mean() for b in candidates}
    assert chosen[1:] != sorted(candidates[1:], key=means.__getitem__)[:-4:-1]
    with pytest.raises(TaskError, match="too few for 6 bases"):
        choose_bases(1e4, [2e4], n_bases=6, planes=4, distance=9)


def test_a_vote_is_weighted_by_confidence():
    each = torch.tensor([[[0.8, 0.1, 0.1]], [[0.2, 0.4, 0.4]]])
    joint, share = vote(each)
    assert_allclose(share[:, 0], [2 / 3, 1 / 3], rtol=1e-6)
    assert_allclose(joint[0], [0.6, 0.2, 0.2], rtol=1e-6)


def test_buckets_of_a_model(model):
    result = analyze(model, "attention_buckets", n_prompts=6, n_documents=3, length=64, n_bases=3, n_random=2)
    loss = rows(result, "loss")
    assert len(loss) == 3 and loss["base"].iloc[0] == own_base(model)[0]
    assert_allclose(loss["weight"].sum(), 1.0, rtol=1e-5)
    with pytest.raises(NotApplicable, match="rotary"):
        analyze(tiny("gpt2"), "attention_buckets", n_prompts=6, length=60)


def test_layers_without_attention_are_refused(model):
    with pytest.raises(SiteError, match="attention is in layers"):
        analyze(model, "position_calibration", layers=[7], **SIZES)
