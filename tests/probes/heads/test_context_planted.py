"""Conflict and temporal heads against planted truth: what is told, what is known, and a fact that depends on a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from probe_cases import named, variant
from scipy import stats as distributions
from sklearn.metrics import roc_auc_score

import interp
from interp import tasks
from interp.decompose import attribute
from interp.errors import NotApplicable
from interp.measurement.conflict_scores import exchange
from interp.measurement.planted import questions
from interp.measurement.registry import find
from interp.zoo.planted import factory

ARCHITECTURES = ("llama", "llama-gqa", "gpt2")


def planted(*mechanisms, architecture="llama", seed=0, **options):
    made = factory.plant(mechanisms, architecture=architecture, seed=seed, **options)
    return made, interp.load(made.model, tokenizer=made.tokenizer)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_told_and_the_known_answer_come_from_the_planted_heads(architecture):
    made, model = planted(factory.Fact(), factory.Told(), architecture=architecture, seed=1)
    found = interp.analyze(model, "conflict", **questions(find("conflict"), made), causal=False)
    rows = variant(found, "direct")
    (context,), (memory,) = named(made, "told"), named(made, "fact_mover")
    assert roc_auc_score(rows.index.isin([context, memory]), rows["value"].abs()) == 1
    assert rows.loc[context, "role"] == "context"
    assert rows.loc[memory, "role"] == "memory"
    assert set(rows.index[rows["label"]]) == {context, memory}
    assert_allclose(rows.loc[[context, memory], "value"], [10, -5], rtol=0.1)  # as written, but for the norm
    assert rows.drop([context, memory])["value"].abs().max() <= 0.2
    assert found.provenance["data"]["known"] == 1
    assert found.provenance["data"]["context_answers"] == 1


def test_the_null_is_of_the_same_relation_and_p_is_two_sided():
    made, model = planted(factory.Fact(), factory.Told(), seed=1)
    asked = questions(find("conflict"), made)["prompts"].select(torch.arange(12))
    with pytest.raises(NotApplicable, match="knows 12 of 12"):
        interp.analyze(model, "conflict", prompts=asked)
    asked = questions(find("conflict"), made)["prompts"]
    alone = replace(asked, group=torch.arange(len(asked.group)))  # no other prompt of any relation: its own answers
    rows = variant(interp.analyze(model, "conflict", prompts=alone, causal=False), "direct")
    assert_allclose(rows["null"].to_numpy(float), rows["value"].to_numpy(float), atol=1e-9)
    rows = variant(interp.analyze(model, "conflict", prompts=asked, causal=False, n_null=5, seed=3), "direct")
    generator, drawn = torch.Generator().manual_seed(3), []
    for _ in range(5):
        answers = exchange(asked, generator)
        drawn.append(attribute(model, asked.task.clean, *answers).heads.mean(-1).flatten().double().numpy())
    value, drawn = rows["value"].to_numpy(float), np.stack(drawn)
    spread = drawn.std(0, ddof=1) * np.sqrt(1 + 1 / 5)
    t = (np.abs(value - drawn.mean(0)) - 0.01 * np.abs(value).sum()) / spread
    assert_allclose(rows["null"].to_numpy(float), drawn.mean(0), atol=1e-5)
    assert_allclose(rows["p"].to_numpy(float), np.minimum(1, 2 * distributions.t.sf(t, df=4)), atol=1e-4)


def test_without_the_context_head_the_known_answer_is_said():
    made, model = planted(factory.Fact(), factory.Told(), seed=1)
    sets = interp.analyze(model, "conflict", **questions(find("conflict"), made), n_random=3).interventions
    off = sets[sets["set_id"].str.startswith("mean")].set_index("metric")
    assert off.loc["context_answers (context heads)", ["clean", "edited"]].tolist() == [1, 0]
    assert off.loc["memory_answers (context heads)", ["clean", "edited"]].tolist() == [0, 1]
    assert off.loc["context_answers (memory heads)", "edited"] == 1
    assert off.loc["context_answers (context heads)", "random_mean"] == 1


def test_a_model_that_is_told_nothing_new_has_a_memory_head_alone():
    """The negative: it knows the facts and cannot read what is told."""
    made, model = planted(factory.Fact(), seed=1)
    found = interp.analyze(model, "conflict", **questions(find("conflict"), made), causal=False)
    rows = variant(found, "direct")
    assert list(rows.index[rows["label"]]) == named(made, "fact_mover")
    assert rows["value"].max() <= 0.2
    assert found.provenance["data"]["memory_answers"] == 1


def test_what_is_not_known_cannot_be_contradicted():
    made, model = planted(factory.Told())
    with pytest.raises(NotApplicable, match="knows 0 of 48 facts"):
        interp.analyze(model, "conflict", **questions(find("conflict"), made))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_planted_time_head_is_temporal_and_no_other(architecture):
    made, model = planted(factory.Dated(), factory.Fact(), architecture=architecture, seed=2)
    found = interp.analyze(model, "temporal", **questions(find("temporal"), made), causal=False)
    rows = variant(found, "specific")
    (when,), (mover,) = named(made, "dated_time"), named(made, "fact_mover")
    assert roc_auc_score(rows.index == when, rows["value"]) == 1
    assert list(rows.index[rows["label"]]) == [when]
    assert rows.loc[when, "value"] >= 0.9
    assert rows.drop(when)["value"].max() <= 0.2
    assert variant(found, "timeless")["value"].idxmax() == mover
    assert rows.loc[mover, "value"] <= -0.9  # all of what has no time


def test_both_ends_of_the_path_count_alike():
    """Prompts and answers exchanged, the same change is gone through backwards: every share stays."""
    made, model = planted(factory.Dated(), factory.Fact(), seed=2)
    asked = questions(find("temporal"), made)
    task = asked["temporal_task"]
    back = replace(task, clean=task.corrupt, corrupt=task.clean, answers=task.wrong, wrong=task.answers)
    found = [
        variant(interp.analyze(model, "temporal", **{**asked, "temporal_task": t}, causal=False), "temporal")["value"]
        for t in (task, back)
    ]
    assert found[0].abs().max() > 0.9
    assert_allclose(*found, atol=1e-4)


def test_without_the_time_head_no_dated_fact_is_known_and_every_other_is():
    made, model = planted(factory.Dated(), factory.Fact(), seed=2)
    sets = interp.analyze(model, "temporal", **questions(find("temporal"), made), n_random=0).interventions
    lost = sets.set_index("metric")
    assert lost.loc["temporal_logit_diff", "edited"] < 0.1 * lost.loc["temporal_logit_diff", "clean"]
    assert lost.loc["timeless_logit_diff", "edited"] > 0.95 * lost.loc["timeless_logit_diff", "clean"]


def test_the_same_table_asked_for_other_subjects_has_no_temporal_head():
    """The negative: the same model and heads, pairs that differ in whom and not in when."""
    made, model = planted(factory.Dated(), factory.Fact(), seed=2)
    asked = questions(find("temporal"), made)
    dated, table = asked["temporal_task"], factory.Dated().lookup(made.vocab)
    subjects = list(dict.fromkeys(subject for subject, _ in table))
    corrupt, wrong = dated.clean.ids.clone(), dated.wrong.clone()
    for row, (at, when) in enumerate(zip(dated.role("SUBJECT"), dated.role("TIME"), strict=True)):
        here = int(corrupt[row, at])
        other = subjects[(subjects.index(here) + 1) % len(subjects)]
        corrupt[row, at], wrong[row, 0] = other, table[other, int(corrupt[row, when])]
    pairs = replace(dated, corrupt=replace(dated.corrupt, ids=corrupt), wrong=wrong, corruption="other subject")
    found = interp.analyze(model, "temporal", temporal_task=pairs, timeless_task=asked["timeless_task"], causal=False)
    rows = variant(found, "specific")
    (when,), (whom,) = named(made, "dated_time"), named(made, "dated_subject")
    assert abs(rows.loc[when, "value"]) <= 0.05
    assert not rows.loc[when, "label"]
    assert rows["value"].idxmax() == whom


def test_a_model_that_knows_no_times_is_refused():
    made, model = planted(factory.Fact())
    with pytest.raises(NotApplicable, match="does not tell temporal pairs apart"):
        interp.analyze(model, "temporal", **questions(find("temporal"), made))


def test_movers_are_found_where_the_task_is_done_and_nowhere_else():
    made, model = planted(factory.TwoHop(), seed=1)
    rows = variant(interp.analyze(model, "movers", **questions(find("movers"), made)), "mover")
    assert list(rows.index[rows["label"]]) == named(made, "name_mover")
    none, blank = planted(seed=1)
    rows = variant(interp.analyze(blank, "movers", **questions(find("movers"), none)), "mover")
    assert not rows["label"].any()
    assert (rows["q"] == 1).all()


def test_importance_finds_the_circuit_and_nothing_beside_it():
    made, model = planted(factory.Induction(), factory.Copy(), seed=3)
    found = interp.analyze(model, "importance", how=("mean",), pruning=False, n_prompts=8)
    rows = variant(found, "mean")
    circuit = [f"L{layer}H{head}" for layer, head in made.truth.heads("repeats")]
    assert set(rows.index[rows["label"]]) == set(circuit)
    assert roc_auc_score(rows.index.isin(circuit), rows["value"]) == 1


def test_every_word_told_is_one_that_another_subject_has():
    made, _ = planted(factory.Fact(), factory.Told())
    against = questions(find("conflict"), made, seed=9)["prompts"]
    assert isinstance(against, tasks.Conflict)
    attributes = {made.vocab.word(a) for _, a in factory.Fact().facts}
    assert set(against.task.answers[:, 0].tolist()) <= attributes
    assert len(against.questions.ids) == len(against.task)
