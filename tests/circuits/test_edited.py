"""Every circuit method inside `editing`, and what edges cannot be told apart under."""

from __future__ import annotations

import numpy as np
import pytest
from edited_models import HEAD, KINDS, changed_model, edits_of, layers_of, small_model, small_task

from circuits import methods
from interp.results.results import Result

NAMES = tuple(methods.names())
DEAR = {"acdc", "cdt", "exact", "eap-ig-activations", "edge-pruning", "subnetwork-probing"}
"""Of the whole grid, and of the cheap one at one place less."""
CONSTANT = {"hisp", "sparse-attention"}
"""What a head at its mean writes is its own here, and a bias of nobody in the changed model."""
ALIKE = 1e-5


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
    edited = method.run(model, task, edits=edits, **method.quick)
    changed = method.run(changed_model(model, kind, layer), task, **method.quick)
    (fact,) = edited.provenance["edits"]
    assert (fact["edit"], fact["site"]) == (type(edits[0]).__name__, str(edits[0].site))
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
