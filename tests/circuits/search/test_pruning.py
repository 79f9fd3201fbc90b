"""Learned masks: gates are what they say, targets are met, planted circuits are found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import D_VOCAB, SPANNING, tiny

import interp
from circuits.evaluation._faithfulness import evaluate
from circuits.evaluation.truth import judge_edges, planted
from circuits.graph.graph import Graph
from circuits.search.hard_concrete import Gates, Schedule, Target, train
from circuits.search.pruning import edge_pruning, subnetwork_probing
from circuits.wiring.case import Case
from interp.errors import SchemaError, TaskError
from interp.tasks import planted_task
from interp.tasks.prompt import collate
from interp.zoo.planted import factory

QUICK = Schedule(steps=4)


def pairs(lengths=(6, 5, 6)):
    rng = np.random.default_rng(0)
    clean = [rng.integers(3, D_VOCAB, n).tolist() for n in lengths]
    corrupt = [[*row[:1], (row[1] + 9) % D_VOCAB, *row[2:-1], (row[-1] + 5) % D_VOCAB] for row in clean]
    n = len(clean)
    return collate(
        "random",
        list(zip(clean, corrupt, strict=True)),
        answers=[[4]] * n,
        wrong=[[9]] * n,
        roles=[{}] * n,
        templates=["random"] * n,
        corruption="two tokens",
        metric="logit_diff",
    )


@pytest.mark.parametrize("a", [-3.0, -0.5, 0.0, 2.0])
def test_gates_are_open_as_often_as_they_say(a):
    gates = Gates(20_000, torch.device("cpu"))
    gates.a = torch.full_like(gates.a, a)
    drawn = gates.sample(torch.Generator().manual_seed(0))
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    p = float(gates.open[0])
    assert float((drawn > 0).float().mean()) == pytest.approx(p, abs=4 * (p * (1 - p) / 20_000) ** 0.5 + 1e-6)


def test_gates_that_cost_nothing_close_and_those_that_do_stay_open():
    gates, weight = Gates(40, torch.device("cpu")), torch.zeros(40)
    weight[:10] = 5.0

    def step(drawn, number):
        return (weight * (1 - drawn[0])).sum()

    done, _ = train([(gates, Target(0.75, torch.device("cpu")))], step, Schedule(steps=800), seed=0)
    p = gates.open.detach()
    assert float(1 - p.mean()) == pytest.approx(0.75, abs=0.03)
    assert p[:10].min() > 0.9
    assert p[10:].max() < 0.3
    assert done < 800  # ended early


def test_a_target_is_missed_by_the_moment_of_the_warm_up():
    """l1 (t - s) + l2 (t - s)^2 with t a growing part of the share, and the whole of it from the end of the warm-up."""
    target = Target(0.8, torch.device("cpu"))
    target.multipliers = torch.tensor([2.0, 5.0])
    for progress, missing in ((0.5, 0.4 - 0.3), (1.0, 0.8 - 0.3), (1.7, 0.8 - 0.3)):
        assert float(target.loss(torch.tensor(0.3), progress)) == pytest.approx(2 * missing + 5 * missing**2)


@pytest.mark.parametrize("name", SPANNING)
def test_runs_everywhere_and_gives_the_size_asked_for(name):
    model, task = tiny(name), pairs()
    found = edge_pruning(model, task, edges=30, schedule=QUICK)
    assert found.n_edges == 30
    scores = found.scores[found.layout.exists]
    assert ((scores > 0) & (scores < 1)).all()
    assert found.scores[found.mask].min() >= found.scores[found.layout.exists & ~found.mask].max()
    left = evaluate(Case.of(model, task, metric="kl"), [found])[0].mean()
    assert found.provenance["kl"] == pytest.approx(left, rel=1e-3, abs=1e-4)
    assert found.provenance["steps"] == 4


def test_a_seed_fixes_the_circuit():
    model, task = tiny("llama"), pairs()
    first, again, other = (
        edge_pruning(model, task, sparsity=0.5, schedule=QUICK, seed=s, batch_size=2) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.scores, again.scores)
    assert (first.scores[first.layout.exists] != other.scores[first.layout.exists]).any()
    assert first.n_edges == round(0.5 * first.layout.n_edges)


def test_training_finds_better_than_chance():
    model, task = tiny("llama"), pairs()
    n, told = 60, []
    found = edge_pruning(model, task, edges=n, schedule=Schedule(steps=100), progress=lambda *x: told.append(x))
    assert [t[0] for t in told] == list(range(1, found.provenance["steps"] + 1))
    assert 0.5 < found.provenance["closed"] < 0.9
    rng = np.random.default_rng(0)
    every = Graph.full(found.layout)
    drawn = [
        replace(every, scores=np.where(found.layout.exists, rng.random(found.scores.shape), np.nan)) for _ in range(10)
    ]
    chance = evaluate(Case.of(model, task, metric="kl"), [g.top(n, prune=False) for g in drawn])[:-1].mean(1)
    assert found.provenance["kl"] < 0.5 * chance.mean()
    assert found.provenance["kl"] < chance.min()


def test_nodes_have_gates_of_their_own_on_request():
    model, task = tiny("llama"), pairs()
    found = edge_pruning(model, task, sparsity=0.6, node_sparsity=0.3, ablation="mean", schedule=QUICK)
    assert found.provenance["node_sparsity"] == 0.3
    assert np.isfinite(found.scores[found.layout.exists]).all()


def test_a_closed_node_closes_its_edges_and_the_right_ones_are_closed():
    """No edge has to go, half of the nodes have to: an edge is then as open as its sender, and the task needs few."""
    built = factory.plant([factory.Induction()], architecture="llama-gqa", seed=0, noise=0.0)
    model = interp.load(built.model, tokenizer=built.tokenizer)
    task = planted_task(built, "induction", n=4)
    found = edge_pruning(model, task, sparsity=0.0, node_sparsity=0.6, schedule=Schedule(steps=30))
    by_sender = dict(zip(found.layout.senders, np.nanmax(found.scores, 1), strict=True))
    needed = {f"L{layer}H{head}" for role in ("induction", "previous_token") for layer, head in built.truth.roles[role]}
    others = [value for name, value in by_sender.items() if name not in {*needed, "embed"}]
    assert by_sender["embed"] > 0.9  # it has no gate of its own
    assert np.median(others) < 0.5
    assert min(by_sender[name] for name in needed) > np.quantile(others, 0.9)


def test_subnetwork_probing_finds_the_planted_heads():
    built = factory.plant([factory.Induction()], architecture="llama-gqa", seed=0, noise=0.0)
    model = interp.load(built.model, tokenizer=built.tokenizer)
    found = subnetwork_probing(model, planted_task(built, "induction", n=4), nodes=2, schedule=Schedule(steps=30))
    needed = {f"L{layer}H{head}" for role in ("induction", "previous_token") for layer, head in built.truth.roles[role]}
    assert set(found.nodes) == {"embed", *needed, "logits"}
    assert found.provenance["kl"] < 0.1


def test_subnetwork_probing_keeps_nodes():
    model, task = tiny("gpt2"), pairs()
    found = subnetwork_probing(model, task, nodes=6, schedule=Schedule(steps=30))
    assert 1 <= len(set(found.nodes) - {"embed", "logits"}) <= 6
    left = evaluate(Case.of(model, task, metric="kl"), [found])[0].mean()
    assert found.provenance["kl"] == pytest.approx(left, rel=1e-3, abs=1e-4)


def test_a_planted_circuit_is_found():
    built = factory.plant([factory.Induction()], architecture="llama-gqa", seed=0, noise=0.0)
    model = interp.load(built.model, tokenizer=built.tokenizer)
    task = planted_task(built, "induction", n=4)
    found = edge_pruning(model, task, edges=6, schedule=Schedule(steps=40))
    whole, truth = planted(built.truth, found.layout), planted(built.truth, found.layout, mechanism="induction")
    assert judge_edges(found, truth, absolute=False, beside=whole)["auroc"] >= 0.95
    assert (found.mask & truth.mask).sum() >= 4
    assert found.provenance["kl"] < 0.1


def test_refusals():
    model, task = tiny("gpt2"), pairs()
    with pytest.raises(SchemaError, match="0 edges"):
        edge_pruning(model, task, edges=0)
    with pytest.raises(SchemaError, match="sparsity 1.2"):
        edge_pruning(model, task, sparsity=1.2)
    with pytest.raises(SchemaError, match="99 nodes"):
        subnetwork_probing(model, task, nodes=99)
    with pytest.raises(TaskError, match="ablation"):
        edge_pruning(model, task, ablation="noise")
