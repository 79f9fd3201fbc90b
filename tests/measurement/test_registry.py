"""How analyses are found, called and accounted for."""

from __future__ import annotations

import json

import pytest
from pandas.testing import assert_frame_equal
from tiny_models import tiny

import interp
from interp.errors import NotApplicable, SchemaError, TaskError
from interp.measurement import registry
from interp.measurement.registry import Findings, analyses, analysis, analyze, detect
from interp.results.results import COLUMNS, SCHEMA_VERSION, Result

FEW = {"n_prompts": 6}
BUILT_IN = ("induction", "previous_token", "duplicate_token", "sink")  # in the order they are shown
TEXTS = {
    "family": "test",
    "title": "A plug-in",
    "headline": "score",
    "means": "nothing",
    "misleads": "by being there",
    "reference": "none",
}


@pytest.fixture
def plug_in():
    """Register analyses for one test."""
    before = dict(registry._registry)
    analyses()
    before |= registry._registry
    yield lambda name, **options: analysis(name=name, **{**TEXTS, **options})
    registry._registry.clear()
    registry._registry.update(before)


def head_zero(model, *, seed: int = 0, size: float = 1.0) -> Findings:
    """The number `size`, for head L0H0."""
    row = {"variant": "score", "layer": 0, "head": 0, "value": size, "unit": "fraction", "rank": seed}
    return Findings([row], {"task": "none"}, [{"set_id": "x", "k": 1, "metric": "m", "clean": 0.0, "edited": size}])


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_analysis_says_what_it_is(name):
    spec = analyses()[name]
    assert spec.name == name
    assert spec.unit == "head"
    assert spec.quantity.endswith((".", ":"))
    assert all((spec.title, spec.means, spec.misleads, spec.headline, spec.family))
    assert "arXiv" in spec.reference


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_same_seed_gives_the_same_table(name):
    first, again = (analyze(tiny("llama"), name, seed=3, **FEW) for _ in range(2))
    assert_frame_equal(first.table, again.table, check_exact=True)
    assert_frame_equal(first.interventions, again.interventions, check_exact=True)
    assert first.provenance["run_id"] == again.provenance["run_id"]
    other = analyze(tiny("llama"), name, seed=4, **FEW)
    assert other.provenance["run_id"] != first.provenance["run_id"]
    assert other.provenance["data"]["sha256"] != first.provenance["data"]["sha256"]
    headline = analyses()[name].headline
    values = [r.table.loc[r.table["variant"] == headline, "value"].to_numpy() for r in (first, other)]
    assert abs(values[0] - values[1]).max() > 1e-6


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_table_has_its_columns_and_one_row_per_head_and_variant(name):
    model = tiny("qwen2")
    table = analyze(model, name, **FEW).table
    assert list(table.columns) == [*COLUMNS, *analyses()[name].columns]
    assert set(table["analysis"]) == {name}
    assert table["variant"].iloc[0] == analyses()[name].headline
    for _, rows in table.groupby("variant"):
        assert len(rows) == model.info.n_layers * model.info.n_heads
        assert sorted(rows["component"]) == sorted(f"L{i}H{h}" for i in range(2) for h in range(8))
    unknown = table[table["value"].isna()]
    assert set(unknown["variant"]) <= {"previous_token_dependence"}  # of heads before which nothing was removed
    assert table["unit"].notna().all()
    headline = table[table["variant"] == analyses()[name].headline]
    assert headline[["null", "p", "q", "n", "se", "ci_low", "ci_high", "label"]].notna().all(axis=None)
    assert (headline["q"] >= headline["p"] - 1e-12).all()
    assert (headline["ci_low"] <= headline["value"]).all()
    assert (headline["value"] <= headline["ci_high"]).all()


def test_provenance():
    model = tiny("gpt2")
    found = analyze(model, "sink", seed=5, n_prompts=4).provenance
    assert found["schema_version"] == SCHEMA_VERSION
    assert found["call"]["analysis"] == "sink"
    assert found["call"]["passed"] == {"seed": 5, "n_prompts": 4}
    assert found["call"]["defaults"] == {"prompts": None, "length": 64, "bos": None, "method": "auto"}
    assert found["seed"] == 5
    assert found["model"]["name"] == model.info.name
    assert found["model"]["dtype"] == "float32"
    assert found["backend"] == "hf"
    assert found["tokenizer"] is None
    assert {"torch", "transformers", "numpy"} <= set(found["packages"])
    assert {"task", "n", "bos", "sha256"} <= set(found["data"])
    assert {"run_id", "device", "created_utc", "seconds"} <= set(found)
    assert json.loads(json.dumps(found)) == found


