"""Importance: exact ablations are those of single runs, gradients their linear limit, planted heads come out on top."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import spearmanr

import interp
from interp import tasks, zoo
from interp.edits import Ablate, Scale
from interp.errors import SchemaError, TaskError
from interp.measurement.head_effects import Objective, ablation_effects, first_order_effects, head_activations
from interp.sites import Site
from probes.effects import pruning_curve

WAYS = ("mean", "zero", "resample", "mask_gradient")
EVERYTHING = {"how": WAYS[:3], "pruning": True, "n_prompts": 8, "length": 16, "n_random": 5, "seed": 2}


@pytest.fixture(scope="module")
def planted():
    return interp.load("zoo:planted-induction", dtype="float64")


@pytest.fixture(scope="module")
def pairs(planted):
    return tasks.task("induction", planted, n=6, seed=1)


@pytest.fixture(scope="module")
def found(planted):
    return interp.analyze(planted, "importance", **EVERYTHING)


def of(result, variant):
    return result.table[result.table["variant"] == variant].set_index("component")


def single(model, pairs, edit):
    clean, edited = (pairs.value(model.run(pairs.clean, edits=e).logits) for e in ((), (edit,)))
    return (clean - edited).double().numpy()


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
def test_ablations_in_one_batch_are_those_of_single_runs(planted, pairs, how):
    values = {"zero": None, "mean": planted.mean(pairs.clean), "resample": head_activations(planted, pairs.corrupt)}
    lost = ablation_effects(planted, Objective.of_task(pairs), how, values[how], rows=20)
    for layer, head in ((0, 0), (0, 2), (1, 7)):
        put = None if values[how] is None else values[how][layer, ..., head, :]
        expected = single(planted, pairs, Ablate(Site("z", layer, head=head), how, put))
        assert_allclose(lost[:, layer, head], expected, atol=1e-4)


def test_the_gradient_is_the_limit_of_a_small_step(planted, pairs):
    signed = first_order_effects(planted, Objective.of_task(pairs))
    step = 1e-2
    for layer, head in [*zoo.truth("planted-induction").roles["induction"], (0, 1)]:
        less, more = (single(planted, pairs, Scale(Site("z", layer, head=head), 1 + s)) for s in (-step, step))
        assert_allclose(signed[:, layer, head], (less - more) / (2 * step), rtol=2e-3, atol=2e-4)


def test_planted_heads_are_the_important_ones(found):
    roles = zoo.truth("planted-induction").roles
    names = {f"L{layer}H{head}" for role in ("induction", "previous_token") for layer, head in roles[role]}
    rows = of(found, "mean")
    assert set(rows.index[rows["label"].astype(bool)]) == names
    assert set(rows["value"].nlargest(len(names)).index) == names
    assert (rows.loc[sorted(names), "q"] < 0.01).all()


def test_pruning_by_importance_keeps_more_than_random_orders(found):
    area = found.table[found.table["variant"] == "area_by_mean"].iloc[0]
    assert area["value"] > area["null"] + 0.2
    assert area["p"] == pytest.approx(1 / 6)
    kept = found.table.loc[found.table["variant"] == "pruned_by_mean", "value"].to_numpy(float)
    assert area["value"] == pytest.approx((kept - kept[-1]).mean() / (kept[0] - kept[-1]), rel=1e-6)
    curve = found.table[found.table["variant"] == "pruned_by_mean"]
    assert curve["pruned"].tolist()[0] == 0
    assert curve["pruned"].tolist()[-1] == 16
    assert_allclose(curve["value"].iloc[[0, -1]], curve["null"].iloc[[0, -1]])
    figure = pruning_curve(found)
    assert [trace.name for trace in figure.data][0] == "random order"  # behind the others
    assert len(figure.data) == 5


def test_agreement_is_a_row_for_every_two_measures(found):
    rows = found.table[found.table["variant"].str.startswith("agreement")]
    assert len(rows) == 6
    assert rows["value"].between(-1, 1).all()
    for a, b in combinations(("mean", "zero", "resample", "mask_gradient"), 2):
        (row,) = rows[rows["variant"] == f"agreement_{a}_{b}"].to_dict("records")
        expected = spearmanr(*(of(found, way)["value"].to_numpy() for way in (a, b)))
        assert_allclose([row["value"], row["p"]], [expected.statistic, expected.pvalue], rtol=1e-9)
        assert row["ci_low"] < row["value"] < row["ci_high"]
    assert rows["component"].isna().all()


def test_the_gradient_by_layer_is_the_gradient_over_the_norm_of_its_layer(found):
    rows, by_layer = of(found, "mask_gradient"), of(found, "mask_gradient_by_layer")
    norms = rows["value"].pow(2).groupby(rows["layer"]).transform("sum").pow(0.5)
    assert norms.nunique() == 2
    assert_allclose(by_layer["value"], rows["value"] / norms, rtol=1e-9)


def test_prompts_of_ones_own_of_different_lengths(planted):
    prompts = [[1, 5, 6, 7, 5, 6], [1, 8, 9, 8], [1, 4, 3, 7, 4, 3, 7], [1, 9, 9, 9]]
    result = interp.analyze(planted, "importance", prompts=prompts, how=("zero",), pruning=False)
    run = planted.run(prompts)
    expected = [
        -torch.nn.functional.cross_entropy(run.logits[i, : len(p) - 1], torch.tensor(p[1:])).item()
        for i, p in enumerate(prompts)
    ]
    assert_allclose(result.provenance["data"]["clean"], np.mean(expected), rtol=1e-5)
    assert "resample" not in set(result.table["variant"])


def test_what_cannot_be_asked_is_refused(planted):
    with pytest.raises(TaskError, match="which of them"):
        interp.analyze(planted, "importance", task="induction", prompts=[[1, 2]])
    with pytest.raises(TaskError, match="unknown ablation 'men'; did you mean 'mean'"):
        interp.analyze(planted, "importance", how=("men",))
    with pytest.raises(TaskError, match="four at least"):
        interp.analyze(planted, "importance", prompts=[[1, 2, 3]])
    sink = interp.analyze(planted, "sink", n_prompts=4)
    with pytest.raises(SchemaError, match="no pruning curve"):
        pruning_curve(sink)


def test_the_same_seed_gives_the_same_table(planted):
    few = {**EVERYTHING, "how": "resample", "n_random": 2, "n_prompts": 4, "pruning": False}
    one, again, other = (interp.analyze(planted, "importance", **few | {"seed": seed}).table for seed in (2, 2, 3))
    pd.testing.assert_frame_equal(one, again)
    assert not one["value"].equals(other["value"])
