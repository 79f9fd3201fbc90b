"""Detectors on prompts of one's own: by hand from captured patterns, and on planted truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tiny_models import N_LAYERS, tiny

import interp
from interp import zoo
from interp.batch import Batch
from interp.errors import SchemaError, TaskError

ROWS = ([5, 6, 7, 5, 6, 9, 5, 8, 6, 6, 11, 12, 13, 14], [20, 21, 22, 21, 23, 20, 24, 25, 26, 27, 28, 29])


def patterns(ids):
    run = tiny("llama").run([ids], capture=["pattern"])
    return np.stack([run[f"L{layer}.pattern"][0].double().numpy() for layer in range(N_LAYERS)])


def per_query(ids, keys_of):
    """Mean over queries from the third on that have any of sum over keys of p; and 1 / (keys seen) in place of p."""
    p = patterns(ids)
    by_query = {i: [j for j in range(i) if keys_of(ids, i, j)] for i in range(2, len(ids))}
    found = [(p[:, :, i, keys].sum(-1), len(keys) / (i + 1)) for i, keys in by_query.items() if keys]
    return np.mean([x for x, _ in found], axis=0), np.mean([null for _, null in found])


RULES = {
    "previous_token": lambda ids, i, j: j == i - 1,
    "duplicate_token": lambda ids, i, j: ids[j] == ids[i],
    "induction": lambda ids, i, j: j >= 1 and ids[j - 1] == ids[i],
}


@pytest.mark.parametrize("name", RULES)
def test_scores_and_nulls_by_hand(name):
    for side in ("right", "left"):
        rows = interp.analyze(tiny("llama"), name, prompts=Batch.of(ROWS, side=side)).table
        rows = rows[rows["variant"] == rows["variant"].iloc[0]]
        own, null = zip(*(per_query(ids, RULES[name]) for ids in ROWS), strict=True)
        assert_allclose(rows["value"].to_numpy().reshape(N_LAYERS, -1), np.mean(own, axis=0), atol=1e-5)
        assert_allclose(rows["null"], np.mean(null), atol=1e-5)
        assert set(rows["n"]) == {2}


def test_a_sink_is_the_mean_of_the_first_column_of_prompts_of_one_length():
    rows = interp.analyze(tiny("llama"), "sink", prompts=ROWS).table.query("variant == 'first_token'")
    expected = np.mean([patterns(ids)[:, :, :12, 0][..., :12].mean(-1) for ids in ROWS], axis=0)
    assert_allclose(rows["value"].to_numpy().reshape(N_LAYERS, -1), expected, atol=1e-5)
    assert_allclose(rows["null"], np.mean(1 / np.arange(1, 13)), atol=1e-6)


def test_planted_heads_are_seen_on_one_prompt_which_has_no_interval():
    model = interp.load("zoo:planted-induction")
    block = list(range(5, 25))
    for name in ("induction", "previous_token"):
        truth = [f"L{layer}H{h}" for layer, h in zoo.truth("planted-induction").roles[name]]
        result = interp.analyze(model, name, prompts=[*block, *block])
        rows = result.table[result.table["variant"] == result.table["variant"].iloc[0]]
        assert set(rows[rows["label"].fillna(False).astype(bool)]["component"]) == set(truth)
        assert rows["ci_low"].isna().all()
        assert result.provenance["data"]["task"] == "prompts given"


def test_what_cannot_be_measured_on_ones_own_says_why():
    model = tiny("llama")
    for name, message in (("duplicate_token", "no token comes twice"), ("induction", "no token comes twice")):
        with pytest.raises(TaskError, match=message):
            interp.analyze(model, name, prompts=list(range(3, 20)))
    for name, least in (("previous_token", 8), ("sink", 12)):
        with pytest.raises(TaskError, match=f"at least {least} are needed"):
            interp.analyze(model, name, prompts=[3, 4, 5])
    with pytest.raises(
        SchemaError, match="has no option 'prompts'; what it measures is defined on prompts that it makes"
    ):
        interp.analyze(model, "lag_profile", prompts=[3, 4, 5])
    with pytest.raises(SchemaError, match="it reads 'task' instead"):
        interp.analyze(model, "movers", prompts=[3, 4, 5])
