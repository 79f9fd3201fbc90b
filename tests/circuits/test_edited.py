"""Every circuit method inside `editing`, and what edges cannot be told apart under."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edited_models import HEAD, KINDS, changed_model, edits_of, layers_of, small_model, small_task

from circuits import contextual_decomposition, methods, path_patching
from circuits.wiring.case import Case
from interp.edits import Ablate, Add, Apply, Scale
from interp.errors import SiteError
from interp.results.results import Result

NAMES = tuple(methods.names())
DEAR = {"acdc", "cdt", "exact", "eap-ig", "eap-ig-activations", "tracing", "edge-pruning", "subnetwork-probing"}
"""Whole grid alone; what they are made of is in the others."""
CONSTANT = {"hisp", "sparse-attention"}
"""What a head at its mean writes is its own here, and a bias of nobody in the changed model."""
TRAINED = {"sae-codes"}
"""Trained on what all heads write: on the mean of an ablated one here, on nothing where that is a bias."""
ALIKE = 1e-5
LEAST = {"least": 0.05}
"""Of a head's attention: a random model attends to everything."""


@pytest.fixture(scope="module")
def subject():
    return small_model(), small_task()


def numbers(outcome, *, but=None):
    """Scores and mask of a graph, values of a table; without what the component `but` sends."""
    if isinstance(outcome, Result):
        table = outcome.table
        return table["value"].to_numpy(dtype=float)[(table["component"] != but).to_numpy()]
    keep = np.array([name != but for name in outcome.layout.senders])
    scores = outcome.mask if outcome.scores is None else np.stack([outcome.scores, outcome.mask])
    return np.nan_to_num(np.asarray(scores, dtype=float))[..., keep, :]


def check(subject, name, kind, layer):
    model, task = subject
    method, edits = methods.find(name), edits_of(model, kind, layer)
    options = dict(method.quick) | {k: v for k, v in LEAST.items() if k in method.options}
    edited = method.run(model, task, edits=edits, **options)
    changed = method.run(changed_model(model, kind, layer), task, **options)
    (fact,) = edited.provenance["edits"]
    assert (fact["edit"], fact["site"]) == (type(edits[0]).__name__, str(edits[0].site))
    if name in TRAINED and kind == "mean":
        return
    but = f"L{layer}H{HEAD}" if name in CONSTANT and kind == "mean" else None
    x, y = numbers(edited, but=but), numbers(changed, but=but)
    assert x.shape == y.shape
    np.testing.assert_allclose(x, y, rtol=0, atol=ALIKE * max(1.0, np.abs(y).max()), err_msg=name)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in DEAR else []) for n in NAMES])
def test_a_method_on_an_edited_model_is_of_that_model(subject, name):
    i, layers = NAMES.index(name), layers_of(subject[0])
    check(subject, name, KINDS[i % len(KINDS)], layers[i % len(layers)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_under_every_edit_at_every_depth(subject, name, kind):
    for layer in layers_of(subject[0]):
        check(subject, name, kind, layer)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (Scale("L1.resid_post", 0.5), "changes what earlier components wrote"),
        (Ablate("L1.attn_out"), "changes what earlier components wrote"),
        (Scale("L1.q", 2.0), "stands between the stream and what reads it"),
        (Add("L1.resid_mid", torch.ones(16)), "or Add to attn_out"),
        (Ablate("L1H0.z", rows=[0]), "is of rows of one batch"),
    ],
)
def test_edges_that_are_not_the_streams_are_refused(subject, edit, why):
    model, task = subject
    with pytest.raises(SiteError, match=why):
        path_patching(model, task, edits=[edit])
    with model.editing([edit]), pytest.raises(SiteError, match=why):
        Case.of(model, task)


def test_paths_under_an_edit_of_one_position_are_those_of_whole_runs(subject):
    """Steering at END reaches the logits alone; where single tokens stand for prompts it is refused or run whole."""
    model, task = subject
    edits = [Add("L1.mlp_out", torch.linspace(-1, 1, 16), positions=-1)]
    live = path_patching(model, task, mlps="live", edits=edits).table["value"].to_numpy()
    whole = path_patching(model, task, mlps="live", receivers=["logits", "L2H0.q"], senders=["L0H0"], edits=edits)
    assert np.isfinite(live).all()
    assert np.isfinite(whole.table["value"].to_numpy()).all()
    with pytest.raises(SiteError, match="not the same at every token"):
        methods.find("cdt").run(model, task, edits=edits)


def test_what_a_function_does_is_not_known_to_be_the_same_everywhere(subject):
    with pytest.raises(SiteError, match="not the same at every token"):
        methods.find("cdt").run(*subject, edits=[Apply("L1.mlp_out", lambda x: x + 1)])


@pytest.mark.parametrize("kind", ["mean", "steering"])
def test_relevance_in_an_edited_model_is_that_in_the_changed_one(subject, kind):
    """What an edit puts into a head or an MLP is a bias, and no source's."""
    model, task = subject
    options = {"sources": ["embed", "L0H1"]}
    edited = contextual_decomposition(model, task, edits=edits_of(model, kind, 1), **options)
    changed = contextual_decomposition(changed_model(model, kind, 1), task, **options)
    np.testing.assert_allclose(edited.to_slots, changed.to_slots, rtol=0, atol=ALIKE)
    np.testing.assert_allclose(edited.to_logits, changed.to_logits, rtol=0, atol=ALIKE)
