"""Attention scores in singular directions: exact sums, the dense SVD, and who wrote them in a planted model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import D_VOCAB, encoder, tiny
from tolerance import assert_equal_to_rounding
from torch.testing import assert_close

import interp
from circuits.graph.layout import Layout
from circuits.search.sparse_attention import Tracing, extended_qk, trace_attention
from circuits.wiring.case import Case
from interp.errors import NotApplicable, SchemaError, TaskError
from interp.tasks import planted_task
from interp.tasks.prompt import collate
from interp.zoo.planted import factory

TURNING = ("gpt2", "llama", "gpt_oss", "gpt_neox", "qwen2", "qwen3", "gemma2", "mistral", "opt", "phi", "olmo2")


def pairs(lengths=(9, 7)):
    rng = np.random.default_rng(0)
    clean = [rng.integers(3, D_VOCAB, n).tolist() for n in lengths]
    corrupt = [[*row[:1], (row[1] + 9) % D_VOCAB, *row[2:]] for row in clean]
    n = len(clean)
    return collate(
        "random",
        list(zip(clean, corrupt, strict=True)),
        answers=[[4]] * n,
        wrong=[[9]] * n,
        roles=[{}] * n,
        templates=["random"] * n,
        corruption="one token",
        metric="logit_diff",
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_singular_vectors_are_those_of_the_dense_matrix(name):
    weights = tiny(name).weights()
    factored = extended_qk(weights, 1, 5, offset=3)
    dense = factored.left.double() @ factored.right.double()
    u, s, vh = factored.svd()
    exact = torch.linalg.svdvals(dense)
    assert_close(s.double(), exact[: len(s)], atol=1e-4, rtol=1e-4)
    assert exact[len(s) :].max() < 1e-6 * exact[0]
    assert_close((u * s) @ vh, dense.float(), atol=1e-4 * float(s[0]), rtol=0)


@pytest.mark.parametrize("name", TURNING)
def test_terms_sum_to_the_score_and_senders_to_the_terms(name):
    model, task = tiny(name), pairs()
    heads = [f"L1H{h}" for h in range(4)]
    found = trace_attention(model, task, heads, least=0.1)
    assert len(found.firings) >= 3
    acts = model.run(task.clean, capture=["L1.q", "L1.k", "L1.pattern"])
    scale, group = model.weights()[1].scale, model.weights()[1].group
    case = Case.of(model, task)
    for row in found.firings.itertuples():
        head = int(row.head[3:])
        q, k = acts["L1.q"][row.prompt, row.query, head], acts["L1.k"][row.prompt, row.key, head // group]
        assert row.score == pytest.approx(scale * float(q @ k), rel=1e-3, abs=1e-3)
        p = acts["L1.pattern"][row.prompt, head, row.query, row.key]
        assert_equal_to_rounding(row.probability, p, scale=1.0)
        assert row.kept >= row.score - 1e-4
        assert 1 <= row.vectors <= row.rank
    # with nothing but senders and norms without bias in the stream, the senders' parts are the whole of the kept terms
    no_bias = name in ("llama", "mistral", "gemma2")
    sums = found.contributions.groupby(["firing", "side"])["value"].sum().unstack()
    if no_bias:
        for side in ("query", "key"):
            np.testing.assert_allclose(sums[side], found.firings["kept"], rtol=2e-3, atol=2e-3)
    assert set(found.contributions["sender"]) == {n for n in case.layout.senders if not n.startswith(("L1", "M1"))}


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_fewest_terms_that_reach_the_share_are_kept(name, share):
    model, task = tiny(name), pairs()
    found = trace_attention(model, task, ["L1H0", "L1H1", "L1H2"], least=0.1, share=share)
    norm, own = Case.of(model, task).ports.reads[1].attn, model.weights()[1]
    read = norm(model.run(task.clean, capture=["L1.resid_pre"])["L1.resid_pre"])
    read = torch.cat([read, torch.ones_like(read[..., :1])], -1)
    assert len(found.firings) >= 3
    for row in found.firings.itertuples():
        u, s, vh = extended_qk(model.weights(), 1, int(row.head[3:]), offset=row.query - row.key).svd()
        terms = own.scale * (read[row.prompt, row.query] @ u) * s * (vh @ read[row.prompt, row.key])
        reached = terms.sort(descending=True).values.cumsum(0)
        fewest = int((reached < share * row.score - 1e-5).sum()) + 1
        assert row.vectors == fewest < row.rank
        assert row.kept == pytest.approx(float(reached[fewest - 1]), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "llama-gqa", "gpt2"])
def test_the_previous_token_head_is_found_behind_the_induction_head(architecture):
    built = factory.plant([factory.Induction()], architecture=architecture, seed=0)
    model = interp.load(built.model, tokenizer=built.tokenizer)
    (layer, head), *_ = built.truth.roles["induction"]
    (before, other), *_ = built.truth.roles["previous_token"]
    task = planted_task(built, "induction", n=6)
    found = trace_attention(model, task, [f"L{layer}H{head}"])
    assert len(found.firings) == len(task)
    assert (found.firings["key"].to_numpy() == task.role("B1").numpy()).all()
    table = found.table()
    keys = table[(table["side"] == "key") & table["sender"].str.startswith("L")].set_index("sender")["share"]
    assert keys.idxmax() == f"L{before}H{other}"
    assert keys.max() > 0.8
    assert keys.drop(keys.idxmax()).abs().max() < 0.1
    graph = found.graph()
    assert (f"L{before}H{other}", f"L{layer}H{head}", "k") in graph
    assert ("embed", f"L{layer}H{head}", "q") in graph
    deeper = trace_attention(model, task, [f"L{layer}H{head}"], depth=2)
    assert f"L{before}H{other}" in set(deeper.firings["head"])
    below = deeper.firings[deeper.firings["head"] == f"L{before}H{other}"]
    assert (below["query"] - below["key"] == 1).all()


@pytest.mark.parametrize(("upstream", "kept"), [(0.5, 1), (0.7, 2), (1.0, 3)])
def test_edges_come_from_the_fewest_senders_that_make_up_the_share(upstream, kept):
    values = {"embed": 5.0, "L0H0": 3.0, "M0": 1.0, "L0H1": -2.0}  # of nine that are positive
    contributions = pd.DataFrame({"firing": 0, "side": "key", "sender": list(values), "value": list(values.values())})
    firings = pd.DataFrame([{"firing": 0, "head": "L1H2", "kept": 7.0}])
    graph = Tracing(firings, contributions, Layout(2, 4, 4)).graph(upstream=upstream)
    assert {e.sender for e in graph.edges} == set(list(values)[:kept])
    assert {(e.receiver, e.port) for e in graph.edges} == {("L1H2", "k")}
    assert graph.score(("L0H1", "L1H2", "k")) == -2.0


def test_padding_changes_nothing():
    model, task = tiny("llama"), pairs()
    whole = trace_attention(model, task, ["L1H0", "L1H1"], least=0.05)
    alone = trace_attention(model, task.select([1]), ["L1H0", "L1H1"], least=0.05)
    mine = whole.firings[whole.firings["prompt"] == 1]
    np.testing.assert_allclose(mine["score"], alone.firings["score"], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(mine["key"], alone.firings["key"])


def test_refusals():
    model, task = tiny("gpt2"), pairs()
    with pytest.raises(SchemaError, match="no head 'L7H0'"):
        trace_attention(model, task, ["L7H0"])
    with pytest.raises(SchemaError, match="share 0"):
        trace_attention(model, task, ["L1H0"], share=0.0)
    with pytest.raises(TaskError, match="no role"):
        trace_attention(model, task, ["L1H0"], query="S2")
    nothing = trace_attention(model, task, ["L0H0"], least=1.0)
    assert nothing.firings.empty
    assert nothing.table().empty
    assert nothing.graph().n_edges == 0


def test_scores_of_attention_both_ways_are_not_traced():
    with pytest.raises(NotApplicable, match="causal softmax attention, and this model has another"):
        trace_attention(interp.load(encoder()), pairs(), ["L1H0"])
