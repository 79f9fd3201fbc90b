"""Tables of analyses, of patching and of circuits join on `component`, also where heads share keys and values."""

import pandas as pd
import pytest

import interp
from circuits.attribution.edge_gradients import edge_attribution
from circuits.evaluation import truth
from circuits.evaluation._minimality import minimality
from circuits.graph.layout import Layout
from circuits.patching.paths import path_patching
from interp.components import Component, Edge, head_name
from interp.patching.activations import activation_patching
from interp.patching.nodes import node_attribution
from interp.tasks import planted_task
from interp.zoo.planted import factory

MERGE = {"on": "component", "how": "outer", "validate": "one_to_one", "indicator": True}


@pytest.fixture(scope="module")
def planted():
    return factory.plant([factory.Induction()], architecture="llama-gqa", seed=0)


@pytest.fixture(scope="module")
def model(planted):
    return interp.load(planted.model, tokenizer=planted.tokenizer)


@pytest.fixture(scope="module")
def task(planted):
    return planted_task(planted, "induction", n=4)


def merged(left, right):
    """Both tables side by side; every row of either has its fellow."""
    found = left[["component", "value"]].merge(right[["component", "value"]], **MERGE)
    assert (found["_merge"] == "both").all()
    return found


def test_heads_of_analyses_patching_and_a_circuit(planted, model, task):
    heads = interp.analyze(model, "induction", causal=False, n_prompts=4).top("induction", k=1000)
    patched = activation_patching(model, task, nodes="heads").table
    paths = path_patching(model, task, senders="heads").table
    scored = node_attribution(model, task).table().query("kind == 'z'").rename(columns={"score": "value"})
    graph = edge_attribution(model, task, method="eap").graph
    sent = graph.table().groupby("sender")["score"].sum().rename_axis("component").rename("value").reset_index()
    senders = sent[sent["component"].map(lambda name: Component.parse(name).kind == "head")]
    for other in (patched, paths, scored, senders):
        assert len(merged(heads, other)) == model.info.n_layers * model.info.n_heads
    assert heads.set_index("component")["value"].idxmax() == head_name(*planted.truth.roles["induction"][0])


def test_heads_of_an_analysis_and_the_nodes_of_a_circuit(planted, model, task):
    """The circuit's heads are those that play the roles; the analysis says how strongly one of them does."""
    circuit = truth.planted(planted.truth, Layout.of(model.info, parallel=False))
    nodes = minimality(model, task, circuit)
    heads = interp.analyze(model, "induction", causal=False, n_prompts=4).top("induction", k=1000)
    both = nodes.merge(heads, on="component", validate="one_to_one")
    roles = {role: {head_name(*place) for place in places} for role, places in planted.truth.roles.items()}
    assert set(both["component"]) == roles["induction"] | roles["previous_token"]
    assert set(both.loc[both["value"] > 0.5, "component"]) == roles["induction"]
    edges = minimality(model, task, circuit, of="edges")["edge"].map(Edge.parse)
    assert set(edges) == set(circuit.edges)


def test_key_value_heads_of_gates_patching_attribution_and_a_circuit(model, task):
    gates = interp.analyze(model, "retrieval_gates", n_prompts=2, steps=1).table
    assert gates["component"].str.fullmatch(r"L\d+KV\d+").all()
    patched = activation_patching(model, task, nodes="k").table
    scored = node_attribution(model, task).table().query("kind == 'k'").rename(columns={"score": "value"})
    edges = edge_attribution(model, task, method="eap").graph.table().query("port == 'k'")
    received = edges.groupby("receiver")["score"].sum().rename_axis("component").rename("value").reset_index()
    for other in (patched, scored, received):
        assert len(merged(gates, other)) == model.info.n_layers * model.info.n_kv_heads


def test_every_name_in_these_tables_is_a_component(model, task):
    graph = edge_attribution(model, task, method="eap").graph
    edges = graph.table()
    names = pd.concat(
        [
            edges["sender"],
            edges["receiver"],
            node_attribution(model, task).table()["component"],
            activation_patching(model, task, nodes=["mlp_out", "attn_out", "resid_pre", "z"]).table["component"],
        ]
    ).unique()
    assert [str(Component.parse(name)) for name in names] == list(names)
    assert {Component.parse(name).kind for name in names} == {
        *("embed", "head", "kv_head", "mlp", "logits", "stream", "attn")
    }
