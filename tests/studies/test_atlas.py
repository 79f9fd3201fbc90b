"""The head atlas: one row per head, roles, agreement of detectors, stability over seeds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import spearmanr

import interp
from interp import zoo
from interp.errors import SchemaError
from interp.measurement.declaration import STAGES
from interp.results.results import Result, frame
from interp.studies.atlas import atlas

NAMES = ["previous_token", "duplicate_token", "sink"]


@pytest.fixture(scope="module")
def planted():
    return interp.load("zoo:planted-induction")


@pytest.fixture(scope="module")
def found(planted):
    return interp.atlas(planted, seeds=(0, 1), analyses=NAMES)


def made(values, labels, *, name="sink", model="m", **more):
    """A result with one headline score per head of layer 0."""
    variant = {"sink": "first_token", "conflict": "direct", "previous_token": "score"}[name]
    n = len(values)
    rows = {"variant": variant, "layer": 0, "head": range(n), "component": [f"L0H{h}" for h in range(n)]}
    columns = {"label": "boolean"} | dict.fromkeys(more, "str")
    rows |= {"analysis": name, "value": values, "q": np.where(labels, 0.001, 0.5), "label": labels} | more
    import pandas as pd

    return Result(frame(pd.DataFrame(rows), extra=columns), {"model": {"name": model}})


def test_one_row_per_head_and_the_planted_roles(found):
    assert len(found.table) == 16
    assert found.table["component"].is_unique
    assert list(found.analyses) == NAMES
    truth = zoo.truth("planted-induction").roles
    roles = found.roles()
    expected = {f"L{layer}H{head}" for layer, head in truth["previous_token"]}
    assert set(roles.loc[roles["analysis"] == "previous_token", "component"]) == expected
    assert set(roles["stage"]) <= set(STAGES)


def test_scores_are_means_over_seeds(found):
    singles = [r.top("previous_token", k=99).set_index("component")["value"] for r in found.results]
    joined = found.table.set_index("component")["previous_token"]
    assert_allclose(joined, np.mean([s[joined.index] for s in singles], axis=0))


def test_agreement_is_spearman_and_top_k(found):
    rows = found.agreement(k=3)
    assert len(rows) == 3
    first = rows.iloc[0]
    expected = spearmanr(found.table[first["a"]], found.table[first["b"]]).statistic
    assert_allclose(first["spearman"], expected)
    assert_allclose(rows["chance"], 9 / 16)


def test_stability_counts_flips():
    a = made([0.9, 0.8, 0.1, 0.0], [True, True, False, False])
    b = made([0.9, 0.2, 0.1, 0.0], [True, False, False, False])
    row = atlas([a, b]).stability().iloc[0]
    assert (row["n_seeds"], row["labelled"], row["flips"]) == (2, 2, 1)
    assert_allclose(row["spearman"], 1.0)
    joined = atlas([a, b])
    assert joined.table["sink_label"].tolist() == [True, False, False, False]  # half of the seeds is not more than half
    assert_allclose(joined.table["sink_q"], [0.001, 0.5, 0.5, 0.5])


def test_a_stable_model_is_stable(found):
    rows = found.stability().set_index("analysis")
    assert rows["flips"].sum() == 0
    assert rows.loc["previous_token", "n_seeds"] == 2
    assert np.isnan(atlas(found.results[0]).stability()["spearman"]).all()


def test_an_analysis_may_name_its_roles():
    result = made([0.5, -0.5, 0.0], [True, True, False], name="conflict", role=["context", "memory", "context"])
    roles = atlas(result).roles().set_index("component")
    assert roles["role"].to_dict() == {"L0H0": "context", "L0H1": "memory"}
    assert roles.loc["L0H1", "stage"] == "knowledge recalling"


def test_the_summary_names_roles_and_counts_patterns():
    both = Result.concat([made([0.9, 0.0], [True, False]), made([0.0, 0.9], [False, True], name="previous_token")])
    lines = atlas(both).summary()
    assert lines == [
        "1 of 2 heads have a role (2 analyses)",
        "  L0H1: previous token",
        "attention patterns: 1 attention sink",
    ]


def test_figure_and_page(found):
    figure = found.plot()
    assert figure.data[0].z.shape == (2, 8)  # every head has a cell
    names = [trace.name for trace in figure.data if trace.name]
    assert any("previous token (1)" in name for name in names)
    assert "previous token" in found._repr_html_()
    assert "2 seeds" in repr(found)


def test_what_cannot_be_joined_is_refused():
    with pytest.raises(SchemaError, match="of nothing"):
        atlas([])
    with pytest.raises(SchemaError, match="of one model"):
        atlas([made([1.0], [True]), made([1.0], [True], model="other")])
    empty = Result(frame([]), {"model": {"name": "m"}})
    with pytest.raises(SchemaError, match="no analysis of these results"):
        atlas(empty)
