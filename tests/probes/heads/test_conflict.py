"""Context and memory heads, temporal heads: found on the trained zoo model, and causal beside random heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats as distributions

import interp
from interp import tasks
from interp.decompose import attribute
from interp.errors import NotApplicable, TaskError
from interp.results.stats import LEAST_P
from interp.tasks import Frame
from probes.heads._temporal import _exceeds


@pytest.fixture(scope="module")
def rich():
    return interp.load("zoo:default")


@pytest.fixture(scope="module")
def found(rich):
    return interp.analyze(rich, "conflict", n_prompts=72, n_random=3, seed=0)


def effects(result, how, metric):
    rows = result.interventions
    return rows[rows["set_id"].str.startswith(how) & (rows["metric"] == metric)].iloc[0]


def test_prompts_contradict_what_is_known(rich):
    drawn = tasks.conflict(rich, n=24, seed=3)
    read = rich.tokenizer.decode
    task = drawn.task
    rows = torch.arange(24)
    told = task.role("TOLD")
    assert torch.equal(task.clean.ids[rows, told], task.answers[:, 0])
    assert torch.equal(task.corrupt.ids[rows, told], task.wrong[:, 0])
    assert (task.answers != task.wrong).all()
    assert drawn.frame.bincount().min() >= 5  # of 8 expected
    for i in range(24):
        wording = {"plain": "", "suppose": "Suppose ", "rumour": "Rumour says "}[drawn.frames[drawn.frame[i]].name]
        core = read(drawn.questions.ids[i][drawn.questions.mask[i]], skip_special_tokens=True)
        text = read(task.clean.ids[i][task.clean.mask[i]], skip_special_tokens=True)
        assert text.startswith(f"{wording}{core} {read(task.answers[i])}")
        assert text.endswith(core)


def test_wordings_of_ones_own(rich):
    drawn = tasks.conflict(rich, n=5, wordings=[Frame("twice", "{core} {told} . {core} {told} . {core}", "context")])
    assert [f.name for f in drawn.frames] == ["twice"]
    assert len(drawn.task) == 5


def test_conflict_needs_a_table_of_facts(rich):
    with pytest.raises(TaskError, match="is no lookup task"):
        tasks.conflict(rich, base="ioi")
    with pytest.raises(TaskError, match="unknown task 'factz'"):
        tasks.conflict(rich, base="factz")


def test_direct_effects_are_those_of_attribution(rich, found):
    drawn = tasks.conflict(rich, n=72, seed=0)  # the model knows every fact
    assert found.provenance["data"]["known"] == 1.0
    whole = attribute(rich, drawn.task.clean, drawn.task.answers, drawn.task.wrong)
    rows = found.table[found.table["variant"] == "direct"].set_index("component")
    assert_allclose(rows.loc["L3H6", "value"], whole["L3H6"].mean(), rtol=1e-4)
    parts = found.table[found.table["variant"].str.startswith("direct_") & (found.table["component"] == "L3H6")]
    assert len(parts) == 3
    weighted = (parts["value"] * parts["n"]).sum() / parts["n"].sum()
    assert_allclose(weighted, rows.loc["L3H6", "value"], rtol=1e-4)


def test_context_and_memory_heads_switch_the_answer(found):
    rows = found.table[found.table["variant"] == "direct"]
    labelled = rows[rows["label"].astype(bool)]
    assert set(labelled["role"]) == {"context", "memory"}
    assert (labelled["value"] > 0).tolist() == (labelled["role"] == "context").tolist()
    quiet = effects(found, "mean", "context_answers (context heads)")
    assert quiet["clean"] - quiet["edited"] > 0.5
    assert abs(quiet["random_mean"] - quiet["clean"]) < 0.05
    assert effects(found, "mean", "memory_answers (context heads)")["edited"] > 0.7
    loud = effects(found, "scaled by 3", "memory_answers (memory heads)")
    assert loud["edited"] - loud["clean"] > 0.3
    assert abs(loud["random_mean"] - loud["clean"]) < 0.1


def test_without_memory_heads_neither_answer_is_known(found):
    """The case that misleads: the context does not win when the memory heads are gone."""
    lost = {name: effects(found, "mean", f"{name} (memory heads)") for name in ("context_answers", "memory_answers")}
    assert lost["context_answers"]["edited"] < lost["context_answers"]["clean"] - 0.2
    assert lost["memory_answers"]["edited"] < lost["memory_answers"]["clean"]


@pytest.mark.parametrize("name", ["conflict", "temporal"])
def test_models_without_facts_or_years_are_left_out(name):
    with pytest.raises(NotApplicable):
        interp.analyze(interp.load("zoo:positional-shortcut"), name)


def test_temporal_effects_are_apart_from_timeless_ones(rich):
    result = interp.analyze(rich, "temporal", n_prompts=24, n_random=2)
    rows = {v: part.set_index("component") for v, part in result.table.groupby("variant")}
    temporal, timeless = rows["temporal"]["value"], rows["timeless"]["value"]
    assert_allclose(rows["specific"]["value"], temporal - timeless.abs(), atol=1e-9)
    assert timeless.idxmax() == "L2H6"  # carries facts, which have no time
    assert not rows["specific"].loc["L2H6", "label"]
    assert temporal.sum() < 1.5


def test_nothing_is_temporal_about_facts(rich):
    facts = tasks.task("facts", rich, n=16)
    result = interp.analyze(rich, "temporal", temporal_task=facts, timeless_task=facts, causal=False)
    rows = result.table[result.table["variant"] == "specific"]
    assert not rows["label"].any()


def test_one_heads_shares_exceed_anothers_by_welchs_test():
    """Floored where neither varies, 1 where there is no difference at all, unknown where a share is."""
    a, b = (np.random.default_rng(i).normal(i, 1 + i, size=(9 + i, 1, 2)) for i in (1, 0))
    expected = distributions.ttest_ind(a, b, equal_var=False, alternative="greater").pvalue
    assert_allclose(_exceeds(a, b), expected, rtol=1e-9)
    same, more = np.full((5, 1, 2), 0.25), np.full((7, 1, 2), 0.75)
    assert (_exceeds(same, same) == 1).all()
    assert (_exceeds(more, same) == LEAST_P).all()
    more[0, 0, 1] = np.nan
    assert np.isnan(_exceeds(more, same)).tolist() == [[False, True]]
