"""Judging a circuit: laws on tiny models, and verdicts on planted circuits that are known to be right or wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import SPANNING, tiny

import interp
from circuits.evaluation._curve import curve
from circuits.evaluation._faithfulness import ABLATIONS, Verdict, evaluate, faithfulness
from circuits.evaluation._hypotheses import hypotheses
from circuits.evaluation._minimality import completeness, minimality, without
from circuits.evaluation.reuse import cross_faithfulness, overlap, repair
from circuits.evaluation.truth import planted as truth_of
from circuits.graph.controls import HOW, random_circuits
from circuits.graph.graph import Graph
from circuits.wiring.case import Case
from interp.batch import Batch
from interp.errors import SchemaError, SiteError, TaskError
from interp.results.stats import resample
from interp.tasks import planted_task
from interp.tasks.prompt import collate
from interp.zoo.planted import factory


def pairs_of(model, n=4):
    """Prompts of two lengths under two templates, answers drawn at random: laws need no trained model."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 60, (9 if i % 2 else 6,), generator=generator).tolist() for i in range(n)]
    other = [torch.randint(3, 60, (len(row),), generator=generator).tolist() for row in rows]
    return collate(
        "drawn",
        list(zip(rows, other, strict=True)),
        answers=[[5 + i] for i in range(n)],
        wrong=[[20 + i] for i in range(n)],
        roles=[{} for _ in rows],
        templates=["long" if i % 2 else "short" for i in range(n)],
        corruption="random",
        metric="logit_diff",
    )


@pytest.fixture(scope="module")
def made():
    planted = factory.plant([factory.Induction()], architecture="llama-gqa", seed=1)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    task = planted_task(planted, "induction", n=16)
    return planted, model, task, truth_of(planted.truth, Case.of(model, task).layout)


def test_an_interval_resamples_all_three_means_together():
    generator = np.random.default_rng(0)
    values, full, empty = (generator.normal(mean, 1, size) for mean, size in ((2, (3, 14)), (4, 14), (0, 14)))
    found = Verdict((), values, full, empty, "logit_diff", "mean").interval(seed=3, level=0.9, n=200)
    weights = resample(14, seed=3, n_resamples=200)
    span = weights @ full - weights @ empty
    for interval, value in zip(found, values, strict=True):
        assert_allclose(interval, np.quantile((weights @ value - weights @ empty) / span, [0.05, 0.95]), rtol=1e-10)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("architecture", SPANNING)
def test_all_edges_are_faithful_and_none_are_not(architecture, ablation):
    model = tiny(architecture)
    task = pairs_of(model)
    whole = Graph.full(Case.of(model, task).layout)
    found = faithfulness(model, task, [whole, whole.complement()], ablation=ablation)
    assert_allclose(found.faithfulness, [1, 0], atol=1e-4)
    assert_allclose(found.per_prompt, np.broadcast_to([[1], [0]], (2, 4)), atol=1e-3)
    if ablation == "resample":
        assert_allclose(found.empty, Case.of(model, task).corrupt, atol=2e-5)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_portions_change_nothing(ablation):
    model = tiny("llama")
    case = Case.of(model, pairs_of(model, n=5))
    rng = np.random.default_rng(0)
    half = Graph(
        case.layout,
        np.full(case.layout.exists.shape, np.nan),
        case.layout.exists & (rng.random(case.layout.exists.shape) < 0.5),
    )
    values = [evaluate(case, [half], ablation=ablation, batch_size=size) for size in (1, 2, 5)]
    assert_allclose(values[0], values[2], atol=1e-5)
    assert_allclose(values[1], values[2], atol=1e-5)


def test_means_are_by_template_and_position():
    model = tiny("llama")
    task = pairs_of(model, n=6)
    case = Case.of(model, task)
    empty = evaluate(case, [], ablation="mean")[0]
    # prompts of one template and length are then the same prompt: only their answers differ
    assert empty.shape == (6,)
    with pytest.raises(TaskError, match="has the template 'short'"):
        faithfulness(model, task, Graph.full(case.layout), ablation="mean", reference=task.select([1, 3]))


def test_the_planted_circuit_is_faithful_and_random_ones_are_not(made):
    _, model, task, truth = made
    verdict = faithfulness(model, task, [truth, *random_circuits(truth, n=10)])
    assert verdict.faithfulness[0] > 0.95
    assert verdict.faithfulness[1:].max() < 0.5
    row = verdict.table().iloc[0]
    assert row["ci_low"] <= row["faithfulness"] <= row["ci_high"]
    assert row["edges"] == truth.n_edges
    assert row["n"] == len(task)


@pytest.mark.parametrize("how", HOW)
def test_random_circuits_have_the_size(made, how):
    *_, truth = made
    drawn = random_circuits(truth, n=4, seed=3, how=how)
    assert len({graph.mask.tobytes() for graph in drawn}) > 1
    for graph in drawn:
        assert not (graph.mask & ~graph.layout.exists).any()
        if how == "connected":
            assert graph.n_edges <= truth.n_edges
            assert (graph.pruned().mask == graph.mask).all()
        else:
            assert graph.n_edges == truth.n_edges
    again = random_circuits(truth, n=4, seed=3, how=how)
    assert all((a.mask == b.mask).all() for a, b in zip(drawn, again, strict=True))


