"""ACDC: the same circuit as one forward pass per edge, on every architecture; planted circuits."""

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
from circuits.search._acdc import LOW_IS_GOOD, acdc, acdc_sweep
from circuits.wiring.case import Case
from circuits.wiring.edges import run_edges
from interp.batch import Batch
from interp.errors import SchemaError, TaskError
from interp.tasks import planted_task
from interp.tasks.prompt import collate
from interp.zoo.planted import factory


def pairs(n=3, *, lengths=(7, 5, 7), seed=0):
    """Random prompts of two lengths and twins of which two tokens differ."""
    rng = np.random.default_rng(seed)
    clean = [rng.integers(3, D_VOCAB, lengths[i % len(lengths)]).tolist() for i in range(n)]
    corrupt = [[*row[:1], (row[1] + 9) % D_VOCAB, *row[2:-1], (row[-1] + 5) % D_VOCAB] for row in clean]
    return collate(
        "random",
        list(zip(clean, corrupt, strict=True)),
        answers=[[4 + i] for i in range(n)],
        wrong=[[9 + i] for i in range(n)],
        roles=[{}] * n,
        templates=["random"] * n,
        corruption="two tokens",
        metric="logit_diff",
    )


def naive(model, task, *, threshold, metric="kl", forward=False):
    """One full forward per edge: the definition."""
    case = Case.of(model, task, metric=metric)
    layout, keep = case.layout, torch.from_numpy(case.layout.exists).float()
    sign = 1 if metric in LOW_IS_GOOD else -1

    def value():
        logits = run_edges(model, case.ports, task.clean, keep, case.sent_corrupt).logits
        return float(case.value(logits).double().mean())

    before, changes = value(), np.full(layout.exists.shape, np.nan)
    for slot in reversed(range(len(layout.slots))):
        feeds = torch.from_numpy(layout.owners[slot])
        if slot != len(layout.slots) - 1 and not keep[feeds].any():
            keep[:, slot] = 0
            before = value()
            continue
        for u in np.flatnonzero(layout.exists[:, slot])[:: 1 if forward else -1]:
            keep[u, slot] = 0
            after = value()
            changes[u, slot] = after - before
            if sign * (after - before) < threshold:
                before = after
            else:
                keep[u, slot] = 1
    return keep.bool().numpy(), changes, before


def cut_between(changes, low=0.3, high=0.7):
    """A threshold in the widest gap between changes of a middling size, so that rounding decides nothing."""
    found = np.sort(np.abs(changes[~np.isnan(changes)]))
    found = found[int(low * len(found)) : int(high * len(found)) + 2]
    gap = np.argmax(np.diff(np.log(found + 1e-12)))
    return float(np.sqrt(found[gap] * found[gap + 1]))


@pytest.mark.parametrize("name", SPANNING)
def test_equals_one_forward_per_edge(name):
    model, task = tiny(name), pairs(2)
    _, changes, _ = naive(model, task, threshold=np.inf)
    threshold = cut_between(changes, 0.6, 0.95)
    mask, changes, value = naive(model, task, threshold=threshold)
    found = acdc(model, task, threshold=threshold, batch_size=24)
    margin = np.abs(np.abs(changes[~np.isnan(changes)]) - threshold).min()
    assert margin > 1e-4, "this threshold cannot tell: another seed"
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_allclose(found.scores, changes, atol=2e-5, rtol=1e-3)
    assert 0 < found.n_edges < found.layout.n_edges
    assert found.provenance["metric_removed"] == pytest.approx(value, abs=2e-5)


@pytest.mark.parametrize("metric", ["logit_diff", "loss_nats"])
def test_other_metrics_have_their_own_sense_of_worse(metric):
    model, task = tiny("llama"), pairs(2)
    threshold = cut_between(naive(model, task, threshold=np.inf, metric=metric)[1], 0.5, 0.95)
    mask, changes, _ = naive(model, task, threshold=threshold, metric=metric, forward=True)
    found = acdc(model, task, threshold=threshold, metric=metric, ordering="forward")
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_allclose(found.scores, changes, atol=2e-5, rtol=1e-3)
    both = acdc(model, task, threshold=threshold, metric=metric, ordering="forward", absolute=True)
    visited = ~np.isnan(both.scores)
    np.testing.assert_array_equal(both.mask[visited], np.abs(both.scores[visited]) >= threshold)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_oss"])
def test_the_batch_size_and_padding_change_nothing(name):
    model, task = tiny(name), pairs(2, lengths=(7, 5))
    threshold = cut_between(acdc(model, task, threshold=1e9).scores, 0.5, 0.95)
    one, many = (acdc(model, task, threshold=threshold, batch_size=size) for size in (1, 64))
    np.testing.assert_array_equal(one.mask, many.mask)
    np.testing.assert_allclose(one.scores, many.scores, atol=2e-5)
    short = task.select([1])
    wide = short.clean.ids.new_zeros(1, 3)
    padded = replace(short, clean=pad(short.clean, wide), corrupt=pad(short.corrupt, wide))
    alone, beside = (acdc(model, given, threshold=threshold) for given in (short, padded))
    np.testing.assert_allclose(alone.scores, beside.scores, atol=2e-5)


