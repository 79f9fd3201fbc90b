"""`check_analysis` passes for every analysis there is; for each promise there is a broken one that it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.attention import Mean, Offset
from interp.errors import CheckError, SchemaError, TaskError
from interp.measurement import registry
from interp.measurement.checks import check_analysis
from interp.measurement.checks.analysis import DEMANDS
from interp.measurement.declaration import IDENTIFY, PlantedTask, Stage
from interp.measurement.offsets import wrong_offsets
from interp.measurement.prompts import prompt_set
from interp.measurement.registry import Findings, analyses, analysis
from interp.measurement.scoring import score_rows
from interp.results import runs as _runs
from interp.results import stats


@pytest.mark.parametrize("name", analyses())
def test_every_analysis_keeps_its_promises(name):
    held = check_analysis(name)
    assert {*held, *analyses()[name].exemptions} == set(DEMANDS)


DECLARED = {
    "name": "back_one",
    "family": "test",
    "title": "Heads that look back",
    "headline": "mass",
    "means": "the head looks one token back",
    "misleads": "looking is not use",
    "reference": "ours",
    "stage": Stage("previous token", IDENTIFY),
    "planted": PlantedTask("previous_token"),
    "columns": {"label": "boolean"},
}


def back_one(model, *, n_prompts: int = 32, seed: int = 0) -> Findings:
    """Mass one token back: mean over queries i of p(i, i - 1), a probability."""
    data = prompt_set(model, None, n_prompts=n_prompts, length=48, bos="default", seed=seed, least=24)
    rows = data.rows(lowest=18)
    asked = {str(d): Mean(Offset(d), rows) for d in (1, *wrong_offsets(1, near=2))}
    mass = {d: x.transpose(0, 1).double().numpy() for d, x in model.attention(data.batch, asked).values.items()}
    wrong = np.stack([x.mean(0) for d, x in mass.items() if d != "1"])
    null = stats.uniform_causal(18, 47)
    return Findings(score_rows(model, "mass", "probability", mass["1"], wrong, null=null, seed=seed), data.data)


def asks(model, *, n_prompts: int = 32, seed: int = 0) -> Findings:
    """Mass one token back, on prompts that are said to have answers."""
    data = {"task": "t", "corruption": "own", "metric": "prob"}
    found = back_one(model, n_prompts=n_prompts, seed=seed)
    return Findings(found.rows, {**found.data, **data})


def test_prompts_with_answers_need_the_ability(check):
    check(demands=["ability"])
    with pytest.raises(CheckError, match="ability: its prompts have answers"):
        check(asks, demands=["ability"])


@pytest.fixture
def check():
    """Check a body with some of its declaration changed; the registry is as before afterwards."""
    analyses()
    before = dict(registry._registry)

    def call(body=back_one, *, demands=None, **changes):
        analysis(**{**DECLARED, **changes})(body)
        return check_analysis("back_one", demands=demands)

    yield call
    registry._registry.clear()
    registry._registry.update(before)


def changed(table=lambda rows: rows, *, data=lambda facts, seed: facts, model=lambda model: None):
    """`back_one`, with something done to its rows, its facts or the model."""

    def body(model_, *, n_prompts: int = 32, seed: int = 0) -> Findings:
        found = back_one(model_, n_prompts=n_prompts, seed=seed)
        model(model_)
        return Findings(table(found.rows.copy()), data(dict(found.data), seed))

    body.__doc__ = back_one.__doc__
    return body


def edited(model):
    with torch.no_grad():
        next(model.torch_module.parameters()).view(-1)[0] += 1e-3


@pytest.fixture
def restored():
    """The shared planted models are made anew after a test that spoils one."""
    from interp.measurement.checks import case

    case.planted_model.cache_clear()
    yield
    case.planted_model.cache_clear()


def test_a_sound_analysis_passes(check):
    assert set(check()) == set(DEMANDS)


def test_what_changes_the_model_is_refused(check, restored):
    with pytest.raises(CheckError, match="intact: the model is changed after a run"):
        check(changed(model=edited), demands=["intact"])


def test_what_leaves_a_hook_is_refused(check, restored):
    with pytest.raises(CheckError, match="intact: the model is changed"):
        check(changed(model=lambda m: m.torch_module.register_forward_hook(lambda *_: None)), demands=["intact"])


@pytest.mark.parametrize("column", ["null", "p", "q", "se", "ci_low", "n"])
def test_what_does_not_stand_beside_a_score_is_missed(check, column):
    with pytest.raises(CheckError, match=f"no {column} beside 16 of 16 values of 'mass'"):
        check(changed(lambda rows: rows.drop(columns=column)), demands=["null", "significance", "interval"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.assign(rank=1), "table: SchemaError: undeclared column 'rank'"),
        (lambda rows: rows.assign(p=1.5), "table: SchemaError: invalid table"),
        (lambda rows: rows.assign(unit=None), r"table: no unit is stated for \['mass'\]"),
        (lambda rows: rows.assign(variant="other"), "table: the first variant is 'other', the headline 'mass'"),
        (lambda rows: rows.assign(q=0.0, p=0.5), "significance: q is below p"),
        (lambda rows: rows.assign(ci_high=rows["value"] - 1e-3, ci_low=0.0), "interval: a value outside of its own"),
        (lambda rows: rows.assign(label=True), "planted: labelled without the role 'previous_token': L0H0"),
        (lambda rows: rows.assign(label=False), "planted: missed of 'previous_token': L"),
        (lambda rows: rows.assign(value=rows["value"] + np.random.rand()), "seed: two runs with seed 0 differ"),  # noqa: NPY002
    ],
)
def test_a_broken_table_is_refused(check, change, message):
    with pytest.raises(CheckError, match=message):
        check(changed(change), demands=[message.split(":")[0]])


def test_labels_of_noise_are_refused(check):
    """The head with the highest score is called by name, whatever it is: right where there is one."""
    with pytest.raises(CheckError, match="planted: labelled in a model without any mechanism: L"):
        check(changed(lambda rows: rows.assign(label=rows["value"] == rows["value"].max())), demands=["planted"])


def test_a_seed_that_does_nothing_is_refused(check):
    def body(model, *, n_prompts: int = 32, seed: int = 0) -> Findings:
        return back_one(model, n_prompts=n_prompts, seed=5)

    body.__doc__ = back_one.__doc__
    with pytest.raises(CheckError, match="sample: seeds 0 and 1 draw the same data"):
        check(body, demands=["sample"])


def test_data_without_a_hash_is_refused(check):
    with pytest.raises(CheckError, match="provenance: `data` of its `Findings` has no `sha256`"):
        check(changed(data=lambda facts, seed: {"task": "random tokens", "seed": seed}), demands=["provenance"])


def test_a_sum_over_prompts_is_refused(check):
    def body(model, *, n_prompts: int = 32, seed: int = 0) -> Findings:
        found = back_one(model, n_prompts=n_prompts, seed=seed)
        columns = ["value", "ci_low", "ci_high"]
        return Findings(found.rows.assign(**{c: found.rows[c] * n_prompts for c in columns}), found.data)

    body.__doc__ = back_one.__doc__
    with pytest.raises(CheckError, match="scale: the largest value is 12 with 12 prompts and 24 with 24"):
        check(body, demands=["scale"])


def test_a_model_that_is_too_small_must_be_refused_as_such(check):
    def body(model, *, n_prompts: int = 32, seed: int = 0) -> Findings:
        if (model.info.context or 99) < 24:
            raise TaskError("too short")
        return back_one(model, n_prompts=n_prompts, seed=seed)

    body.__doc__ = back_one.__doc__
    with pytest.raises(CheckError, match="refusal: .*NotApplicable, not TaskError: too short"):
        check(body, demands=["refusal"])


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"means": " "}, "declaration: `means` is empty"),
        ({"stage": None}, "declaration: `stage` is missing"),
        ({"planted": None}, "declaration: no `planted` task judges it"),
        ({"exemptions": {"nul": "x"}}, "declaration: exempt from an unknown demand 'nul'; did you mean 'null'"),
        ({"exemptions": {"null": ""}}, "declaration: exempt from 'null' without a reason"),
        ({"planted": PlantedTask("previous")}, "planted: no mechanism of the zoo has the role 'previous'"),
        ({"figure": lambda rows: None}, "keeping: its `figure` returns NoneType"),
    ],
)
def test_an_incomplete_declaration_is_refused(check, declared, message):
    with pytest.raises(CheckError, match=message):
        check(demands=[message.split(":")[0]], **declared)


def test_a_figure_that_shows_itself_is_refused(check):
    def shown(rows):
        """Shown at once."""
        import plotly.graph_objects as go

        figure = go.Figure()
        figure.show()
        return figure

    with pytest.raises(CheckError, match="keeping: RuntimeError: the figure shows itself"):
        check(figure=shown, demands=["keeping"])


def test_a_result_that_is_listed_as_another_is_refused(check, monkeypatch):
    """Run id, seed, device, date, seconds and rows are those of the result: what a folder shows is what was saved."""
    row = _runs._row
    for key, wrong in {"run": "0", "seed": 7, "device": "", "created": "", "seconds": -1.0, "rows": 0}.items():
        monkeypatch.setattr(_runs, "_row", lambda *given, key=key, wrong=wrong: row(*given) | {key: wrong})
        with pytest.raises(CheckError, match="`interp runs` lists the saved result as"):
            check(demands=["keeping"])


def test_every_broken_promise_is_told_at_once(check):
    with pytest.raises(CheckError) as caught:
        check(
            changed(lambda rows: rows.drop(columns=["null", "se"])),
            means="",
            demands=["declaration", "null", "interval"],
        )
    assert all(word in str(caught.value) for word in ("declaration:", "null:", "interval:"))


def test_an_exemption_is_not_held_against_it(check):
    held = check(
        changed(lambda rows: rows.drop(columns="null")),
        exemptions={"null": "nothing is expected"},
        demands=["null", "interval"],
    )
    assert held == ("interval",)


def test_an_unknown_analysis():
    with pytest.raises(SchemaError, match="unknown analysis 'back_on'"):
        check_analysis("back_on")


def test_an_unknown_demand(check):
    with pytest.raises(SchemaError, match="unknown demand 'nul'; did you mean 'null'"):
        check(demands=["nul"])
