"""Sparse feature circuits beside finite differences, splices, sums that must close, and planted edges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from dictionaries_made import random_dictionary
from numpy.testing import assert_allclose
from tiny_models import SPANNING, build, tiny

import circuits
import interp
from circuits.features import feature_edge_check
from circuits.features.feature_board import feature_board
from circuits.features.feature_judge import verdict_rows
from circuits.features.node_changes import portions
from circuits.features.node_effects import ERROR, Nodes
from circuits.features.node_graph import METRIC_NAME, FeatureCircuit
from circuits.features.node_sets import NodeSetVerdict, judge, masks_of, random_nodes
from circuits.features.node_sites import node_sites
from interp.dictionaries import Clamp, Dictionaries, JumpReLU, Normalisation, Scaled, Splice, TopK
from interp.errors import ModelLoadError, NotApplicable, SchemaError, TaskError
from interp.patching.case import Case
from interp.patching.places import places
from interp.tasks.prompt import collate

CLEAN = [[5, 6, 7, 8, 9], [9, 3, 7, 5, 6], [4, 6, 8, 7]]
CORRUPT = [[5, 16, 7, 8, 9], [9, 13, 7, 5, 6], [4, 16, 8, 7]]
EVERY = {"n_nodes": None, "n_edges": None}
SKIP = torch.randn(64, 64, generator=torch.Generator().manual_seed(9)) / 20


def pairs():
    """Three prompts of two templates that differ from their twins in the second token."""
    return collate(
        "pairs",
        list(zip(CLEAN, CORRUPT, strict=True)),
        answers=[[3]] * 3,
        wrong=[[7]] * 3,
        roles=[{"SECOND": 1}, {"SECOND": 1, "THIRD": 2}, {"SECOND": 1}],
        templates=["long", "long", "short"],
        corruption="second",
        metric="logit_diff",
    )


def mixed():
    """An autoencoder that undoes a layer norm, a transcoder with a skip, one of the stream with a threshold."""
    return Dictionaries(
        (
            random_dictionary(
                "L0.attn_out", activation=TopK(5), normalisation=Normalisation("layer_norm"), centred=True, scaled=True
            ),
            random_dictionary("L0.mlp_in", "L0.mlp_out", skip=SKIP, seed=1),
            random_dictionary("L0.resid_post", activation=JumpReLU(torch.full((24,), 0.1)), seed=2),
            random_dictionary("L1.attn_out", seed=3),
        )
    )


def outgoing(circuit):
    """Sum of the edges out of each node, in the order of the nodes."""
    sums = circuit.edges.groupby("source")["weight"].sum()
    return np.array([sums.get(name, 0.0) for name in circuit.nodes["name"]])


DEAR = [pytest.param(name, marks=[] if name in ("gemma2", "gpt_neox") else pytest.mark.slow) for name in SPANNING]


@pytest.mark.parametrize("name", DEAR)
def test_edges_out_of_a_node_sum_to_its_effect(name):
    """By the chain rule: every path from a node goes first to some other node, or to the metric past all of them."""
    circuit = circuits.feature_circuit(tiny(name), pairs(), dictionaries=mixed(), attribution="atp", **EVERY)
    effects = circuit.nodes["effect"].to_numpy()
    assert_allclose(outgoing(circuit), effects, rtol=0, atol=1e-4 * np.abs(effects).max())
    assert {"L0.resid_post", "L0.mlp_out", "embed", "L1.mlp_out"} <= set(circuit.nodes["site"])
    assert (circuit.edges["target"] == METRIC_NAME).any() and (circuit.edges["se"] >= 0).all()


@pytest.mark.parametrize("site", [0, 1, 2])
def test_effects_to_zero_are_slopes_of_splices(site):
    """A feature scaled down a little: the metric changes by the effect times the share taken away."""
    model, task, d = tiny("llama"), pairs(), mixed()[site]
    circuit = circuits.feature_circuit(
        model, task, dictionaries=d, attribution="atp", baseline="zero", elsewhere="none", **EVERY
    )
    clean, step = task.value(model.run(task.clean).logits), 1e-3
    for _, row in circuit.nodes[circuit.nodes["feature"] >= 0].head(3).iterrows():
        moved = model.run(task.clean, edits=[Splice(d, Scaled(int(row["feature"]), 1 - step))]).logits
        assert (task.value(moved) - clean).mean() / step == pytest.approx(row["effect"], rel=2e-2, abs=2e-3)
    assert (circuit.nodes["feature"] == ERROR).sum() == 1


@pytest.mark.parametrize("baseline", ["counterfactual", "zero"])
def test_integrated_gradients_sum_to_what_the_whole_site_does(baseline):
    model, task = tiny("gpt2"), pairs()
    circuit = circuits.feature_circuit(
        model, task, dictionaries=mixed(), rule="gauss", steps=16, baseline=baseline, **EVERY
    )
    sites = circuit.sites.set_index("site")
    assert_allclose(sites["effect"], sites["measured"], rtol=0, atol=0.02 * abs(circuit.provenance["change"]))
    assert circuit.provenance["completeness_residual"] == sites["residual"].abs().max()
    by_site = circuit.nodes.groupby("site")["effect"].sum()
    assert_allclose(by_site[sites.index], sites["effect"], rtol=0, atol=1e-5)
    if baseline == "counterfactual":
        change = (task.value(model.run(task.corrupt).logits) - task.value(model.run(task.clean).logits)).mean()
        assert_allclose(sites.loc[["embed", "L0.resid_post"], "measured"], float(change), rtol=1e-4)
    first = circuits.feature_circuit(model, task, dictionaries=mixed(), attribution="atp", baseline=baseline)
    assert first.provenance["completeness_residual"] > 5 * circuit.provenance["completeness_residual"]


def test_nodes_of_positions_sum_to_those_of_all_tokens():
    model, task = tiny("llama"), pairs()
    run = {"dictionaries": mixed(), "attribution": "atp", **EVERY}
    whole, parts, roles = (
        circuits.feature_circuit(model, task, positions=p, **run) for p in (None, "all", ["SECOND", "THIRD"])
    )
    sums = parts.nodes.groupby(["site", "feature"])["effect"].sum()
    own = whole.nodes.set_index(["site", "feature"])["effect"]
    assert_allclose(sums[own.index], own, rtol=0, atol=1e-5)
    second = parts.nodes[parts.nodes["position"] == 1].set_index(["site", "feature"])["effect"]
    named = roles.nodes[roles.nodes["role"] == "SECOND"].set_index(["site", "feature"])["effect"]
    assert_allclose(named[second.index], second, rtol=0, atol=1e-6)
    assert roles.nodes["name"].str.contains("@THIRD").any() and not whole.nodes["name"].str.contains("@").any()
    assert_allclose(outgoing(parts), parts.nodes["effect"], rtol=0, atol=1e-4 * parts.nodes["effect"].abs().max())


def test_sets_of_nodes_are_those_of_splices():
    """Features at one site, others 0 and the error kept: a splice with the others clamped."""
    model, task, d = tiny("gpt2"), pairs(), mixed()[2]
    case, sites = Case.of(model, task), node_sites(model, d, elsewhere="none")
    circuit = circuits.feature_circuit(
        model, task, dictionaries=d, attribution="atp", elsewhere="none", baseline="zero", n_nodes=6
    )
    keep = masks_of(sites, 1, circuit.chosen())
    verdict = judge(case, sites, list(circuit.places), [keep], errors="kept", ablation="zero", batch_size=2)
    inside = set(circuit.nodes["feature"])
    outside = [i for i in range(24) if i not in inside]
    for own, values in ((outside, verdict.values[0]), (sorted(inside - {-1}), verdict.complements[0])):
        expected = task.value(model.run(task.clean, edits=[Splice(d, Clamp(own, 0.0))]).logits)
        assert_allclose(values, expected, rtol=0, atol=1e-4)
    assert_allclose(
        verdict.empty, task.value(model.run(task.clean, edits=[Splice(d, Clamp(range(24)))]).logits), atol=1e-4
    )


def test_means_stand_where_nodes_are_taken_out():
    """By template, length and position; of a set that holds everything nothing is taken out."""
    model, task, d = tiny("llama"), pairs(), mixed()
    case, sites = Case.of(model, task), node_sites(model, d)
    at = places(model, case.task, None)
    every = [np.ones((1, s.n_features + 1), dtype=bool) for s in sites]
    verdict = judge(case, sites, at, [every], batch_size=2)
    assert_allclose(verdict.values[0], verdict.full, rtol=0, atol=1e-3)
    assert_allclose(verdict.faithfulness, 1, atol=1e-3)
    last = tuple(s for s in sites if str(s.site) == "L0.resid_post")
    x = model.run(task.corrupt, capture=["L0.resid_post"])["L0.resid_post"]
    mean = torch.stack([*(x[:2].mean(0),) * 2, x[2]])
    expected = task.value(model.run(task.clean, edits=[interp.edits.Replace("L0.resid_post", mean)]).logits)
    for size in (1, 2):  # a group's prompts in several portions, and in one
        assert_allclose(judge(case, last, at, [], batch_size=size).empty, expected, rtol=0, atol=1e-3)
    twin = judge(case, sites, at, [], ablation="resample", batch_size=2).empty
    assert_allclose(twin, task.value(model.run(task.corrupt).logits), rtol=0, atol=1e-3)


def test_random_sets_have_as_many_features_at_each_site():
    sites, place = np.repeat([0, 1], 20), np.tile([0, 1], 20)
    feature = np.where(np.arange(40) % 10 < 2, ERROR, np.arange(40))
    zeros = np.zeros(40)
    every = Nodes(sites, place, feature, zeros, zeros, zeros, zeros.astype(int))
    chosen = every.take(np.array([0, 2, 4, 3, 22]))
    draws = [random_nodes(chosen, every, seed=i) for i in range(5)]
    for drawn in draws:
        counts = [(drawn.feature[drawn.where(s, p)] != ERROR).sum() for s, p in ((0, 0), (0, 1), (1, 0), (1, 1))]
        assert counts == [2, 1, 1, 0]
        errors = drawn.feature == ERROR
        assert set(zip(drawn.site[errors], drawn.place[errors], strict=True)) == {(0, 0)}
    assert len({tuple(sorted(d.feature)) for d in draws}) > 1


def test_a_verdict_is_between_nothing_and_the_model():
    """Two sizes, each beside two random sets: shares of the change from every node out to none, by hand."""
    full, empty = np.array([5.0, 7.0]), np.array([1.0, 1.0])
    values = np.array([[4.0, 6.0], [1.0, 1.0], [3.0, 4.0], [6.0, 6.0], [5.0, 7.0], [1.0, 1.0]])
    verdict = NodeSetVerdict(full, empty, values, values[::-1])
    rows = verdict_rows(verdict, [10, 20], seed=0).set_index(["variant", "size"])
    assert_allclose(rows.loc["faithfulness", "value"], [0.8, 1.0])
    assert_allclose(rows.loc["faithfulness", "null"], [0.25, 0.5])
    assert_allclose(rows.loc["completeness", "value"], [1.0, 0.5])
    assert_allclose(rows.loc["faithfulness", "p"], [1 / 3, 2 / 3])
    assert (rows["ci_low"] <= rows["value"]).all() and (rows["value"] <= rows["ci_high"]).all()


def test_a_small_move_of_the_source_changes_the_target_by_the_weight(monkeypatch):
    """Held, every edge; in the model itself too where nothing stands between source and target."""
    model, task = tiny("gpt2"), pairs()
    d = [random_dictionary("L0.mlp_in", "L0.mlp_out", skip=SKIP), random_dictionary("L0.resid_post"), mixed()[3]]
    circuit = circuits.feature_circuit(model, task, dictionaries=d, attribution="atp", n_nodes=20)
    small = 1e-3

    def near(*arguments, **options):
        for portion in portions(*arguments, **options):
            portion.changes = [replace(c, delta=small * c.delta, rest=small * c.rest) for c in portion.changes]
            yield portion

    monkeypatch.setattr(feature_edge_check, "portions", near)
    table = circuits.check_feature_edges(model, task, circuit, dictionaries=d, n=80).table
    assert_allclose(table["held"], small * table["predicted"], rtol=0.05, atol=2e-5)
    monkeypatch.undo()
    outcome = circuits.check_feature_edges(model, task, circuit, dictionaries=d, n=80)
    assert outcome.held > 0.8 and abs(outcome.random) < 0.35


def test_planted_edges_are_ranked_first_and_interventions_follow():
    board = feature_board(seeds=[0], attributions=["atp"], n_checked=20)
    assert (board["auroc"] >= 0.95).all() and (board["planted"] > 70).all()
    assert (board["held"] > 0.6).all()


@pytest.mark.parametrize("backend", ["lens", "nnsight"])
def test_backends_agree(backend):
    a, b = (
        circuits.feature_circuit(m, pairs(), dictionaries=mixed(), steps=2, n_nodes=12)
        for m in (tiny("gpt2"), interp.load(build("gpt2"), backend=backend))
    )
    for table, column in (("nodes", "effect"), ("edges", "weight"), ("sites", "measured")):
        x, y = getattr(a, table), getattr(b, table)
        key = ["source", "target"] if table == "edges" else [x.columns[0]]
        both = x.merge(y, on=key)
        assert len(both) == len(x)
        assert_allclose(both[f"{column}_x"], both[f"{column}_y"], rtol=0, atol=1e-3)


def test_half_precision_gives_the_same_nodes_and_states_its_residual():
    half = interp.load(build("llama").to(torch.bfloat16))
    exact, rounded = (
        circuits.feature_circuit(m, pairs(), dictionaries=mixed()[2], attribution="atp", **EVERY)
        for m in (tiny("llama"), half)
    )
    both = exact.nodes.merge(rounded.nodes, on="name")
    assert np.corrcoef(both["effect_x"], both["effect_y"])[0, 1] > 0.98
    assert np.isfinite(rounded.provenance["completeness_residual"])


def test_without_dictionaries_nodes_are_coordinates_and_nothing_is_left_over(tmp_path):
    model, task = tiny("gpt2"), pairs()
    circuit = circuits.feature_circuit(model, task, attribution="atp", n_nodes=15, n_edges=30, node_threshold=1e-4)
    assert (circuit.sites["nodes"] <= 64).all() and len(circuit.sites) == 7
    assert set(circuit.nodes["feature"]) & {ERROR} <= set(circuit.nodes.query("site == 'embed'")["feature"])
    back = FeatureCircuit.load(circuit.save(tmp_path / "circuit.parquet"))
    for name in ("nodes", "edges", "sites"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(circuit, name), check_dtype=False)
    assert back.provenance["run_id"] == circuit.provenance["run_id"]
    figure = circuit.draw()
    assert figure.layout.yaxis.ticktext[-1] == METRIC_NAME
    assert {t.name for t in figure.data if t.mode == "markers"} <= {"feature", "error", METRIC_NAME}
    assert set(figure.layout.yaxis.ticktext) <= {*circuit.sites["site"], METRIC_NAME}
    assert len(circuit.result().plot(variant="edge").data)
    with pytest.raises(SchemaError, match="from a file"):
        circuits.judge_features(model, task, back)
    with pytest.raises(SchemaError, match="no feature circuit"):
        FeatureCircuit.of(circuits.node_attribution(model, task).result())


def test_the_method_by_its_name(run, tmp_path):
    code, out, err = run(
        *("circuit", "zoo:default", "--task", "ioi", "--method", "features", "--n-prompts", "4", "--out", tmp_path),
        *("-o", "dictionaries=zoo:default/resid2,zoo:default/mlp2", "-o", "attribution=atp", "-o", "n_sets=2"),
        *("-o", "n_nodes=30", "--top", "3"),
    )
    assert code == 0, err
    assert out.startswith("features on ioi: logit_diff")
    result = interp.Result.load(tmp_path / "table.parquet")
    table = result.table
    assert set(table["variant"]) == {"node", "edge", "site", "faithfulness", "completeness"}
    assert (table[table["variant"] == "site"]["component"] == table[table["variant"] == "site"]["site"]).all()
    verdict = table[table["variant"] == "faithfulness"].iloc[0]
    assert verdict["ci_low"] <= verdict["value"] <= verdict["ci_high"] and verdict["n"] == 2
    assert 0 < verdict["p"] <= 1 and np.isfinite(verdict["null"])
    assert result.provenance["scores"]["judged_on"]["n_prompts"] == 2
    circuit = FeatureCircuit.of(result)
    assert len(circuit.nodes) == 30 and {"L2.resid_post", "L2.mlp_out"} <= set(circuit.sites["site"])


def test_refusals():
    model, task = tiny("gpt2"), pairs()
    one = random_dictionary("L0.attn_out")
    for dictionaries, error, said in (
        ([one, one], SchemaError, "two dictionaries write at L0.attn_out"),
        (random_dictionary("L0.mlp_in", "L0.mlp_out", "L1.mlp_out"), NotApplicable, "writes at 2 sites"),
        (replace(one, site_in=None, sites_out=()), SchemaError, "does not say where it belongs"),
        (random_dictionary("L0H1.z", d_in=8, d_out=8), NotApplicable, "a whole activation"),
        ([3], SchemaError, "where they lie; got 3"),
        ((), SchemaError, "leave the argument out"),
        ("nowhere", ModelLoadError, "no folder"),
    ):
        with pytest.raises(error, match=said):
            circuits.feature_circuit(model, task, dictionaries=dictionaries)
    for options, error, said in (
        ({"elsewhere": "errors"}, SchemaError, "did you mean 'error'"),
        ({"attribution": "igs"}, TaskError, "did you mean 'ig'"),
        ({"baseline": "zeros"}, TaskError, "did you mean 'zero'"),
        ({"n_nodes": 0}, SchemaError, "n_nodes is 0"),
        ({"edge_threshold": -1.0}, SchemaError, "edge_threshold is -1.0"),
        ({"attribution": "atp", "metric": "kl"}, TaskError, "its gradient is zero"),
    ):
        with pytest.raises(error, match=said):
            circuits.feature_circuit(model, task, dictionaries=one, **options)
    same = replace(task, corrupt=task.clean)
    with pytest.raises(TaskError, match="nothing changes"):
        circuits.feature_circuit(model, same, dictionaries=one)
    circuit = circuits.feature_circuit(model, task, dictionaries=one, attribution="atp")
    with pytest.raises(SchemaError, match="the circuit's are others"):
        circuits.judge_features(model, task, circuit, dictionaries=random_dictionary("L1.attn_out"))
    with pytest.raises(SchemaError, match="expected 1 to"):
        circuits.judge_features(model, task, circuit, dictionaries=one, sizes=[10_000])
    for options in ({"errors": "keep"}, {"ablation": "means"}):
        with pytest.raises(TaskError, match="did you mean"):
            circuits.judge_features(model, task, circuit, dictionaries=one, **options)