def test_the_curve_of_true_scores_is_steep(made):
    *_, model, task, truth = made
    scores = np.where(truth.mask, 1.0, 0.001 * np.random.default_rng(0).random(truth.mask.shape))
    found = curve(model, task, Graph.full(truth.layout, scores), fractions=(0.01, 0.1, 0.5, 1.0))
    assert_allclose(found.verdict.faithfulness[-1], 1, atol=1e-5)
    assert_allclose(found.verdict.faithfulness[1], 1, atol=0.05)
    assert 0.8 < found.cpr() < 1.1
    assert found.cmd() < 0.2
    assert (found.actual <= np.array(found.fractions) + 1e-3).all()
    assert found.plot().data[1].y[-1] == pytest.approx(1, abs=1e-5)
    with pytest.raises(SchemaError, match="between 0 and 1"):
        curve(model, task, truth, fractions=(0.5, 2.0))


def test_every_planted_part_is_needed_and_an_added_one_is_not(made):
    planted, model, task, truth = made
    rows = minimality(model, task, truth).set_index("component")
    heads = {f"L{layer}H{head}" for places in planted.truth.roles.values() for layer, head in places}
    assert rows.loc[sorted(heads & set(rows.index)), "needed"].all()
    other = next(g for g in random_circuits(truth, n=20) if set(g.nodes) - set(truth.nodes))
    more = minimality(model, task, truth | other).set_index("component")
    added = [name for name in other.nodes if name in more.index and name not in truth.nodes]
    assert not more.loc[added, "needed"].any()
    edges = minimality(model, task, truth, of="edges")
    assert len(edges) == truth.n_edges


def test_a_complete_circuit_falls_as_the_model_falls(made):
    *_, model, task, truth = made
    rows = completeness(model, task, truth, n_sets=3).set_index("without")
    assert rows["share"].max() < 0.1
    assert {"all", "half 0"} <= set(rows.index)


def test_leaving_out_a_component():
    model = tiny("llama")
    graph = Graph.full(Case.of(model, pairs_of(model)).layout)
    lacking = without(graph, "L0H1")
    assert "L0H1" not in lacking.nodes
    assert ("embed", "L0KV0", "k") in lacking  # its group's other head still reads it
    with pytest.raises(SchemaError, match="none of the circuit's components"):
        without(lacking, "L0H1")


def test_hypotheses_of_a_right_and_a_wrong_circuit(made):
    *_, model, task, truth = made
    right = hypotheses(model, task, truth, n_random=3).set_index("test")
    assert right.loc[["sufficiency", "partial_necessity"], "upheld"].all()
    wrong = hypotheses(model, task, random_circuits(truth, n=1, seed=9)[0], n_random=3).set_index("test")
    assert not wrong.loc["sufficiency", "upheld"]
    assert not wrong.loc["equivalence", "upheld"]
    with pytest.raises(SchemaError, match="leaves nothing to test"):
        hypotheses(model, task, Graph.full(truth.layout))


def test_refusals(made):
    *_, model, task, truth = made
    with pytest.raises(TaskError, match="did you mean 'mean'"):
        faithfulness(model, task, truth, ablation="meam")
    with pytest.raises(SchemaError, match="another model"):
        faithfulness(tiny("gpt2"), pairs_of(None), truth)
    silent = task.select([0, 1])
    same = type(silent)(**{**vars(silent), "corrupt": silent.clean})
    with pytest.raises(TaskError, match="nothing to explain"):
        faithfulness(model, same, truth)
    for call in (minimality, completeness):
        with pytest.raises(SchemaError, match="empty"):
            call(model, task, truth - truth)


def test_circuits_of_two_tasks(made):
    planted = factory.plant([factory.Induction(), factory.DuplicateToken()], seed=0)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    tasks = {name: planted_task(planted, name, n=12) for name in ("induction", "duplicate_token")}
    layout = Case.of(model, tasks["induction"]).layout
    whole = truth_of(planted.truth, layout)
    roles = {name: {f"L{i}H{h}" for i, h in planted.heads(name)} for name in tasks}
    own = {
        name: Graph.of(layout, [e for e in whole.edges if not ({e.sender, e.receiver} & roles[other])])
        for name, other in (("induction", "duplicate_token"), ("duplicate_token", "induction"))
    }
    found = cross_faithfulness(model, tasks, own)
    assert found.loc["induction", "induction"] > 0.9
    assert found.loc["induction", "duplicate_token"] < 0.3
    rows = overlap(own, n_random=5)
    assert len(rows) == 2
    assert rows["jaccard"].iloc[0] == own["induction"].jaccard(own["duplicate_token"])
    with pytest.raises(SchemaError, match="no task"):
        cross_faithfulness(model, {"induction": tasks["induction"]}, own)


def test_looking_for_a_head_repairs_what_it_missed():
    planted = factory.plant([factory.Induction()], seed=0)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    task = planted_task(planted, "induction", n=16)
    (head,) = [f"L{i}H{h}" for i, h in planted.truth.roles["induction"]][:1]
    broken = interp.edits.KnockOut(f"{head}.pattern")
    with model.editing([broken]):
        assert Case.of(model, task, metric="accuracy").clean.mean() < 0.5
    # without the earlier copy of the last word nothing is found, until the head is made to look behind its place
    ids = task.clean.ids.clone()
    ids[torch.arange(len(task)), task.role("A1")] = planted.vocab.bos
    lost = replace(task, clean=Batch(ids, task.clean.mask))
    rows = repair(model, lost, [head], "B1", n_random=3).set_index("heads")
    assert rows.loc["none", "value"] < 0.5
    assert rows.loc["heads", "value"] == 1
    assert rows["value"].drop("heads").max() < 0.5
    assert_allclose(rows["change"], rows["value"] - rows.loc["none", "value"])
    away = repair(model, task, [head], "A1", n_random=3).set_index("heads")
    assert away.loc["heads", "value"] < 0.5
    with pytest.raises(TaskError, match="no role"):
        repair(model, task, [head], "B7")
    with pytest.raises(SiteError, match="'M0' is no head"):
        repair(model, task, ["M0"], "B1")
