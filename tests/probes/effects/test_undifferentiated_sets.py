"""Sets of heads behind answers: heads that stand in for each other, a parked head, a set that no single score finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from probe_cases import named
from tiny_models import tiny

import interp
from interp.edits import Ablate, Replace
from interp.errors import SchemaError, TaskError
from interp.sites import Site
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import Fact, FirstTokenSink, Induction
from probes.effects._undifferentiated import uniform_outputs
from probes.effects._undifferentiated_sets import greedy, undifferentiated_sets


def variant(found, name):
    return found.table[found.table["variant"] == name].set_index("k")


def sets(found, name):
    return {frozenset(heads.split()) for heads in variant(found, name)["heads"]}


@pytest.fixture(scope="module")
def doubled():
    """Two heads each of which answers alone."""
    made = factory.plant([Fact(), Fact()], seed=0, n_heads=6)
    return made, interp.load(made.model, tokenizer=made.tokenizer)


@pytest.fixture(scope="module")
def found(doubled):
    made, model = doubled
    return undifferentiated_sets(model, prompts=made.task("fact", seed=0, n=12).tokens, size=3)


@pytest.mark.parametrize("how", ["uniform", "zero"])
def test_heads_that_stand_in_for_each_other_are_found_together(doubled, found, how):
    made, _ = doubled
    both = frozenset(named(made, "fact_mover"))
    assert len(both) == 2
    assert both in sets(found, how)
    rows = variant(found, how)
    assert rows.loc[1, "value"] < 0.35 * rows.loc[2, "value"]  # one alone is hardly missed
    assert rows.loc[2, "value"] > 1
    assert rows.loc[2, "p"] <= 0.05
    assert rows.loc[2, "null"] < 0.1
    assert_allclose(rows.loc[3, "value"], rows.loc[2, "value"], rtol=0.25)  # a third one adds nothing to speak of
    angle = variant(found, f"{how}_angle")
    assert angle.loc[2, "value"] > 3 * angle.loc[2, "null"]


def test_the_set_is_labelled_and_done_the_other_way_it_counts_as_well(found):
    rows, other = variant(found, "uniform"), variant(found, "uniform_other")
    assert rows.loc[2, "label"]
    assert other.loc[2, "value"] > 1
    assert (rows["ci_low"] <= rows["value"]).all()
    assert (rows["n"] == 6).all()
    assert found.table["variant"].iloc[0] == "uniform"


def test_a_set_of_one_is_the_score_of_single_heads(doubled):
    made, model = doubled
    prompts = made.task("fact", seed=0, n=8).tokens
    found, judged = undifferentiated_sets(model, prompts=prompts, size=1, n_random=2), model.batch(prompts[4:])
    (head,) = variant(found, "uniform")[["layer", "head"]].to_numpy(dtype=int).tolist()
    values = model.run(judged, capture=["v"]).acts[Site("v", head[0])][:, :, head[1]]
    z = uniform_outputs(values[:, :, None], judged.mask, None)[:, :, 0]  # the same without any attention edit
    site = Site("z", head[0], head=head[1])
    clean = model.run(judged).logits[:, -1].double().log_softmax(-1)
    other = variant(found, "zero").loc[1]
    for how, edit in (
        ("uniform", Replace(site, z)),
        ("zero", Ablate(Site("z", int(other["layer"]), head=int(other["head"])))),
    ):
        row = variant(found, how).loc[1]
        edited = model.run(judged, edits=[edit]).logits[:, -1].double().log_softmax(-1)
        assert_allclose(row["value"], (clean.exp() * (clean - edited)).sum(-1).mean(), rtol=1e-4)
        last = f"L{model.info.n_layers - 1}.resid_post"
        whole, cut = (model.run(judged, edits=e, capture=[last])[last][:, -1].double() for e in ((), [edit]))
        main = [torch.linalg.svd(x).Vh[0] for x in (whole, cut)]
        degrees = np.degrees(np.arccos(min(1.0, abs(float(main[0] @ main[1])))))
        assert_allclose(variant(found, f"{how}_angle").loc[1, "value"], degrees, rtol=1e-3, atol=1e-3)


def test_the_paper_s_angle_finds_them_as_well(doubled):
    made, model = doubled
    prompts = made.task("fact", seed=0, n=8).tokens
    angle = undifferentiated_sets(model, prompts=prompts, size=2, by="angle", n_random=1)
    assert frozenset(named(made, "fact_mover")) in sets(angle, "uniform")


def test_a_parked_head_is_in_the_uniform_set_and_not_in_the_zero_set():
    """What misleads: made to look everywhere, it writes what it never wrote. Set to zero, it is not missed."""
    made = factory.plant([Induction(), FirstTokenSink()], seed=0, n_heads=12)
    ((layer, head),), ((source, copies),) = made.truth.roles["sink"], made.truth.roles["induction"]
    ((before, previous),) = made.truth.roles["previous_token"]
    parked, copying = (made.model.model.layers[i].self_attn for i in (layer, source))
    size = parked.head_dim
    to, of = slice(head * size, (head + 1) * size), slice(copies * size, (copies + 1) * size)
    with torch.no_grad():  # as in the test of single heads: it would copy any word it looked at
        parked.v_proj.weight[to] = copying.v_proj.weight[of]
        parked.o_proj.weight[:, to] = 1.6 * copying.o_proj.weight[:, of]
        silent = slice(previous * size, (previous + 1) * size)  # else it is the first to be missed
        made.model.model.layers[before].self_attn.o_proj.weight[:, silent] = 0.0
    model = interp.load(made.model, tokenizer=made.tokenizer)
    words = made.vocab.draw(12, 3, generator=torch.Generator().manual_seed(0))
    prompts = torch.cat([torch.full((12, 1), made.vocab.bos), words], 1)
    found = undifferentiated_sets(model, prompts=prompts, size=1)
    row = variant(found, "uniform").loc[1]
    assert row["heads"] == f"L{layer}H{head}"
    assert row["value"] > 0.1
    assert row["p"] <= 0.05
    assert variant(found, "uniform_other").loc[1, "value"] < 0.01
    assert not row["label"]
    assert f"L{layer}H{head}" not in variant(found, "zero")["heads"].to_list()


def test_what_matters_only_together_is_missed_one_after_another():
    """What misleads in a greedy search: a pair that does nothing by halves."""
    worth = {frozenset("ab"): 9.0, frozenset("c"): 1.0, frozenset("d"): 0.5}

    def effect(heads):
        return sum(v for need, v in worth.items() if need <= {"abcd"[h] for _, h in heads})

    every = [(0, i) for i in range(4)]
    chosen, alone = greedy(effect, every, 2)
    assert chosen == [(0, 2), (0, 3)]
    assert alone == [(0, 2), (0, 3)]
    assert effect([(0, 0), (0, 1)]) > effect(chosen)


def test_a_head_that_another_stands_in_for_adds_nothing_to_it():
    def effect(heads):
        names = {"abc"[h] for _, h in heads}
        return 5.0 * ("a" in names) + 4.9 * (names & {"a", "b"} == {"b"}) + 2.0 * ("c" in names)

    chosen, alone = greedy(effect, [(0, i) for i in range(3)], 2)
    assert chosen == [(0, 0), (0, 2)]
    assert alone == [(0, 0), (0, 1)]


def test_nothing_is_behind_the_answers_of_a_model_whose_heads_write_nothing():
    made = factory.plant([], seed=0, noise=0.0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    found = undifferentiated_sets(model, n_prompts=8, size=1, n_random=4)
    for how in ("uniform", "zero"):
        assert_allclose(variant(found, how)["value"], 0, atol=1e-9)
        assert_allclose(variant(found, how)["p"], 1)
        assert_allclose(variant(found, f"{how}_elsewhere")["value"], 0, atol=1e-9)
    assert not variant(found, "uniform")["label"].any()


def test_refusals():
    model = tiny("gpt2")
    prompts = np.arange(40).reshape(8, 5).tolist()
    with pytest.raises(TaskError, match="at least 8"):
        undifferentiated_sets(model, prompts=prompts[:7])
    with pytest.raises(TaskError, match="size=17 .* 1 to 16"):
        undifferentiated_sets(model, prompts=prompts, size=17)
    with pytest.raises(SchemaError, match="did you mean 'angle'"):
        undifferentiated_sets(model, prompts=prompts, by="angel")
