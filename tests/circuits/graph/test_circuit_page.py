"""The page of a circuit: what its sign means, whose roles, what the slider shows, every edge once."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pandas as pd
import pytest

from circuits.graph import circuit_page
from circuits.graph.circuit_page import CircuitPage, Size
from circuits.graph.graph import Graph
from circuits.graph.layout import Layout
from circuits.graph.roles import role_names
from circuits.graph.signs import signs
from interp.components import LOGITS, Edge
from interp.errors import SchemaError
from interp.plots.frame import LISTENER, framed

GROUPED = Layout(3, 4, 2)
HOW = {"direction": "noising", "metric": "logit_diff"}


def scored(layout, seed=0, provenance=HOW):
    scores = np.random.default_rng(seed).standard_t(2, size=layout.exists.shape)
    return Graph.full(layout, scores, provenance=provenance)


def data_of(page):
    text = re.search(r'<script type="application/json">(.*?)</script>', page.html, re.DOTALL)[1]
    return json.loads(text, parse_constant=refuse)


def refuse(name):
    """What a browser does with NaN and Infinity: they are no JSON, and the whole page would stay empty."""
    raise ValueError(name)


@pytest.fixture(scope="module")
def page():
    """A circuit of 30 edges within measured ones of 12 and 60, and another that holds neither."""
    whole = scored(GROUPED)
    own, small, large = (whole.greedy(n) for n in (30, 12, 60))
    other = scored(GROUPED, seed=1).greedy(20)
    sizes = tuple(Size(g, g.n_edges / 100, 0.1, 0.2) for g in (large, own, small, other))
    return CircuitPage(own, "a title", "A finding.", ("a note",), {"L1H0": ("induction", "sink")}, sizes)


@pytest.mark.parametrize(
    ("direction", "metric", "negative"),
    [
        ("noising", "logit_diff", "helps"),
        ("noising", "loss_nats", "hurts"),
        ("denoising", "logit_diff", "hurts"),
        ("denoising", "kl", "helps"),
        ("noising", "my own", "negative"),
        (None, "logit_diff", "negative"),
    ],
)
def test_a_sign_helps_or_hurts_by_direction_and_metric(direction, metric, negative):
    """Noising takes the edge away: where more is better, a metric that falls by it had the edge's help."""
    found = signs({"direction": direction, "metric": metric})
    positive = {"helps": "hurts", "hurts": "helps", "negative": "positive"}[negative]
    assert (found.of(-1.0), found.of(1.0), found.of(0.0)) == (negative, positive, "")
    assert found.known is (negative != "negative")
    assert found == signs({"scores": {"direction": direction, "metric": metric}, "metric": metric})


def test_methods_that_name_it_mode_are_read_too():
    call = {"passed": {"mode": "denoising"}, "defaults": {}}
    assert signs({"scores": {"call": call, "metric": "logit_diff"}}).of(1.0) == "helps"


def test_roles_come_as_a_table_a_mapping_or_not_at_all():
    rows = [("L1H0", "sink", "attention pattern"), ("L1H0", "induction", "in-context"), ("L0H1", "copy", "x")]
    table = pd.DataFrame(rows, columns=["component", "role", "stage"])
    assert role_names(table) == {"L1H0": ("induction", "sink"), "L0H1": ("copy",)}
    assert role_names(table[["component", "role"]])["L1H0"] == ("sink", "induction")
    assert role_names({"M3": "recall"}) == {"M3": ("recall",)}
    assert role_names(None) == {}
    for bad, message in (
        (table.rename(columns={"role": "kind"}), "without a column 'role'"),
        ({"L1X": "copy"}, "cannot read component 'L1X'"),
        (["L1H0"], "got list"),
    ):
        with pytest.raises(SchemaError, match=message):
            role_names(bad)


def test_each_measured_size_is_a_beginning_of_the_edges(page):
    assert [size.graph.n_edges for size in page.steps] == sorted(s.graph.n_edges for s in page.sizes[:3])
    for size in page.steps:
        assert set(page.edges[: size.graph.n_edges]) == set(size.graph.edges)
        strengths = [abs(page.graph.score(edge)) for edge in page.edges[: page.steps[0].graph.n_edges]]
        assert strengths == sorted(strengths, reverse=True)
    assert len(page.edges) == page.steps[-1].graph.n_edges
    assert page.first == page.graph.n_edges


