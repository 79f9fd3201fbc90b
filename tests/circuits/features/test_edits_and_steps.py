"""Attribution graphs of edited models, and edges beside interventions of several sizes."""

from __future__ import annotations

import edited_models
import pytest
import torch
from dictionaries_made import random_dictionary, transcoders
from numpy.testing import assert_allclose
from tiny_models import tiny

from circuits.features.attribute import attribution_graph
from circuits.features.edge_check import check_edges
from interp.dictionaries import Splice
from interp.edits import Ablate, Add, Apply, KnockOut, Noise, Replace, Scale
from interp.errors import NotApplicable, SchemaError

IDS = [5, 6, 7, 8, 9, 5]
EVERYTHING = {"node": None, "k": 10_000, "logits": 3}


def weights_of(graph):
    names = [n.name for n in graph.nodes]
    e = graph.edges
    return {(names[s], names[t]): float(w) for s, t, w in zip(e.source, e.target, e.weight, strict=True)}


def test_a_small_step_tells_what_follows_at_once_from_what_bends():
    """Norms alone: the first step of what is scaled in the first layer is undone by its divisor; features are not."""
    model, d = tiny("llama"), transcoders()
    graph = attribution_graph(model, IDS, d)
    ranks = check_edges(model, graph, d, n=200).ranks.set_index(["size", "sources"])
    assert ranks["held"].min() > 0.99
    assert ranks.loc[(0.01, "feature"), "norms"] > 0.99 and ranks.loc[(0.01, "embedding"), "norms"] < 0.8
    assert ranks.loc[(1.0, "feature"), "model"] > 0.9
    assert (ranks["gates"] == ranks["held"]).all()  # no dictionary reads behind a gate
    table = check_edges(model, graph, d, n=40, sizes=(0.5,)).table
    assert_allclose(table["predicted"], -0.5 * table["weight"])
    assert_allclose(table["held"], table["predicted"], rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize("kind", ["ablation", "scale", "mean"])
def test_under_edits_the_graph_is_that_of_the_model_with_changed_weights(kind):
    model = edited_models.small_model()
    sizes = {"d_in": 16, "d_out": 16}
    d = random_dictionary("L1.mlp_in", "L1.mlp_out", "L2.mlp_out", **sizes)
    edits = edited_models.edits_of(model, kind, 1)
    graph = attribution_graph(model, IDS, d, edits=edits, **EVERYTHING)
    other = attribution_graph(edited_models.changed_model(model, kind, 1), IDS, d, **EVERYTHING)
    a, b = weights_of(graph), weights_of(other)
    assert a.keys() == b.keys() and max(abs(a[key] - b[key]) for key in a) < 1e-4
    plain = weights_of(attribution_graph(model, IDS, d, **EVERYTHING))
    assert max(abs(a.get(key, 0.0) - plain[key]) for key in plain) > 1e-2
    assert check_edges(model, graph, d, n=40, edits=edits).held > 0.99
    with pytest.raises(SchemaError, match="under the edits"):
        check_edges(model, graph, d, n=40)


@pytest.mark.parametrize(
    "edit",
    [
        Scale("L1.resid_mid", 0.5),
        Add("L1.attn_in", torch.ones(64)),
        Replace("L1.mlp_in", torch.ones(64), positions=2),
        Scale("L0.attn_out", 0.4),
        KnockOut("L1H0.pattern", queries=5, keys=2),
        Scale("L0.q", 2.0),
        Add("embed", torch.ones(64)),
    ],
    ids=lambda edit: str(edit.site),
)
def test_sources_sum_to_the_target_under_edits_in_every_place(edit):
    """With a norm behind attention, which the held model recomputes from z."""
    model, d = tiny("olmo2"), transcoders()
    with model.editing([edit]):
        graph = attribution_graph(model, IDS, d, max_features=30, **EVERYTHING)
        assert graph.closure < 1e-4 and graph.affine_error < 1e-5


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (Scale("L1.mlp_out", 0.5), "write at L1.mlp_out, and"),
        (Noise("L0.attn_out", 0.1), "drawn anew"),
        (Ablate("L0H1.z", rows=[0]), "one prompt"),
        (Add("L0.mlp_post", torch.ones(1)), "from its gate"),
        (Add("unembed_in", torch.ones(64)), "behind the last layer"),
        (Apply("L1.resid_pre", torch.relu), "an edit in force bends"),
        (Splice(random_dictionary("L0.attn_out")), "the gradient of an edit"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_an_edit_without_a_graph_is_refused_with_its_reason(edit, why):
    model = tiny("llama")
    d = None if "gate" in why else transcoders()
    with pytest.raises(NotApplicable, match=why):
        attribution_graph(model, IDS, d, edits=[edit], max_features=20)
