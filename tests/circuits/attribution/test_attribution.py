"""Edge and node attribution: laws on every architecture, padded batches included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import D_VOCAB, SPANNING, build, tiny
from tolerance import assert_equal_to_rounding

import interp
from circuits.attribution.cost import plan
from circuits.attribution.edge_gradients import edge_attribution
from circuits.attribution.edge_scores import left_over
from circuits.graph.graph import Graph
from circuits.graph.layout import Layout
from circuits.wiring.case import Case
from circuits.wiring.edges import run_edges
from interp.edits import Replace
from interp.errors import BackendError, SchemaError, TaskError
from interp.gradients import gradients
from interp.measurement.head_effects import Objective, first_order_effects
from interp.patching.nodes import node_attribution
from interp.sites import Site
from interp.tasks.prompt import collate

POST_NORM = ("gemma2", "olmo2")
KINKED = ("opt", "gpt_oss")
"""ReLU, and experts that are chosen: a small step can cross a kink."""


def pairs(lengths=(9, 5, 7, 6)):
    """Prompts whose twins differ at every other token, those of each length the same however many there are."""
    clean = [torch.randint(3, D_VOCAB, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths]
    corrupt = [[(t * 7 + 3) % D_VOCAB if i % 2 else t for i, t in enumerate(row)] for row in clean]
    return collate(
        "test",
        list(zip(clean, corrupt, strict=True)),
        answers=[[5]] * len(clean),
        wrong=[[6]] * len(clean),
        roles=[{"A": 1, "B": 3}] * len(clean),
        templates=["test"] * len(clean),
        corruption="every other token",
        metric="logit_diff",
    )


@pytest.fixture(params=SPANNING)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return tiny(name)


def close(found, want, part):
    """Within a part of the largest."""
    np.testing.assert_allclose(found, want, rtol=0, atol=part * np.abs(want).max())


def test_a_score_is_the_slope_of_removing_its_edge(name, model):
    """The first and the last sender of slots of every kind, by central differences in what the edge keeps."""
    task = pairs()
    case, scores = Case.of(model, task), edge_attribution(model, task, method="eap").mean
    layout = case.layout
    shared = "H" if layout.group == 1 else "KV"
    slots = [("L0H0", "q"), ("L1H3", "q"), (f"L1{shared}1", "k"), (f"L1{shared}0", "v"), ("M1", "in"), ("logits", "in")]
    columns = [layout.slot_index[slot] for slot in slots]
    edges = sorted({(row, c) for c in columns for row in (0, int(layout.exists[:, c].sum()) - 1)})
    step = 1e-3 if name in KINKED else 1e-2
    keep = torch.ones(2 * len(edges), *layout.exists.shape)
    for i, (row, column) in enumerate(edges):
        keep[2 * i, row, column], keep[2 * i + 1, row, column] = 1 - step, 1 + step
    many, other = case.repeated(len(keep)), case.sent_corrupt.repeat(1, len(keep), 1, 1)
    logits = run_edges(model, case.ports, many.task.clean, keep.repeat_interleave(len(task), 0), other).logits
    up, down = many.value(logits).double().view(len(edges), 2, len(task)).mean(2).T.numpy()
    close([scores[edge] for edge in edges], (up - down) / (2 * step), 2e-2 if name in KINKED else 2e-3)


def test_batches_and_padding_change_nothing(model):
    task = pairs()
    whole = edge_attribution(model, task, method="eap", batch_size=16)
    for size in (1, 3):
        close(edge_attribution(model, task, method="eap", batch_size=size).mean, whole.mean, 2e-5)
    alone = edge_attribution(model, pairs((5,)), method="eap")
    close(whole.prompts[1], alone.prompts[0], 2e-5)
    for method in ("atp", "atp-qkfix"):
        together, one = (node_attribution(model, task, method=method, batch_size=n).prompts for n in (4, 1))
        close(one, together, 2e-5)


@pytest.mark.parametrize("smooth", [n for n in SPANNING if n != "gpt_oss"])
def test_gradients_along_the_inputs_sum_to_the_change_of_the_metric(smooth):
    """Tiny models with weights this large bend much: with enough points the sum is there nonetheless."""
    task = pairs((9, 5))
    case = Case.of(tiny(smooth), task)
    scores = edge_attribution(tiny(smooth), task, steps=80, tolerance=None)
    change = float((case.corrupt - case.clean).double().mean())
    assert scores.provenance["change"] == pytest.approx(change, rel=1e-4)
    assert abs(scores.mean[0].sum() - change) < 0.02 * max(abs(change), np.abs(scores.mean).max())


def test_the_residual_is_what_the_edges_of_the_embedding_miss_of_the_change():
    layout = Layout(1, 2, 2)
    mean = np.zeros(layout.exists.shape)
    mean[layout.sender_index["embed"], :3] = 1.0
    assert left_over(layout, mean, 4.0) == left_over(layout, -mean, -4.0) == pytest.approx(0.25)
    assert left_over(layout, mean, 3.0) == 0
    assert np.isnan(left_over(layout, mean, 0.0))


def test_a_choice_of_experts_jumps_and_the_residual_says_so():
    """Where another expert is taken the metric jumps, and no gradient sees it: more points do not help."""
    assert edge_attribution(tiny("gpt_oss"), pairs(), steps=80, tolerance=None).residual > 0.2


def test_edges_into_the_logits_are_differences_of_direct_attributions(model):
    """What a sender writes more, through the final norm with its divisor frozen, times the unembedding's difference.

    The divisor's own slope is there too in an edge score; it is what the whole stream at END gives along the sender.
    """
    task = pairs()
    case, scores = Case.of(model, task), edge_attribution(model, task, method="eap")
    rows, last = torch.arange(len(task)), f"L{model.info.n_layers - 1}.resid_post"
    change = (case.sent_corrupt - case.sent_clean)[:, rows, task.end]
    run = model.run(task.clean, capture=[last])
    x, norm = run[last][rows, task.end], case.ports.final_norm
    columns = case.ports.weights.source.columns(torch.tensor([5, 6]))
    cap = getattr(model.torch_module.config, "final_logit_softcapping", None)
    slopes = 1 - (run.logits[rows, task.end][:, [5, 6]] / cap).square() if cap else torch.ones(len(task), 2)
    direction = slopes[:, :1] * columns[0] - slopes[:, 1:] * columns[1]
    frozen = (norm.linear(change) / norm.divisor(x) * direction).sum(-1)
    whole = (norm.linear(x) / norm.divisor(x) * direction).sum(-1)
    centred = norm.linear(x) / norm.gain
    along = (norm.linear(change) / norm.gain * centred).mean(-1) / norm.divisor(x)[:, 0].square()
    close(scores.prompts[:, :, -1], (frozen - whole * along).T.numpy(), 1e-5)


def test_out_of_a_node_edges_sum_to_its_own_score(name, model):
    task = pairs()
    edges, nodes = edge_attribution(model, task, method="eap"), node_attribution(model, task)
    out = dict(zip(edges.layout.senders, edges.mean.sum(1), strict=True))
    if name not in POST_NORM:  # a norm behind attention: an edge's divisor is each run's own, a node's is in the slope
        close([out[k] for k in nodes.of("z")], list(nodes.of("z").values()), 1e-4)
    close([out[k] for k in nodes.of("mlp_out")], list(nodes.of("mlp_out").values()), 1e-4)
    close([out["embed"]], [nodes.of("resid_pre")["L0"]], 1e-4)


def test_the_fix_is_of_queries_and_keys_alone(model):
    task = pairs((6, 6))
    plain, fixed, own = (node_attribution(model, task, method=m) for m in ("atp", "atp-qkfix", "hisp"))
    for kind in ("z", "mlp_out", "resid_pre", "v"):
        assert plain.of(kind) == fixed.of(kind)
    assert plain.of("q") != fixed.of("q")
    assert (own.prompts >= 0).all()
    table = fixed.table()
    assert (table["ci_low"] <= table["ci_high"]).all()
    assert set(table["n"]) == {2}


def test_scores_by_position_are_the_products_there_and_sum_to_the_whole():
    """Against (a' - a) dm/da of one gradient; a prompt is left out of positions that it lacks."""
    model, task = tiny("llama"), pairs()
    whole, apart = node_attribution(model, task), node_attribution(model, task, positions="all")
    width, lengths = task.clean.ids.shape[1], task.lengths.tolist()
    values = apart.prompts.reshape(len(task), -1, width)
    close(np.nansum(values, axis=2), whole.prompts, 1e-4)
    close(apart.mean, np.nanmean(apart.prompts, axis=0), 1e-6)
    for row, n in enumerate(lengths):
        assert np.isnan(values[row, :, n:]).all()
    sites = [f"L{layer}.{kind}" for layer in (0, 1) for kind in ("mlp_out", "v")]
    mine = gradients(model, task.clean, task.value, sites)
    other = model.run(task.corrupt, capture=sites)
    table = apart.table().set_index(["site", "position"])
    for site in sites:
        product = ((other[site] - mine.acts[Site.parse(site)]) * mine[site]).sum(-1)
        node, own = (site, product) if site.endswith("mlp_out") else (site.replace(".v", "H1.v"), product[..., 1])
        for position in (1, width - 1):
            there = task.lengths > position
            assert table.loc[(node, position), "score"] == pytest.approx(
                own[there, position].mean().item(), abs=1e-4, rel=1e-3
            )
            assert table.loc[(node, position), "n"] == int(there.sum())
    drawn = apart.result().plot().data[0]
    assert drawn.z.shape == (model.info.n_layers * model.info.n_heads, width)
    close(list(apart.of("z").values()), list(whole.of("z").values()), 1e-4)


def test_the_fix_by_position_moves_the_queries_and_keys_of_that_position_alone():
    model, task = tiny("llama"), pairs((6, 6))
    fixed = node_attribution(model, task, method="atp-qkfix", positions=["END"]).of
    slopes = gradients(model, task.clean, task.value, ["L1.z"])
    z, dz = (getattr(slopes, name)[Site.parse("L1.z")] for name in ("acts", "grads"))
    group = model.info.n_heads // model.info.n_kv_heads
    for kind in ("q", "k"):
        value = model.run(task.corrupt, capture=[f"L1.{kind}"])[f"L1.{kind}"]
        moved = model.run(task.clean, edits=[Replace(f"L1.{kind}", value, positions=-1)], capture=["L1.z"])["L1.z"]
        by_head = ((moved - z) * dz).sum((1, 3)).mean(0)
        expected = by_head if kind == "q" else by_head.unflatten(0, (-1, group)).sum(1)
        close([v for name, v in fixed(kind).items() if name.startswith("L1")], expected.numpy(), 1e-4)


def test_hisp_is_the_size_of_what_scaling_a_head_would_cost_to_first_order(model):
    task = pairs()
    found = node_attribution(model, task, method="hisp")
    heads = [i for i, site in enumerate(found.sites) if site.kind == "z"]
    expected = np.abs(first_order_effects(model, Objective.of_task(task))).reshape(len(task), -1)
    close(found.prompts[:, heads], expected, 1e-4)


def test_parts_by_role_sum_to_the_whole(model):
    task = pairs()
    apart, whole = (edge_attribution(model, task, method="eap", by_role=by) for by in (True, False))
    assert set(apart.roles) == {"A", "B", "END", "other"}
    close(sum(apart.roles.values()), whole.mean, 2e-5)
    assert not apart.roles["other"][:, -1].any()  # the logits are read at END alone
    assert {"at A", "at other"} <= set(apart.table().columns)


def test_other_paths(model):
    task = pairs((6, 5))
    ends = edge_attribution(model, task, method="clean-corrupted")
    forward, back = (edge_attribution(model, task, method="eap", direction=d) for d in ("noising", "denoising"))
    close(ends.mean, (forward.mean - back.mean) / 2, 2e-5)
    acts = edge_attribution(model, task, method="eap-ig-activations", steps=3)
    inputs = edge_attribution(model, task, steps=3, tolerance=None)
    close(acts.mean[0], inputs.mean[0], 2e-5)  # of the embedding the two paths are one
    assert np.abs(acts.mean[1:] - inputs.mean[1:]).max() > 0


def test_the_model_is_left_as_it_was():
    model = interp.load(build("llama"))
    held = {n: (p.requires_grad, p.detach().clone()) for n, p in model.torch_module.named_parameters()}
    next(iter(model.torch_module.parameters())).requires_grad = False
    edge_attribution(model, pairs(), steps=1, tolerance=None)
    for i, (key, parameter) in enumerate(model.torch_module.named_parameters()):
        assert parameter.requires_grad == (i > 0)
        assert parameter.grad is None
        assert torch.equal(parameter, held[key][1])


def test_kl_needs_a_path():
    model, task = tiny("llama"), pairs()
    with pytest.raises(TaskError, match="gradient is zero"):
        edge_attribution(model, task, method="eap", metric="kl")
    with pytest.raises(TaskError, match="gradient is zero"):
        node_attribution(model, task, metric="kl")
    found = edge_attribution(model, task, metric="kl", steps=20, tolerance=None)
    assert found.mean.any()
    assert found.provenance["change"] == pytest.approx(
        float(Case.of(model, task, metric="kl").corrupt.mean()), rel=1e-4
    )


def test_steps_are_doubled_while_the_sum_misses():
    model, task = tiny("gpt_oss"), pairs()
    found = edge_attribution(model, task, steps=2, tolerance=1e-9, max_steps=8)
    assert list(found.provenance["residuals"]) == ["2", "4", "8"]
    assert found.provenance["steps"] == 8
    assert list(edge_attribution(model, task, steps=2, tolerance=None).provenance["residuals"]) == ["2"]


def test_scores_become_graphs_with_intervals():
    model, task = tiny("llama"), pairs((9, 5, 7, 6, 8, 4))
    scores = edge_attribution(model, task, method="eap")
    graph = scores.graph
    assert isinstance(graph, Graph)
    exists = graph.layout.exists
    assert_equal_to_rounding(scores.prompts.mean(0), scores.mean)
    assert (graph.columns["ci_low"][exists] <= graph.columns["ci_high"][exists]).all()
    np.testing.assert_allclose(
        graph.columns["se"][exists], scores.prompts.std(0, ddof=1)[exists] / np.sqrt(6), rtol=1e-4, atol=1e-9
    )
    stable = scores.stability(10, resamples=12)
    assert stable.to_full.shape == (12,)
    assert 0 < stable.pairwise <= 1
    assert scores.stability(graph.layout.n_edges, how="top", resamples=3).pairwise == 1.0
    assert list(stable.table()["n"]) == [12]
    means = edge_attribution(model, task, method="eap", keep_prompts=False)
    assert means.prompts is None
    np.testing.assert_array_equal(means.mean, scores.mean)
    with pytest.raises(SchemaError, match="nothing to resample"):
        means.stability(10)
    with pytest.raises(SchemaError, match="by_role"):
        scores.role("A")


def test_a_plan_states_passes_and_memory(monkeypatch):
    model, task = tiny("llama"), pairs()
    stated = {m: plan(model, task, method=m) for m in ("eap", "clean-corrupted", "eap-ig", "eap-ig-activations")}
    passes = {m: (p.forwards, p.backwards) for m, p in stated.items()}
    assert passes == {
        "eap": (2, 1),
        "clean-corrupted": (2, 2),
        "eap-ig": (7, 5),
        "eap-ig-activations": (22, 20),  # five of the embedding, of both parts of layer 0, and halves of those of 1
    }
    assert plan(model, task, steps=5, rule="left").forwards == 6
    assert "backward" in str(stated["eap"])
    assert plan(model, task, batch_size=1).memory["autograd"] < stated["eap"].memory["autograd"]
    monkeypatch.setattr("circuits.attribution.cost.free_bytes", lambda device: 1000)
    with pytest.raises(BackendError, match=r"are free on cpu; take a smaller batch_size"):
        edge_attribution(model, task)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "eap-ig-inputs"}, "unknown method 'eap-ig-inputs'"),
        ({"rule": "middle"}, "unknown rule 'middle'"),
        ({"direction": "up"}, "unknown direction 'up'"),
        ({"steps": 0}, "0 steps"),
        ({"metric": "accuracy"}, "has no gradient"),
    ],
)
def test_refusals(options, said):
    with pytest.raises(TaskError, match=said):
        edge_attribution(tiny("llama"), pairs((5,)), **options)


@pytest.mark.parametrize("backend", ["nnsight", "lens"])
def test_the_backends_agree(backend):
    hf, task = tiny("llama"), pairs((6, 6))
    other = interp.load(hf.torch_module, backend=backend)
    close(edge_attribution(other, task, method="eap").mean, edge_attribution(hf, task, method="eap").mean, 1e-5)
