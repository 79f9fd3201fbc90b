"""Every analysis inside `editing`: of the edited model where it runs, of its own weights where it reads them."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from edited_models import HEAD, KINDS, changed_model, edits_of, layers_of, small_model, small_task

from interp.errors import InterpError
from interp.measurement.checks.case import Case
from interp.measurement.registry import analyses, analyze
from probes.effects._undifferentiated import _uniform_z

NAMES = tuple(analyses())
FEW = {"n_prompts": 8, "n_random": 1, "n_permutations": 9, "n_draws": 5, "n_tokens": 16}
DEAR = {  # whole grid alone; what they are made of is in the others
    "conflict", "direct_attribution", "duplicate_token", "echo_induction", "icl_score", "importance", "induction",
    "lag_profile", "movers", "relations", "successor", "successor_features", "temporal", "text_induction",
    "undifferentiated", "undifferentiated_sets",
}  # fmt: skip
WEIGHTS = {("induction", "copying_ratio"), ("copying", "copying_ratio")}
"""Variants that are of weights alone."""
OWN_OV = {"copying", "copy_suppression", "relations", "successor", "successor_features", "sinks", "span_profile"}
"""What a head would write for a token or from a key, by its own weights: they rest, the changed model has others."""
REMOVAL = {"conflict", "importance", "overconfidence", "undifferentiated", "copying"}
"""What a head writes, or what is lost without: the mean for one at its mean, and nothing where that is a bias."""
SPLIT = {"mlp_inputs", "mlp_mixing", "mlp_regression"}
"""What a sum is made of: what an edit adds, or the mean of a head, is a part of its own and no bias."""
ALIKE = 1e-5


def options(case):
    own = case.run_options(case.planted)
    few = {k: v for k, v in FEW.items() if k in inspect.signature(case.spec.run).parameters}
    tasks = {k: v.select(slice(0, 8)) for k, v in own.items() if hasattr(v, "corrupt")}
    return own | few | tasks


def outcome(model, name, **given):
    """The result, or the reason for which there is none."""
    try:
        return analyze(model, name, **given)
    except InterpError as error:
        return f"{type(error).__name__}: {error}"


def values(result, variant, *, but=None):
    rows = result.table[result.table["variant"] == variant]
    rows = rows if but is None else rows[rows["component"] != but]
    return rows["value"].to_numpy(dtype=float)


def check(name, kind, layer):
    case = Case(analyses()[name])
    model, given = case.model, options(case)
    edits = edits_of(model, kind, layer)
    edited, changed = (
        outcome(model, name, edits=edits, **given),
        outcome(changed_model(model, kind, layer), name, **given),
    )
    if isinstance(edited, str):
        assert edited == changed  # both models are unable to answer, for one reason
        return
    facts = edited.provenance["edits"]
    assert [(e["edit"], e["site"]) for e in facts] == [(type(e).__name__, str(e.site)) for e in edits]
    if name in SPLIT and kind in ("mean", "steering"):
        return
    mean = kind == "mean" and name in REMOVAL
    but = f"L{layer}H{HEAD}" if kind != "steering" and (name in OWN_OV or mean) else None
    for variant in edited.table["variant"].unique():
        if mean and variant.startswith(("mask_gradient_by_layer", "agreement", "scaled")):
            continue  # a share of all heads
        want = analyze(model, name, **given) if (name, variant) in WEIGHTS else changed
        without = None if (name, variant) in WEIGHTS else but
        x, y = (values(r, variant, but=without) for r in (edited, want))
        limit = ALIKE * max(1.0, np.nanmax(np.abs(y), initial=0.0))
        np.testing.assert_allclose(x, y, rtol=0, atol=limit, equal_nan=True, err_msg=f"{name} {variant}")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in DEAR else []) for n in NAMES])
def test_an_analysis_of_an_edited_model_is_of_that_model(name):
    kind, model = KINDS[NAMES.index(name) % len(KINDS)], Case(analyses()[name]).model
    check(name, kind, layers_of(model)[NAMES.index(name) % len(layers_of(model))])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_analysis_under_every_edit_at_every_depth(name, kind):
    for layer in layers_of(Case(analyses()[name]).model):
        check(name, kind, layer)


def test_an_ablated_head_that_is_made_uniform_stays_ablated():
    model, batch = small_model(), small_task().clean
    values = model.run(batch, capture=["L1.v"])["L1.v"]
    with model.editing(edits_of(model, "ablation", 1)):
        z = _uniform_z(model, values, batch, 1, None)
    assert not z[:, :, HEAD].any()
    assert bool(z[:, :, 1 - HEAD].any())
