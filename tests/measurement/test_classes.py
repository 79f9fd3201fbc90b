"""Summaries count the heads of every class that an analysis tells apart, each by its own variant."""

from __future__ import annotations

import pytest

import interp
from interp.cli.tables import labelled_text
from interp.measurement.classes import class_variants, labelled_by_class, labelled_rows
from interp.measurement.registry import find
from interp.reports.sections import _section
from interp.zoo.planted import factory

SPEC = "echo_induction"


def planted(*mechanisms):
    made = factory.plant(mechanisms, architecture="llama", seed=1)
    return interp.load(made.model, tokenizer=made.tokenizer), made.truth


@pytest.fixture(scope="module")
def both():
    model, truth = planted(factory.Induction(), factory.DuplicateToken())
    return interp.analyze(model, SPEC, n_prompts=8), truth


@pytest.fixture(scope="module")
def induction_alone():
    model, truth = planted(factory.Induction())
    return interp.analyze(model, SPEC, n_prompts=8), truth


def name(truth, role):
    ((layer, head),) = truth.roles[role]
    return f"L{layer}H{head}"


def test_each_class_has_its_own_heads(both):
    result, truth = both
    expected = {"echo": [name(truth, "duplicate_token")], "induction": [name(truth, "induction")]}
    assert labelled_by_class(find(SPEC), result.table) == expected
    rows = labelled_rows(find(SPEC), result.table).set_index("component")
    assert rows["variant"].to_dict() == {n: kind for kind, (n,) in expected.items()}
    assert (rows["value"] > 0.5).all()


def test_a_head_of_the_other_class_alone_is_counted(induction_alone):
    """Its label in the headline is no: that it was found would not be said."""
    result, truth = induction_alone
    head = name(truth, "induction")
    heads = result.table["component"].nunique()
    assert labelled_text(result, find(SPEC)) == f"1 of {heads} heads labelled: 0 echo, 1 induction ({head})"
    section = _section(result, SPEC)
    assert section.counted.startswith("1 echo and induction head")
    assert section.found == head


def test_the_atlas_scores_a_role_by_its_own_variant(induction_alone):
    result, truth = induction_alone
    (row,) = interp.atlas(result).roles().to_dict("records")
    table = result.table.set_index(["component", "variant"])
    want = table.loc[(name(truth, "induction"), "induction")]
    assert (row["role"], row["score"], row["q"]) == ("induction", want["value"], want["q"])


def test_one_class_is_the_headline():
    model, truth = planted(factory.Induction())
    spec = find("previous_token")
    result = interp.analyze(model, spec.name, n_prompts=8)
    assert class_variants(spec, result.table) == [spec.headline]
    head = name(truth, "previous_token")
    assert labelled_by_class(spec, result.table) == {spec.headline: [head]}
    assert labelled_text(result, spec).endswith(f"heads labelled: {head}")
