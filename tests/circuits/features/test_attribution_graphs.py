"""Attribution graphs beside forward passes with a source taken out, products of weights, and dense algebra."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from dictionaries_made import random_dictionary, transcoders
from numpy.testing import assert_allclose
from tiny_models import SPANNING, build, tiny
from torch.testing import assert_close

import interp
from circuits.features import influence as flow
from circuits.features.attribute import attribution_graph
from circuits.features.edge_check import check_edges
from circuits.features.graph_files import AttributionGraph
from circuits.features.influence import Edges
from circuits.features.local import LocalModel
from circuits.features.own_neurons import neurons
from circuits.features.schema import document, pairing
from interp.dictionaries import Dictionaries, Dictionary, Gated, JumpReLU, Normalisation, TopK
from interp.edits import Scale
from interp.errors import NotApplicable, SchemaError, TaskError

IDS = [5, 6, 7, 8, 9, 5]
EVERYTHING = {"node": None, "k": 10_000, "logits": 3}
SKIP = torch.randn(64, 64, generator=torch.Generator().manual_seed(9)) / 20


def own_neurons(model):
    """Transcoders that are the MLPs themselves: those of OPT are a ReLU between two matrices."""
    members = []
    for i, layer in enumerate(model.torch_module.model.decoder.layers):
        first, last = layer.fc1, layer.fc2
        w = [x.detach() for x in (first.weight.mT, last.weight.mT, first.bias, last.bias)]
        members.append(Dictionary(*w).at(f"L{i}.mlp_in", f"L{i}.mlp_out"))
    return Dictionaries(tuple(members))


@cache
def relu():
    """(model, its neurons as transcoders, their whole graph with heads)."""
    model = tiny("opt")
    d = own_neurons(model)
    return model, d, attribution_graph(model, IDS, d, heads=True, max_features=90, **EVERYTHING)


def weights_of(graph):
    names = [n.name for n in graph.nodes]
    e = graph.edges
    return {(names[s], names[t]): float(w) for s, t, w in zip(e.source, e.target, e.weight, strict=True)}


def mixed():
    """Every kind of reading: gated with a skip, layer norm, a threshold and a scale, an autoencoder of attention."""
    gated = Gated(torch.zeros(24), torch.linspace(-0.5, 0.5, 24))
    return Dictionaries(
        (
            random_dictionary("L0.mlp_in", "L0.mlp_out", activation=gated, skip=SKIP),
            random_dictionary(
                "L0.attn_out", activation=TopK(5), normalisation=Normalisation("layer_norm"), centred=True, scaled=True
            ),
            random_dictionary(
                "L1.resid_mid",
                "L1.mlp_out",
                activation=JumpReLU(torch.full((24,), 0.1)),
                normalisation=Normalisation("scale", undo=False, scale=0.3),
                seed=1,
            ),
            random_dictionary("L1.resid_pre", normalisation=Normalisation("constant_norm"), seed=2),
        )
    )


def test_where_transcoders_are_the_mlps_the_graph_is_the_model():
    """Direct paths and paths through one head as products of weights; nothing is left for errors."""
    model, d, graph = relu()
    assert graph.replacement == pytest.approx(1) and graph.completeness == pytest.approx(1)
    assert all(n.value < 1e-5 for n in graph.nodes if n.kind == "error")
    w, weights = weights_of(graph), model.weights()
    sites = ["L1.norm_scale", "L1.mlp_norm_scale", "norm_scale", "L1.pattern"]
    run = model.run([IDS], capture=sites)
    s_attn, s_mlp, s_end, pattern = (run[site][0] for site in sites)
    layer, norm_attn, norm_mlp, norm_end = weights[1], model.reads(1).attn, model.reads(1).mlp, weights.final_norm
    centred = weights.w_u - weights.w_u.mean(1, keepdim=True)
    features = {n.name: n for n in graph.nodes if n.kind == "feature"}
    compared = {"logit": 0, "across": 0}
    for (source, target), weight in w.items():
        if source not in features:
            continue
        f = features[source]
        written = f.value * d[f.layer].w_dec[f.number]
        if f.layer == 1 and f.position == len(IDS) - 1 and target.startswith("logit"):
            token = int(target.split(":")[2].split("@")[0])
            expected = norm_end.linear(written) / s_end[-1] @ centred[:, token]
            assert weight == pytest.approx(float(expected), rel=1e-3, abs=1e-4)
            compared["logit"] += 1
        elif f.layer == 0 and target in features and features[target].position != f.position:
            t = features[target]
            value = norm_attn.linear(written) / s_attn[f.position]
            seen = pattern[:, t.position, f.position]
            moved = torch.einsum("h,d,hdk,hkm->m", seen, value, layer.w_v, layer.w_o)
            expected = norm_mlp.linear(moved) / s_mlp[t.position] @ d[1].w_enc[:, t.number]
            assert weight == pytest.approx(float(expected), rel=1e-3, abs=1e-4)
            compared["across"] += 1
    assert min(compared.values()) > 20, compared


def test_parts_by_head_are_the_products_through_each_and_sum_to_the_weight():
    model, d, graph = relu()
    nodes, weights = graph.nodes, model.weights()
    run = model.run([IDS], capture=["L1.norm_scale", "L1.mlp_norm_scale", "L1.pattern"])
    s_attn, s_mlp, pattern = (run[k][0] for k in ("L1.norm_scale", "L1.mlp_norm_scale", "L1.pattern"))
    layer, reads, seen = weights[1], model.reads(1), 0
    e = graph.edges
    w = dict(zip(zip(e.source.tolist(), e.target.tolist(), strict=True), e.weight.tolist(), strict=True))
    for (s, t), parts in graph.heads.items():
        assert sum(parts.values()) == pytest.approx(w[s, t], abs=1e-4)
        source, target = nodes[s], nodes[t]
        if source.kind == target.kind == "feature" and source.layer == 0 and target.layer == 1:
            written = source.value * d[0].w_dec[source.number]
            value = reads.attn.linear(written) / s_attn[source.position]
            for name in parts.keys() & {"L1H0", "L1H5"}:
                head = int(name[3:])
                moved = pattern[head, target.position, source.position] * (value @ layer.w_v[head] @ layer.w_o[head])
                read = reads.mlp.linear(moved) / s_mlp[target.position] @ d[1].w_enc[:, target.number]
                assert parts[name] == pytest.approx(float(read), rel=1e-3, abs=1e-4)
                seen += 1
    assert seen > 20
    assert graph.table()["head"].isin(["direct", "rest", *(f"L{i}H{h}" for i in range(2) for h in range(8))]).all()


@pytest.mark.parametrize("name", SPANNING)
def test_edges_are_what_taking_the_source_out_does(name):
    """A cross-layer transcoder on every architecture; the sums over sources are closed."""
    model, d = tiny(name), transcoders()
    graph = attribution_graph(model, IDS, d, **EVERYTHING)
    assert graph.affine_error < 1e-5 and graph.closure < 1e-4
    outcome = check_edges(model, graph, d, n=200, sizes=(1.0,))
    assert_allclose(outcome.table["held"], outcome.table["predicted"], rtol=1e-2, atol=2e-4)
    assert outcome.held > 0.99 and abs(outcome.random) < 0.3
    assert outcome.model > 0.5
    assert 0 < graph.replacement < 1 and 0 < graph.completeness < 1


def test_every_kind_of_dictionary_closes_and_predicts():
    model, d = tiny("llama"), mixed()
    graph = attribution_graph(model, IDS, d, **EVERYTHING)
    assert graph.closure < 1e-4
    outcome = check_edges(model, graph, d, n=300, sizes=(1.0,))
    assert_allclose(outcome.table["held"], outcome.table["predicted"], rtol=1e-2, atol=2e-4)
    assert {n.site for n in graph.nodes if n.kind == "feature"} == {str(m.site_in) for m in d}
    with pytest.raises(NotApplicable, match="stream"):
        attribution_graph(model, IDS, d, heads=True)


def test_features_of_a_reading_are_linear_in_it():
    model = tiny("llama")
    local = LocalModel(model, mixed(), IDS)
    a = local.active
    for member, (d, x) in enumerate(zip(local.members, local.inputs, strict=True)):
        own = (a.member == member).nonzero()[:, 0]
        r = local.reading(member, a.pos[own], a.feature[own])
        bent = local.inputs[member] * 1.0
        grads = []
        for i in own.tolist():
            y = bent[a.pos[i]].clone().requires_grad_()
            n, _, factor = d.normalisation.apply(y[None])
            if isinstance(factor, torch.Tensor):  # held
                mean = y.mean() if d.normalisation.kind == "layer_norm" else 0.0
                extra = 1e-5 if d.normalisation.kind == "layer_norm" else 0.0
                n = (y - mean) / (factor.detach() + extra)
            before = (n - d.b_dec if d.centred else n) @ d.w_enc
            gain = d.w_dec.norm(dim=-1) if d.scaled else 1.0
            f = d.activation(before * gain, d.b_enc * gain)[0, int(a.feature[i])]
            grads.append(torch.autograd.grad(f, y)[0])
        assert_close(r, torch.stack(grads), atol=1e-4, rtol=1e-3)
        assert len(x) == len(IDS)


@pytest.mark.parametrize("backend", ["lens", "nnsight"])
def test_backends_agree(backend):
    d = transcoders()
    graphs = [
        attribution_graph(m, IDS, d, **EVERYTHING) for m in (tiny("gpt2"), interp.load(build("gpt2"), backend=backend))
    ]
    a, b = map(weights_of, graphs)
    assert a.keys() == b.keys() and max(abs(a[k] - b[k]) for k in a) < 1e-4


def test_neurons_are_a_dictionary_that_leaves_nothing_over():
    """With the gates of a gated MLP held: closed, and errors of 0."""
    graph = attribution_graph(tiny("llama"), IDS, **EVERYTHING)
    assert graph.closure < 1e-4 and graph.replacement == pytest.approx(1, abs=1e-4)
    outcome = check_edges(tiny("llama"), graph, n=60, sizes=(1.0,))
    assert_allclose(outcome.table["held"], outcome.table["predicted"], rtol=1e-2, atol=2e-4)
    with pytest.raises(NotApplicable, match="experts"):
        neurons(tiny("gpt_oss"))


def test_the_strongest_edges_of_each_target_are_kept_and_what_is_lost_is_stated():
    model, d = tiny("gpt2"), transcoders()
    whole = attribution_graph(model, IDS, d, **EVERYTHING)
    few = attribution_graph(model, IDS, d, **{**EVERYTHING, "k": 6})
    assert whole.kept == pytest.approx(1, abs=1e-5) and 0.1 < few.kept < 0.95
    a, b = weights_of(whole), weights_of(few)
    targets = {t for _, t in b}
    for target in targets:
        own = sorted((abs(w) for (_, t), w in a.items() if t == target), reverse=True)
        assert min(abs(w) for (_, t), w in b.items() if t == target) >= own[5] - 1e-6
        assert sum(t == target for _, t in b) <= 6
    limited = attribution_graph(model, IDS, d, **{**EVERYTHING, "max_features": 9})
    influence = dict(zip([n.name for n in whole.nodes], whole.influence.tolist(), strict=True))
    chosen = [n.name for n in limited.nodes if n.kind == "feature"]
    features = sorted((influence[n.name] for n in whole.nodes if n.kind == "feature"), reverse=True)
    assert len(chosen) == 9 and min(influence[name] for name in chosen) >= features[20]


def random_graph(seed=0):
    """Five logits, 30 features in three layers, 10 tokens, 6 errors; dense [target source] and as `Edges`."""
    rng = np.random.default_rng(seed)
    layer = np.repeat([0, 0, 1, 2, 3, 4], [10, 6, 10, 10, 10, 5])  # tokens, errors, features, logits
    a = rng.standard_normal((51, 51)) * (layer[:, None] > layer[None]) * (rng.random((51, 51)) < 0.4)
    target, source = a.nonzero()
    e = Edges(
        torch.tensor(source), torch.tensor(target), torch.tensor(a[target, source]), torch.tensor(np.abs(a).sum(1))
    )
    start = torch.zeros(51, dtype=torch.float64)
    start[-5:] = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05])
    return a, e, start, layer


def test_influence_scores_and_pruning_are_those_of_the_dense_formulas():
    a, e, start, _ = random_graph()
    share = np.abs(a) / np.maximum(np.abs(a).sum(1, keepdims=True), 1e-30)
    expected = start.numpy() @ (np.linalg.inv(np.eye(51) - share) - np.eye(51))
    reach = flow.influence(e, start)
    assert_allclose(reach.numpy(), expected, atol=1e-12)
    kind = torch.arange(51)
    embedding, error = kind < 10, (kind >= 10) & (kind < 16)
    replacement, completeness = flow.scores(e, start, embedding=embedding, error=error)
    assert replacement == pytest.approx(expected[:10].sum() / expected[:16].sum())
    weight = (expected + start.numpy()) * (np.abs(a).sum(1) > 0)
    assert completeness == pytest.approx(((1 - share[:, 10:16].sum(1)) * weight).sum() / weight.sum())
    assert flow.kept_share(e, start) == pytest.approx(1)
    half = e.where(torch.arange(len(e.weight)) % 2 == 0)
    assert 0.3 < flow.kept_share(half, start) < 0.7
    fixed, inner = embedding | (kind >= 46), (kind >= 16) & (kind < 46)
    nodes, edges = flow.prune(e, start, node=0.8, edge=0.98, fixed=fixed, inner=inner)
    order = np.argsort(-expected)
    n = int((np.cumsum(expected[order]) < 0.8 * expected.sum()).sum()) + 1
    assert set(np.flatnonzero(nodes.numpy())) <= {*order[:n], *np.flatnonzero(fixed.numpy())}
    assert nodes[fixed].all() and len({*order[:n]} - {*np.flatnonzero(nodes.numpy())}) < 3
    into, out = np.bincount(e.target[edges], minlength=51) > 0, np.bincount(e.source[edges], minlength=51) > 0
    assert (into & out)[np.flatnonzero((nodes & inner).numpy())].all()
    smaller = flow.prune(e, start, node=0.8, edge=0.5, fixed=fixed, inner=inner)[1]
    assert 0 < smaller.sum() < edges.sum()


SCHEMA = {  # of Neuronpedia's graphs: what is required, and of which type
    "metadata": {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str},
    "qParams": {"pinnedIds": list, "supernodes": list, "linkType": str, "clickedId": str, "sg_pos": str},
    "nodes": {
        "node_id": str,
        "feature": int,
        "layer": str,
        "ctx_idx": int,
        "feature_type": str,
        "jsNodeId": str,
        "clerp": str,
    },
    "links": {"source": str, "target": str, "weight": float},
}
SOMETIMES = {"influence": (float, type(None)), "activation": (float, type(None)), "node_threshold": float}
FEATURE_TYPES = {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}


def test_json_keeps_to_the_schema_and_gives_the_same_graph_back(tmp_path):
    graph = relu()[2].pruned(node=0.6, edge=0.9)
    path = graph.save(tmp_path / "graph.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(document(graph)))
    for part, fields in SCHEMA.items():
        entries = content[part] if isinstance(content[part], list) else [content[part]]
        assert entries
        for entry in entries:
            assert all(type(entry[name]) is kind for name, kind in fields.items())
            assert all(isinstance(entry[name], kind) for name, kind in SOMETIMES.items() if name in entry)
    ids = [n["node_id"] for n in content["nodes"]]
    assert len(set(ids)) == len(ids) and {n["feature_type"] for n in content["nodes"]} <= FEATURE_TYPES
    assert {end for link in content["links"] for end in (link["source"], link["target"])} <= set(ids)
    first = next(n for n in content["nodes"] if n["feature_type"] == "cross layer transcoder")
    assert first["feature"] == pairing(int(first["layer"]), int(first["node_id"].split("_")[1]))
    assert pairing(0, 0) == 0 and pairing(2, 3) == 18
    again = AttributionGraph.load(path)
    assert again.nodes == graph.nodes and again.tokens == graph.tokens and again.heads == graph.heads
    for name in ("source", "target", "weight", "total"):
        assert torch.equal(getattr(again.edges, name), getattr(graph.edges, name))
    assert document(again) == document(graph) and again.table().equals(graph.table())
    assert again.summary() == graph.summary()
    (tmp_path / "other.json").write_text(json.dumps({**content, "metadata": {"prompt": "x"}}))
    for bad in ("other.json", "missing.json"):
        with pytest.raises(SchemaError, match="cannot read|not an attribution graph"):
            AttributionGraph.load(tmp_path / bad)


def test_the_picture_shows_the_strongest_edges_and_every_token():
    graph = relu()[2]
    figure = graph.draw()
    named = {trace.name: trace for trace in figure.data if trace.name}
    assert len(named["embedding"].x) == len(IDS) and len(named["logit"].x) == 3
    assert "strongest 400 of" in figure.layout.title.text
    lines = sum(int(np.isnan(np.array(t.x, dtype=float)).sum()) for t in figure.data if t.mode == "lines")
    assert lines == 400
    best = graph.nodes[int(graph.edges.source[graph.edges.share.argmax()])].name
    assert any(best in text for trace in named.values() for text in trace.hovertext)


def test_refusals():
    model, d = tiny("gpt2"), transcoders()
    with pytest.raises(TaskError, match="one prompt"):
        attribution_graph(model, [IDS, IDS], d)
    with pytest.raises(TaskError, match="position 9"):
        attribution_graph(model, IDS, d, position=9)
    with pytest.raises(SchemaError, match="k is at least 1"):
        attribution_graph(model, IDS, d, k=0)
    with pytest.raises(NotApplicable, match=r"L0\.z"):
        attribution_graph(model, IDS, random_dictionary("L0.z"))
    with pytest.raises(SchemaError, match="where it belongs"):
        attribution_graph(model, IDS, Dictionary(*(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2), torch.ones(2))))
    with pytest.raises(NotApplicable, match="L1.resid_mid is edited"):
        attribution_graph(model, IDS, d, heads=True, edits=[Scale("L1.resid_mid", 0.5)])
    graph = attribution_graph(model, IDS, d, max_features=5, k=5)
    with pytest.raises(SchemaError, match="share of influence"):
        graph.pruned(node=1.5)
    with pytest.raises(SchemaError, match="none of them 0"):
        check_edges(model, graph, d, sizes=(0.0,))
    with pytest.raises(SchemaError, match="not active"):
        check_edges(model, graph, random_dictionary("L1.mlp_in", "L1.mlp_out", seed=8))
