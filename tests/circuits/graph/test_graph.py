"""Circuits as values: which edges there are, which are chosen, and what is kept when they are written down."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from circuits.evaluation import truth
from circuits.graph import select
from circuits.graph.drawing import MOST
from circuits.graph.graph import Graph
from circuits.graph.layout import Layout
from interp.components import LOGITS, Edge
from interp.errors import SchemaError
from interp.zoo.planted import factory

SMALL = Layout(3, 4, 4)
GROUPED = Layout(3, 4, 2)
LAYOUTS = [SMALL, GROUPED, Layout(3, 4, 4, parallel=True), Layout(3, 4, 2, mlps=False, attention_layers=(0, 2))]


def scored(layout, seed=0):
    scores = np.random.default_rng(seed).standard_t(2, size=layout.exists.shape)
    return Graph.full(layout, scores, provenance={"method": "noise", "seed": seed})


@pytest.mark.parametrize(
    ("layout", "n"),
    [(Layout(12, 12, 12), 32491), (Layout(4, 8, 8), 1519), (Layout(4, 8, 8, mlps=False), 1281)],
)
def test_edge_counts_of_the_literature(layout, n):
    assert layout.n_edges == Graph.full(layout).n_edges == n


@pytest.mark.parametrize("layout", LAYOUTS)
def test_edge_count_by_formula(layout):
    n, written = 0, 1
    for layer in range(layout.n_layers):
        heads, mlp = layout.n_heads * layout.has_heads(layer), int(layout.mlps)
        n += written * (heads + 2 * heads // layout.group)
        n += mlp * (written + (0 if layout.parallel else heads))
        written += heads + mlp
    assert layout.n_edges == n + written


def test_parallel_blocks_have_no_edge_from_heads_to_their_own_mlp():
    assert ("L1H0", "M1", "in") in Graph.full(SMALL)
    parallel = Graph.full(Layout(3, 4, 4, parallel=True))
    assert ("L1H0", "M2", "in") in parallel
    with pytest.raises(SchemaError, match="no edge from L1H0 to M1: it is read before L1H0 is written"):
        assert ("L1H0", "M1", "in") in parallel


def test_keys_of_a_group_are_one_edge():
    graph = Graph.of(GROUPED, [Edge("embed", "L1H2", "k"), Edge("embed", "L1H3", "k"), Edge("L1H3", LOGITS, "in")])
    assert [str(e.receiver) for e in graph.edges] == ["L1KV1", LOGITS]
    assert graph.nodes == ("embed", "L1H3", LOGITS)  # L1H2 leads nowhere
    assert graph.pruned().n_edges == 2


def test_names_that_are_none():
    for edge, message in (
        (("L9H0", LOGITS, "in"), "no sender 'L9H0'"),
        (("embed", "L0H0", "in"), "no receiver 'L0H0' at port 'in'"),
        ((LOGITS, "M0", "in"), "no sender 'logits'"),
    ):
        with pytest.raises(SchemaError, match=message):
            SMALL.place(edge)
    with pytest.raises(SchemaError, match="cannot share"):
        Layout(1, 4, 3)
    with pytest.raises(SchemaError, match="an edge that does not exist"):
        Graph(SMALL, np.zeros(SMALL.exists.shape), np.ones(SMALL.exists.shape, dtype=bool))


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25)
@given(seed=st.integers(0, 999), n=st.integers(0, 80), absolute=st.booleans())
def test_choices(layout, seed, n, absolute):
    graph = scored(layout, seed)
    strength = select.strength(graph.scores, layout, absolute=absolute)
    top = graph.top(n, absolute=absolute, prune=False)
    assert top.n_edges == min(n, layout.n_edges)
    if 0 < n < layout.n_edges:
        assert strength[top.mask].min() >= strength[layout.exists & ~top.mask].max()
        same = graph.threshold(strength[top.mask].min(), absolute=absolute, prune=False)
        assert_array_equal(same.mask, top.mask)
    grown = graph.greedy(n, absolute=absolute, prune=False)
    assert grown.n_edges == min(n, layout.n_edges)
    leads = {LOGITS, *(s for s in layout.senders if grown.mask[layout.sender_index[s]].any())}
    assert all(leads & {*layout.readers(edge.receiver)} for edge in grown)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25)
@given(seed=st.integers(0, 999), n=st.integers(0, 80))
def test_what_is_left_after_pruning_hangs_together(layout, seed, n):
    pruned = scored(layout, seed).top(n, prune=False).pruned()
    assert_array_equal(pruned.pruned().mask, pruned.mask)
    entered = {link.receiver for link in pruned.links()}
    left = {link.sender for link in pruned.links()}
    assert left - {"embed"} <= entered
    assert entered - {LOGITS} <= left
    assert not pruned.n_edges or ("embed" in left and LOGITS in entered)


def test_pruning_a_chain_by_hand():
    chain = [("embed", "L0H1", "v"), ("L0H1", "L1H2", "k"), ("L1H2", LOGITS, "in")]
    dangling = [("embed", "M0", "in"), ("L1H0", LOGITS, "in"), ("L0H3", "L2H0", "q"), ("L2H0", "M2", "in")]
    assert set(Graph.of(SMALL, [*chain, *dangling]).pruned().edges) == {Edge(*edge) for edge in chain}
    assert Graph.of(SMALL, chain[:2]).pruned().n_edges == 0


def test_growth_takes_the_strongest_edge_into_what_is_there():
    into = {"embed": 1.0, "L0H0": 3.0, "M1": 2.0}
    scores = {Edge(sender, LOGITS, "in"): value for sender, value in into.items()} | {Edge("embed", "L0H0", "v"): 9.0}
    graph = Graph.of(SMALL, scores)
    chosen = [set(graph.greedy(n, prune=False).edges) for n in (1, 2, 3)]
    assert chosen[0] == {Edge("L0H0", LOGITS, "in")}
    assert chosen[1] == {*chosen[0], Edge("embed", "L0H0", "v")}
    assert chosen[2] == {*chosen[1], Edge("M1", LOGITS, "in")}


def test_edges_without_a_score_are_never_chosen():
    graph = Graph.of(SMALL, {Edge("embed", LOGITS, "in"): -2.0, Edge("embed", "M0", "in"): 1.0})
    assert graph.top(9, prune=False).n_edges == 2
    assert graph.top(1, prune=False).edges == (Edge("embed", LOGITS, "in"),)
    assert graph.top(1, absolute=False, prune=False).edges == (Edge("embed", "M0", "in"),)
    with pytest.raises(SchemaError, match="-1 edges asked for"):
        graph.greedy(-1)


@settings(max_examples=25)
@given(a=st.integers(0, 99), b=st.integers(0, 99))
def test_set_operations(a, b):
    one, two = scored(SMALL, a).top(40, prune=False), scored(SMALL, b).top(30, prune=False)
    both, either = one & two, one | two
    assert both.n_edges + either.n_edges == one.n_edges + two.n_edges
    assert (one - two).n_edges == one.n_edges - both.n_edges
    np.testing.assert_allclose(one.jaccard(two), both.n_edges / either.n_edges)
    np.testing.assert_allclose(one.reuse(two), both.n_edges / one.n_edges)
    assert one.jaccard(one) == one.jaccard(one, of="nodes") == 1.0
    assert one.complement().n_edges == SMALL.n_edges - one.n_edges
    assert 0 <= one.reuse(two, of="nodes") <= 1


def test_circuits_of_different_models_are_not_compared():
    with pytest.raises(SchemaError, match="different models"):
        scored(SMALL).jaccard(scored(GROUPED))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_and_loaded(layout, tmp_path):
    graph = scored(layout)
    graph = dataclasses.replace(graph, columns={"ci_low": graph.scores - 1}).top(25, prune=False)
    graph.scores[tuple(np.argwhere(graph.mask)[0])] = np.nan
    loaded = Graph.load(graph.save(tmp_path / "circuit.json"))
    assert loaded.layout == layout
    assert loaded.provenance == graph.provenance
    assert_array_equal(loaded.mask, graph.mask)
    assert_array_equal(loaded.scores[graph.mask], graph.scores[graph.mask])
    assert loaded.table().equals(graph.table())
    json.loads(graph.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    for text, message in (("{", "not JSON"), ('{"schema": 7}', "not a circuit of schema 1")):
        with pytest.raises(SchemaError, match=message):
            Graph.from_json(text)


def test_networkx_and_dot():
    import networkx as nx

    graph = scored(GROUPED).top(30)
    found = graph.to_networkx()
    assert tuple(sorted(found)) == tuple(sorted(graph.nodes))
    assert found.number_of_edges() == len(list(graph.links()))
    assert nx.is_directed_acyclic_graph(found)
    assert all(nx.has_path(found, "embed", name) and nx.has_path(found, name, LOGITS) for name in found)
    text = graph.to_dot()
    assert text.count("->") == found.number_of_edges()
    assert text.count("{") == text.count("}")


def test_drawing_shows_every_link_and_centres_colours():
    graph = scored(Layout(4, 12, 4)).greedy(160)
    figure = graph.draw(title="a circuit")
    links = list(graph.links())
    hover = next(trace for trace in figure.data if trace.mode == "markers")
    assert len(hover.x) == len(links)
    assert hover.marker.cmin == -hover.marker.cmax
    assert {text.split("</b>")[0].removeprefix("<b>") for text in hover.text} == {
        f"{link.sender} → {link.receiver}" for link in links
    }
    names = next(trace for trace in figure.data if trace.mode == "text" and "embed" in trace.text)
    places = dict(zip(names.text, zip(names.x, names.y, strict=True), strict=True))
    assert set(places) == set(graph.nodes)
    assert all(places[link.sender][1] < places[link.receiver][1] for link in links)
    for y in {y for _, y in places.values()}:
        row = sorted(x for x, other in places.values() if other == y)
        assert min(np.diff(row), default=1.0) > 0.999
    assert figure.layout.width <= 1280
    page = graph._repr_html_()
    assert "77 of 1,823 edges" in page


def test_drawings_of_nothing_and_of_too_much():
    assert "without edges" in Graph.of(SMALL, []).draw().layout.annotations[0].text
    whole = scored(Layout(6, 8, 8)).draw()
    assert f"strongest {MOST} of" in whole.layout.title.text
    assert Graph.of(SMALL, [("embed", LOGITS, "in")]).draw().data  # without scores


def test_published_circuits_are_well_formed():
    assert {"ioi_gpt2_small", "greater_than_gpt2_small", "docstring_attn_only_4l"} <= set(truth.names())
    for name in truth.names():
        for variant in truth.variants(name):
            found = truth.published(name, variant=variant)
            assert found.nodes and found.source and found.disagreements
            named = {component for group in (*found.heads.values(), *found.mlps.values()) for component in group}
            assert named == set(found.nodes)
            assert found.edges == tuple(dict.fromkeys(found.edges))
            if found.edges:
                assert found.graph().pruned().n_edges == found.graph().n_edges, name


def test_published_counts():
    """ACDC counts 37 docstring edges: ours and one placeholder for each q, k or v that something enters."""
    docstring = truth.published("docstring_attn_only_4l")
    entered = {edge[1:] for edge in docstring.edges if edge.port != "in"}
    assert len(docstring.edges) + len(entered) == 37
    assert len(truth.published("ioi_gpt2_small").nodes) == 26
    ours, theirs = (set(truth.published("ioi_gpt2_small", variant=v).nodes) for v in ("wang", "discrete-sae"))
    assert ours ^ theirs == {"L9H0", "L11H3"}
    assert len(truth.published("greater_than_gpt2_small", variant="discrete-sae").nodes) == 9


def test_unknown_circuits():
    with pytest.raises(SchemaError, match="did you mean 'ioi_gpt2_small'"):
        truth.published("ioi_gpt2_smal")
    with pytest.raises(SchemaError, match="no variant 'wangs'; did you mean 'wang'"):
        truth.published("ioi_gpt2_small", variant="wangs")
    with pytest.raises(SchemaError, match="lists components and no edges"):
        truth.published("ioi_gpt2_medium").graph()


def test_judging_against_a_truth():
    circuit = truth.published("docstring_attn_only_4l").graph()
    perfect = Graph.full(circuit.layout, np.where(circuit.mask, -2.0, 1.0))
    found = truth.judge_edges(perfect, circuit)
    assert (found["auroc"], found["average_precision"]) == (1.0, 1.0)
    assert truth.judge_edges(perfect, circuit, absolute=False)["auroc"] == 0.0
    assert truth.judge_edges(Graph.full(circuit.layout), circuit)["auroc"] == 0.5
    assert np.isnan(truth.judge_edges(perfect, Graph.of(circuit.layout, []))["auroc"])
    ioi = truth.published("ioi_gpt2_small")
    heads = [name for name in ioi.layout.senders if "H" in name]
    scores = {name: float(name in ioi.nodes) for name in heads}
    assert truth.judge_nodes(scores, ioi.nodes, among=heads)["auroc"] == 1.0
    other = truth.published("ioi_gpt2_small", variant="discrete-sae")
    assert truth.judge_nodes(scores, other.nodes, among=heads)["auroc"] < 1.0


@pytest.mark.parametrize("architecture", ["llama", "llama-gqa", "gpt2"])
def test_planted_truth_as_a_graph(architecture):
    planted = factory.plant([factory.TwoHop(), factory.Induction()], architecture=architecture, seed=2)
    config = planted.model.config
    layout = Layout(
        config.num_hidden_layers,
        config.num_attention_heads,
        getattr(config, "num_key_value_heads", config.num_attention_heads),
    )
    graph = truth.planted(planted.truth, layout)
    assert graph.n_edges == len({layout.place(edge) for edge in planted.truth.edges}) > 10
    assert graph.pruned().n_edges == graph.n_edges


def test_edges_of_another_mechanism_are_neither_right_nor_wrong():
    made = factory.plant([factory.Induction()], architecture="llama-gqa", seed=0)
    config = made.model.config
    layout = Layout(config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    whole, own = truth.planted(made.truth, layout), truth.planted(made.truth, layout, mechanism="induction")
    assert set(made.truth.uses) == {"previous_token", "induction"}
    assert own.n_edges == whole.n_edges - 2  # the previous-token head also says its word itself, and parks at cues
    scored = Graph.full(layout, whole.mask.astype(float))
    assert truth.judge_edges(scored, own)["auroc"] < 1.0
    assert truth.judge_edges(scored, own, beside=whole)["auroc"] == 1.0
    with pytest.raises(SchemaError, match="no mechanism 'inductoin' in this model; did you mean"):
        truth.planted(made.truth, layout, mechanism="inductoin")
