"""Retrieval heads of the trained zoo model: found, causal, ranked alike by both scores, from the answers' rows alone.

Its successor heads and their double dissociation from the copying heads are in `test_roles`.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

import interp
from interp.attention import fused
from interp.tasks import needles
from probes.heads import needle_hits as measured

HEADS = {"L3H3", "L3H4", "L3H6", "L3H7"}


@pytest.fixture(scope="module")
def default():
    return interp.load("zoo:default")


@pytest.fixture(scope="module", params=[0, pytest.param(1, marks=pytest.mark.slow)])
def found(default, request):
    return interp.analyze(default, "retrieval", n_prompts=16, n_random=5, seed=request.param)


def test_retrieval_heads_are_found_and_no_others_are_near(found):
    rows = found.table[found.table["variant"] == "teacher_forced"].set_index("component")
    assert set(rows.index[rows["label"].astype(bool)]) == HEADS
    assert rows.loc[list(HEADS), "value"].min() >= 0.95
    assert rows.drop(list(HEADS))["value"].max() <= 0.2
    assert found.provenance["data"]["accuracy"] > 0.95


def test_masking_the_top_retrieval_heads_breaks_recall_and_random_heads_do_not(found):
    sets = found.interventions
    sets = sets[sets["metric"] == "needle_accuracy"]
    top = sets[sets["k"] == len(HEADS)]
    assert set(top["set_id"].item().removeprefix("zero: ").split()) == HEADS
    assert top["clean"].item() - top["edited"].item() >= 0.5
    matched = sets[sets["n_random"] > 0]
    assert set(matched["control"]) == {"same layers"}
    assert len(matched) == 3  # the best one, two and all four, each beside as many others of their layer
    assert (matched["clean"] - matched["random_mean"]).abs().max() < 0.1


@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))])
def test_teacher_forcing_ranks_heads_as_decoding_does(default, seed):
    hidden = needles.hide(default, n=8, n_needles=1, seed=seed)
    forced = measured.teacher_forced(default, hidden).hits.mean(0)
    said = measured.decode(default, hidden)
    assert said.found.mean() > 0.95
    assert spearmanr(forced.ravel(), said.hits[said.found].mean(0).ravel()).statistic >= 0.9


def test_questions_behind_one_another_move_chance_hits_and_no_score_by_much(default):
    """Decoding asks each alone. A single hit of a head at chance changes its rank, and with it the correlation."""
    hidden = needles.hide(default, n=24, seed=2)
    forced = measured.teacher_forced(default, hidden).hits.mean(0).ravel()
    said = measured.decode(default, hidden, max_new_tokens=1).hits.mean(0).ravel()
    np.testing.assert_allclose(forced, said, atol=0.05)
    assert set(np.argsort(-forced)[:5]) == set(np.argsort(-said)[:5])
    assert (np.sort(forced)[:-5] < 0.1).all()


def test_no_row_of_any_pattern_is_built_but_those_of_answers(default, monkeypatch):
    """Counted where scores of queries against all keys are made: once per layer, the answers' queries and no others."""
    built, plain = [], fused._scores

    def spy(call, q, k):
        built.append((q.shape[0], q.shape[2], k.shape[2]))
        return plain(call, q, k)

    monkeypatch.setattr(fused, "_scores", spy)
    hidden = needles.hide(default, n=5, value_words=2, seed=3)
    measured.teacher_forced(default, hidden)
    n, width = hidden.batch.ids.shape
    assert built
    assert {keys for *_, keys in built} == {width}
    answered = sum(len(a.rows) for a in hidden.answers)
    assert answered == n * 3 * 2
    assert sum(prompts * rows for prompts, rows, _ in built) == default.info.n_layers * answered
