"""Attribution graphs on the page: what is said of them is what the graph and its check say."""

from __future__ import annotations

import json
import re

import pytest
from dictionaries_made import random_dictionary
from edited_models import small_model

from circuits.features.attribute import attribution_graph
from circuits.features.edge_check import check_edges
from interp.dictionaries import Dictionaries
from interp.errors import SchemaError
from interp.measurement.registry import analyze
from interp.reports import graphs, report

IDS = [5, 6, 7, 8, 9, 5]


def test_a_prompt_has_its_graph_drawn_tabled_and_checked(tmp_path):
    model = small_model()
    members = tuple(random_dictionary(f"L{i}.mlp_in", f"L{i}.mlp_out", d_in=16, d_out=16, seed=i) for i in range(3))
    d = Dictionaries(members)
    found = analyze(model, "previous_token", n_prompts=2)
    with pytest.raises(SchemaError, match="give prompts"):
        report(model, results=found, dictionary=d, path=tmp_path / "page.html")
    page = report(model, results=found, prompts=[IDS], dictionary=d, path=tmp_path / "page.html")
    source = page.read_text(encoding="utf-8")
    graph = attribution_graph(model, IDS, d, max_features=graphs.FEATURES, batch=16)
    check = check_edges(model, graph, d, n=graphs.CHECKED)
    section = source[source.index('<section id="graphs"') :].partition("</section>")[0]
    assert '<a href="#graphs">' in source
    assert f"<strong>{int(graph.mask('feature').sum())} features</strong>" in section
    assert f"joined by {len(graph.edges.weight)} edges" in section
    tiles = re.findall(r"</dt><dd>([^<]*)</dd>", section)
    ranks = check.ranks.set_index(["size", "sources"])
    expected = [ranks.loc[(1.0, "feature"), "model"], check.held, check.random, graph.replacement]
    assert [float(tile.replace("\u2212", "-")) for tile in tiles] == pytest.approx(expected, abs=6e-4)
    best = graph.table().iloc[0]
    assert f'data-value="{best.weight:.7g}"' in section and f'data-value="{best.share:.7g}"' in section
    assert section.count("all of it: the model") == 2 and "MLPs\u2019 gates" not in section
    figures = json.loads(source.partition('id="figures">')[2].partition("</script>")[0])
    names = [trace.get("name") for trace in figures["graph-0"]["data"]]
    assert {"embedding", "feature", "logit"} <= set(names)