def pad(batch, more):
    return Batch(torch.cat([batch.ids, more], 1), torch.cat([batch.mask, more.bool()], 1))


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_other_ablations_end_where_run_edges_does(ablation):
    model, task = tiny("phi"), pairs(4, lengths=(6,))  # biases: without any, a stream of zeros would be normed
    found = acdc(model, task, threshold=1e-2, ablation=ablation)
    case = Case.of(model, task, metric="kl")
    left = evaluate(case, [found], ablation=ablation)[0].mean()
    assert found.provenance["metric_removed"] == pytest.approx(left, abs=2e-5)
    assert 0 < found.n_edges < found.layout.n_edges


def test_orders():
    model, task = tiny("llama"), pairs(2, lengths=(5,))
    first = acdc(model, task, threshold=3e-2, ordering="random", seed=1)
    again = acdc(model, task, threshold=3e-2, ordering="random", seed=1)
    other = acdc(model, task, threshold=3e-2, ordering="random", seed=2)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert (first.mask != other.mask).any()
    layout = first.layout
    ranks = np.where(layout.exists, np.arange(len(layout.senders))[:, None], np.nan)
    forward, ranked = (acdc(model, task, threshold=3e-2, ordering=given) for given in ("forward", ranks))
    np.testing.assert_array_equal(ranked.mask, forward.mask)
    assert 0 < forward.n_edges < layout.n_edges


def test_a_huge_threshold_keeps_nothing():
    model, task = tiny("gpt2"), pairs()
    nothing = acdc(model, task, threshold=1e9)
    assert nothing.n_edges == 0
    case = Case.of(model, task, metric="kl")
    assert nothing.provenance["metric_removed"] == pytest.approx(float(case.corrupt.mean()), abs=2e-5)
    assert nothing.provenance["tried"] == len(nothing.layout.senders)  # then nothing leads to the logits
    assert nothing.provenance["forwards"] < 3


PLANTED = [("llama", 0), ("llama-gqa", 1), ("llama", 1), ("llama-gqa", 0)]


@pytest.mark.parametrize(
    ("architecture", "seed"), [*PLANTED[:2], *(pytest.param(*case, marks=pytest.mark.slow) for case in PLANTED[2:])]
)
def test_planted_circuits_are_found(architecture, seed):
    built = factory.plant([factory.Induction()], architecture=architecture, seed=seed, noise=0.0)
    model = interp.load(built.model, tokenizer=built.tokenizer)
    sweep = acdc_sweep(model, planted_task(built, "induction", n=12), thresholds=(1e-3, 1e-2, 1e-1, 1.0))
    whole, truth = (planted(built.truth, sweep.graph.layout, mechanism=m) for m in (None, "induction"))
    assert judge_edges(sweep.graph, truth, beside=whole)["auroc"] == 1.0
    # All that is planted but the query that tells where to park: no prompt here has a cue.
    previous = "L{}H{}".format(*built.truth.roles["previous_token"][0])
    asked = [edge for edge in built.truth.edges if edge != ("embed", previous, "q")]
    np.testing.assert_array_equal(sweep.graphs[0].mask, Graph.of(whole.layout, asked).mask)


@pytest.mark.parametrize("backend", ["lens", "nnsight"])
def test_the_backends_agree(backend):
    hf, task = tiny("llama"), pairs(2, lengths=(5,))
    threshold = cut_between(acdc(hf, task, threshold=1e9).scores, 0.5, 0.95)
    ours = acdc(hf, task, threshold=threshold)
    theirs = acdc(interp.load(hf.torch_module, backend=backend), task, threshold=threshold)
    np.testing.assert_array_equal(ours.mask, theirs.mask)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=2e-5)


def test_sweep():
    sweep = acdc_sweep(tiny("gpt2"), pairs(2, lengths=(5,)), thresholds=(1e-1, 3e-2))
    assert sweep.thresholds == (3e-2, 1e-1)
    low, high = sweep.graphs
    np.testing.assert_allclose(sweep.graph.scores[high.mask], 1e-1)
    np.testing.assert_allclose(sweep.graph.scores[low.mask & ~high.mask], 3e-2)
    assert (sweep.graph.scores[low.layout.exists & ~low.mask & ~high.mask] == 0).all()
    table = sweep.table()
    assert table["edges"].tolist() == [low.n_edges, high.n_edges]
    assert (table["forwards"] > 0).all()


def test_refusals():
    model, task = tiny("gpt2"), pairs()
    with pytest.raises(SchemaError, match="threshold -1"):
        acdc(model, task, threshold=-1.0)
    with pytest.raises(SchemaError, match="unknown ordering 'revers'"):
        acdc(model, task, threshold=1.0, ordering="revers")
    with pytest.raises(SchemaError, match="to order by"):
        acdc(model, task, threshold=1.0, ordering=np.zeros((2, 2)))
    with pytest.raises(TaskError, match="ablation"):
        acdc(model, task, threshold=1.0, ablation="zeros")
    with pytest.raises(SchemaError, match="no thresholds"):
        acdc_sweep(model, task, thresholds=())
