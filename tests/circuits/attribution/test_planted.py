"""Edge and node attribution where the truth is known: planted circuits, and the shipped checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

import interp
from circuits.attribution.edge_gradients import edge_attribution
from circuits.evaluation import truth
from interp.edits import Replace
from interp.patching.nodes import node_attribution
from interp.tasks import planted_task
from interp.zoo.planted import factory


def planted(architecture, mechanism, seed=0):
    """A model with one mechanism and silent others, and its task."""
    made = factory.plant([mechanism], architecture=architecture, seed=seed, noise=0.0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    return made, model, planted_task(made, mechanism.name, n=12)


@pytest.mark.parametrize(
    ("architecture", "seed"),
    [
        ("llama", 0),
        ("llama-gqa", 1),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in (("gpt2", 0), ("llama-gqa", 2))),
    ],
)
def test_the_planted_edges_score_highest(architecture, seed):
    made, model, task = planted(architecture, factory.Induction(), seed)
    scores = edge_attribution(model, task)
    whole, own = (truth.planted(made.truth, scores.layout, mechanism=m) for m in (None, "induction"))
    found = truth.judge_edges(scores.graph, own, beside=whole)
    assert found["auroc"] >= 0.95
    assert scores.residual < 0.05


@pytest.mark.parametrize("port", ["q", "k"])
def test_the_fix_is_exact_where_only_the_softmax_bends(port):
    """Without norms the way from a last-layer head to the logits is linear: patching q (or k) is the score."""
    made, model, task = planted("llama-nonorm", factory.Induction())
    (layer, head), *_ = made.truth.roles["induction"]
    clean, other = model.run(task.clean), model.run(task.corrupt, capture=[f"L{layer}.{port}"])
    edit = Replace(f"L{layer}H{head}.{port}", other[f"L{layer}.{port}"][:, :, head])
    patched = task.value(model.run(task.clean, edits=[edit]).logits) - task.value(clean.logits)
    name = f"L{layer}H{head}"
    plain, fixed = (node_attribution(model, task, method=m).of(port)[name] for m in ("atp", "atp-qkfix"))
    assert fixed == pytest.approx(float(patched.mean()), rel=1e-3)
    assert abs(plain - fixed) > 0.1 * abs(fixed)


@pytest.mark.parametrize("task", ["ioi", "greater_than", pytest.param("induction", marks=pytest.mark.slow)])
def test_five_points_sum_to_the_change_on_the_shipped_model(task):
    model = interp.load("zoo:default")
    assert edge_attribution(model, interp.task(task, model, n=64), tolerance=None, keep_prompts=False).residual < 0.02


def test_out_of_a_head_integrated_edges_sum_to_its_own_score():
    model = interp.load("zoo:default")
    prompts = interp.task("ioi", model, n=8)
    edges, nodes = edge_attribution(model, prompts, tolerance=None), node_attribution(model, prompts, method="atp-ig")
    heads = dict(zip(edges.layout.senders, edges.mean.sum(1), strict=True))
    found = nodes.of("z")
    np.testing.assert_allclose([heads[k] for k in found], list(found.values()), atol=1e-4, rtol=1e-3)
