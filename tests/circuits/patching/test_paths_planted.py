"""Path patching on planted circuits: the edges that are there, each worth what its closed form says, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import tiny

import interp
from circuits.evaluation.truth import judge_edges, planted
from circuits.graph.graph import Graph
from circuits.patching.paths import all_edges_exact, path_patching
from circuits.patching.tracing import Rule, trace
from interp.errors import SchemaError
from interp.tasks import planted_task
from interp.tasks.prompt import collate
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms.copying import MATCH_GAIN, WEAK_LOGIT
from interp.zoo.planted.mechanisms.sketch import LOGIT_GAIN


def load(mechanisms, name, *, architecture="llama", seed=0, n=16, corruption="random"):
    made = factory.plant(mechanisms, architecture=architecture, seed=seed, noise=0.0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    return made, model, planted_task(made, name, n=n, corruption=corruption)


@pytest.mark.parametrize(
    ("architecture", "seed"),
    [("llama-gqa", 1), *(pytest.param(*c, marks=pytest.mark.slow) for c in (("gpt2", 3), ("llama", 0)))],
)
def test_exact_edges_are_the_planted_ones(architecture, seed):
    made, model, task = load([factory.Induction()], "induction", architecture=architecture, seed=seed, n=8)
    graph = all_edges_exact(model, task)
    # Written as well, and of no use here: the previous-token head's query, which tells words from cues, and its echo in
    # the logits, which speaks only where the token before END is one of the two answers compared.
    whole, truth = planted(made.truth, graph.layout), planted(made.truth, graph.layout, mechanism="induction")
    assert whole.n_edges == truth.n_edges + 2
    assert judge_edges(graph, truth, beside=whole)["auroc"] == 1.0
    assert np.abs(graph.scores[graph.layout.exists & ~whole.mask]).max() < 1e-3
    assert np.abs(graph.scores[truth.mask]).min() > 1


def attended(queries, previous):
    """Closed form of a planted induction head at END: positions whose previous token is the query's."""
    scores = torch.where(previous == queries[:, -1:], MATCH_GAIN, 0.0)
    return scores.softmax(-1)


def told(weights, values, task, *, gain):
    """Logits of the answer over the wrong one that copying writes."""
    right, wrong = ((values == ids).to(weights) for ids in (task.answers, task.wrong))
    return gain * (weights * (right - wrong)).sum(-1)


def test_edges_are_worth_their_closed_form():
    """Without norms all edges of induction, from tokens alone; where to park is worth nothing without a cue."""
    made, model, task = load([factory.Induction()], "induction", architecture="llama-nonorm", n=2)
    graph = all_edges_exact(model, task)
    clean, corrupt = task.clean.ids, task.corrupt.ids

    def answer(query=clean, key=clean, value=clean, echo=clean):
        previous = torch.cat([torch.full_like(key[:, :1], -1), key[:, :-1]], 1)
        copied = told(attended(query, previous), value, task, gain=LOGIT_GAIN)
        return copied + told(torch.ones(len(task), 1), echo[:, -2:-1], task, gain=WEAK_LOGIT)

    (layer, head), (before, other) = made.truth.roles["induction"][0], made.truth.roles["previous_token"][0]
    own, previous = f"L{layer}H{head}", f"L{before}H{other}"
    expected = {
        ("embed", previous, "q"): answer(),
        ("embed", previous, "v"): answer(key=corrupt, echo=corrupt),
        (previous, own, "k"): answer(key=corrupt),
        ("embed", own, "q"): answer(query=corrupt),
        ("embed", own, "v"): answer(value=corrupt),
        (previous, "logits", "in"): answer(echo=corrupt),
        (own, "logits", "in"): answer(corrupt, corrupt, corrupt),
    }
    assert set(expected) == set(made.truth.edges)
    for edge, value in expected.items():
        assert graph.score(edge) == pytest.approx((value - answer()).mean().item(), rel=0.01, abs=1e-3), edge
    truth = planted(made.truth, graph.layout)
    assert np.abs(graph.scores[graph.layout.exists & ~truth.mask]).max() < 1e-3


def test_tracing_finds_the_chain_from_the_logits_down():
    made, model, task = load([factory.TwoHop()], "two_hop", architecture="llama-gqa", n=4)
    found = trace(model, task, share=0.2)
    truth = planted(made.truth, found.graph.layout)
    heads = Graph.of(truth.layout, [e for e in truth.edges if e.sender != "embed"])
    assert set(found.graph.edges) == set(heads.edges)
    stages = found.table()
    assert stages["stage"].tolist() == sorted(stages["stage"])
    assert stages["sender"][0] == found.graph.edges[-1].sender
    assert (found.stages.groupby(["stage", "port"]).size() > 1).all()
    nodes = trace(model, task, share=0.2, senders="nodes", mlps="frozen")
    assert set(nodes.graph.edges) == set(truth.edges)
    assert nodes.graph.provenance["method"] == "tracing"
    one = trace(model, task, k=1, depth=0)
    assert one.graph.n_edges == 1


def test_rules_of_who_is_kept():
    values = np.array([0.0, -3.0, 1.0, 0.1])
    assert Rule(k=2).keeps(values, values).tolist() == [False, True, True, False]
    assert Rule(sd=1.0).keeps(values, values).tolist() == [False, True, False, False]
    assert Rule(share=0.5).keeps(values, values / 3).tolist() == [False, True, False, False]
    assert not Rule(k=1).keeps(np.zeros(3), np.zeros(3)).any()
    shifted = np.array([10.0, 10.0, 10.0, 13.0])  # deviations count from the mean of the sweep
    assert Rule(sd=1.0).keeps(shifted, shifted).tolist() == [False, False, False, True]
    with pytest.raises(SchemaError, match="one of k, sd and share"):
        Rule()
    with pytest.raises(SchemaError, match="one of k, sd and share"):
        Rule(k=2, sd=1.0)
    with pytest.raises(SchemaError, match="k=0"):
        Rule(k=0)


def test_a_planted_head_is_found_by_live_paths_as_well():
    made, model, task = load([factory.Induction()], "induction")
    for receivers, role in (
        ("logits", "induction"),
        ([f"L1H{made.truth.roles['induction'][0][1]}.k"], "previous_token"),
    ):
        table = path_patching(model, task, receivers=receivers, mlps="live").table
        best = table.loc[table["value"].abs().idxmax()]
        assert (best["layer"], best["head"]) == made.truth.roles[role][0]
        assert table["value"].abs().nlargest(2).iloc[1] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"senders": "head"}, "unknown senders"), ({"ports": ("z",)}, "unknown port 'z'"), ({"mlps": "off"}, "policy")],
)
def test_tracing_refuses(options, message, pair_of_tokens):
    with pytest.raises(SchemaError, match=message):
        trace(tiny("gpt2"), pair_of_tokens, k=1, **options)


@pytest.fixture
def pair_of_tokens():
    return collate(
        "pair",
        [([3, 4, 5], [3, 6, 7])],
        answers=[[8]],
        wrong=[[9]],
        roles=[{}],
        templates=["one"],
        corruption="two",
        metric="logit_diff",
    )