def test_the_run_id_follows_model_and_options():
    ids = {
        analyze(tiny(name), "previous_token", **options).provenance["run_id"]
        for name in ("gpt2", "llama")
        for options in ({"n_prompts": 4}, {"n_prompts": 5})
    }
    assert len(ids) == 4
    spelt = analyze(tiny("gpt2"), "previous_token", n_prompts=4, seed=0)
    left = analyze(tiny("gpt2"), "previous_token", n_prompts=4)
    assert_frame_equal(spelt.table, left.table, check_exact=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("inducton", {}, "unknown analysis 'inducton'; did you mean 'induction'"),
        ("xyzzy", {}, "unknown analysis 'xyzzy'; valid choices: .*previous_token"),
        ("induction", {"lengths": {8, 4}}, "two integers, the lowest and the highest"),
        ("induction", {"length": (4, 8)}, "'induction' has no option 'length'; did you mean 'lengths'"),
        ("sink", {"sed": 1}, "'sink' has no option 'sed'; did you mean 'seed'"),
    ],
)
def test_unknown_names(name, options, message):
    with pytest.raises(SchemaError, match=message):
        analyze(tiny("gpt2"), name, **options)


def test_detect_names_the_unknown_before_it_runs_anything():
    with pytest.raises(SchemaError, match="unknown analysis 'inducton'"):
        detect(tiny("gpt2"), ["previous_token", "inducton"])


def test_a_plug_in_is_detected(plug_in):
    run = plug_in("head_zero", columns={"rank": "Int64"})(head_zero)
    assert run.__name__ == "head_zero"
    assert "head_zero" in interp.analyses()
    seen = []

    def progress(todo):
        seen.extend(a.name for a in todo)
        return [a for a in todo if a.name in ("head_zero", "previous_token")]

    found = interp.detect(tiny("gpt2"), seed=7, progress=progress)
    assert {*BUILT_IN, "head_zero"} <= set(seen)
    own = found.table[found.table["analysis"] == "head_zero"]
    assert own[["component", "value", "rank"]].to_numpy().tolist() == [["L0H0", 1.0, 7]]
    assert found.interventions["analysis"].tolist() == ["head_zero"]
    assert isinstance(found, Result)


def test_detect_by_name_keeps_the_order_and_every_call():
    found = detect(tiny("gpt2"), ["sink", "previous_token"], seed=2)
    assert list(found.table["analysis"].unique()) == ["sink", "previous_token"]
    assert [c["call"]["analysis"] for c in found.provenance["calls"]] == ["sink", "previous_token"]
    assert found.provenance["seed"] == 2
    assert found.provenance["left_out"] == {}


def test_an_analysis_of_text_is_left_out_without_a_tokenizer(plug_in):
    plug_in("reads", columns={"rank": "Int64"}, needs="text")(head_zero)
    model = tiny("gpt2")
    few = detect(model, progress=lambda todo: [a for a in todo if a.name == "previous_token"])
    assert few.provenance["left_out"]["reads"] == "needs text, and this checkpoint has no tokenizer"
    for call in (lambda: detect(model, ["reads"]), lambda: analyze(model, "reads")):
        with pytest.raises(TaskError, match="'reads' needs text, and this checkpoint has no tokenizer"):
            call()
    with_tokenizer = interp.load("zoo:planted-induction")
    assert len(analyze(with_tokenizer, "reads").table) == 1


def test_an_analysis_that_does_not_apply_is_left_out_unless_named(plug_in):
    @plug_in("choosy")
    def choosy(model, *, seed: int = 0) -> Findings:
        """Nothing: it always refuses."""
        raise NotApplicable("24 tokens are needed, and the context is 8")

    plug_in("head_zero", columns={"rank": "Int64"})(head_zero)
    found = detect(tiny("gpt2"), progress=lambda todo: [a for a in todo if a.name in ("choosy", "head_zero")])
    assert found.provenance["left_out"]["choosy"] == "24 tokens are needed, and the context is 8"
    assert set(found.table["analysis"]) == {"head_zero"}
    assert json.loads(json.dumps(found.provenance)) == found.provenance
    with pytest.raises(TaskError, match="the context is 8"):
        detect(tiny("gpt2"), ["head_zero", "choosy"])
    with pytest.raises(NotApplicable, match="no analysis suits .*24 tokens"):
        detect(tiny("gpt2"), progress=lambda todo: [a for a in todo if a.name == "choosy"])


def test_other_units_are_not_part_of_detect(plug_in):
    plug_in("neurons", columns={"rank": "Int64"}, unit="neuron")(head_zero)
    seen = []

    def progress(todo):
        seen.extend(a.name for a in todo)
        return todo[:1]

    detect(tiny("gpt2"), progress=progress)
    assert "neurons" not in seen


def test_an_undeclared_column_is_refused(plug_in):
    run = plug_in("undeclared")(head_zero)
    with pytest.raises(SchemaError, match="undeclared column 'rank'"):
        run(tiny("gpt2"))