def test_every_edge_stands_once_and_a_key_value_head_is_one_node(page):
    data = data_of(page)
    names = [node[0] for node in data["nodes"]]
    edges = [Edge(names[s], names[r], port) for s, r, port, *_ in data["edges"]]
    assert edges == page.edges
    assert len(set(edges)) == len(edges)
    assert any("KV" in name for name in names)
    for kv, head in data["shared"]:
        assert names[head] in GROUPED.readers(names[kv])
    scores = [page.graph.score(edge) for edge in edges]
    np.testing.assert_allclose([edge[3] for edge in data["edges"]], scores, rtol=1e-3)
    assert [row[0] for row in data["sizes"]] == [size.graph.n_edges for size in page.steps]


def test_the_table_without_scripts_is_the_circuit_strongest_first(page):
    table = page.graph.table()
    assert [(row.sender, row.receiver) for row in page.rows] == list(
        table[["sender", "receiver"]].itertuples(index=False, name=None)
    )
    assert [row.effect for row in page.rows] == ["helps" if x < 0 else "hurts" for x in table["score"]]
    text = html.unescape(page.html)
    for part in ("A finding.", "a note", "L1H0 induction, sink", "change of logit diff", "helps"):
        assert part in text
    assert text.index("A finding.") < text.index("<table>")


def test_it_asks_nothing_of_the_network_and_is_the_same_each_time(page, tmp_path):
    saved = page.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert saved == page.html
    links = set(re.findall(r"https?://[^\s\"')]+", saved)) - {"http://www.w3.org/2000/svg"}
    assert links == set()
    assert "default-src 'none'" in saved
    assert len(saved) < 60_000
    assert page.fragment in saved.replace("<h2 class", "<h4 class").replace("Edges</h2>", "Edges</h4>")


def test_text_cannot_become_markup():
    evil = "</script><img src=x onerror=alert(1)>"
    page = Graph.of(GROUPED, [("embed", "L0H1", "q"), ("L0H1", LOGITS, "in")]).page(
        title=evil, finding=evil, notes=[evil], roles={"L0H1": evil}
    )
    assert "<img" not in page.html
    assert "<img" not in page._repr_html_()
    assert data_of(page)["nodes"][1][4] == [evil]


def test_large_circuits_keep_the_strongest_and_say_so(monkeypatch):
    monkeypatch.setattr(circuit_page, "MOST", 40)
    monkeypatch.setattr(circuit_page, "FIRST", 25)
    graph = scored(GROUPED)
    page = graph.page()
    assert len(page.edges) == 40 == page.shown
    assert page.first == 25
    strengths = sorted((abs(graph.score(edge)) for edge in graph), reverse=True)
    assert [abs(graph.score(edge)) for edge in page.edges] == strengths[:40]
    assert f"{graph.n_edges - 40} weaker ones are in graph.json" in page.html


def test_circuits_of_nothing_and_without_scores():
    assert data_of(Graph.of(GROUPED, []).page())["edges"] == []
    edge = data_of(Graph.of(GROUPED, [("embed", LOGITS, "in")]).page())["edges"][0]
    assert edge[2:] == ["in", None, None, None]
    assert Graph.of(GROUPED, []).page().rows == []


def test_what_is_no_number_leaves_the_page_whole():
    ends = [("embed", "L0H1", "q"), ("L0H1", LOGITS, "in"), ("embed", LOGITS, "in")]
    graph = Graph.of(GROUPED, dict(zip(map(Edge._make, ends), (np.inf, np.nan, -np.inf), strict=True)))
    bare, full = Graph.of(GROUPED, [("embed", LOGITS, "in")]), Graph.full(GROUPED)
    sizes = (Size(bare, 0.2, np.nan, np.nan), Size(graph, 0.5, 0.4, 0.6), Size(full, np.nan, np.nan, np.nan))
    page = CircuitPage(graph, "t", "f", sizes=sizes)
    data = data_of(page)
    assert [edge[3:] for edge in data["edges"]] == [[None, None, None]] * 3
    assert data["sizes"] == [[1, 0.2, None, None], [3, 0.5, 0.4, 0.6]]
    assert [row.score for row in page.rows] == ["", "", ""]


def test_one_layer_is_drawn():
    data = data_of(scored(Layout(1, 1, 1)).page())
    assert data["layers"] == 1
    assert {node[0] for node in data["nodes"]} >= {"embed", "L0H0", "logits"}


def test_a_frame_tells_the_page_the_theme_and_keeps_its_text_in():
    shown = framed("<body><p>a &amp; b</p></body>", title='"t"', height=300)
    frame, *_ = shown.split("<script>")
    assert frame.count("<") == 2
    inside = html.unescape(re.search('srcdoc="(.*?)"', frame, re.DOTALL)[1])
    assert inside == f"<body><p>a &amp; b</p><script>{LISTENER}</script>\n</body>"
