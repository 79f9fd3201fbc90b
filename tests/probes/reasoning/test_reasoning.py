"""Heads that write or carry a conclusion, statements by layer, and the prior: on two planted hops, known exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import tiny
from torch.testing import assert_close

import interp
from interp import tasks
from interp.batch import Batch
from interp.components import head_names
from interp.edits import KnockOut
from interp.errors import NotApplicable, SchemaError, TaskError
from interp.measurement.checks import check_analysis
from interp.measurement.planted import planted_prompts
from interp.measurement.sources import statement_masks
from interp.sites import Site
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import TwoHop
from probes.reasoning import reasoning, reasoning_flow, reasoning_prior
from probes.reasoning._flow import behind
from probes.reasoning._prior import gives_way, prior_tokens

ROLES = ("name_duplicate", "inhibition", "name_mover")


@pytest.fixture(scope="module")
def hops():
    """Two hops without noise, norms the identity: every number is the construction's."""
    made = factory.plant([TwoHop()], architecture="llama-nonorm", seed=0, n_layers=4, noise=0.0)
    return made, interp.load(made.model, tokenizer=made.tokenizer)


@pytest.fixture(scope="module")
def task(hops):
    return tasks.planted_task(hops[0], "two_hop", n=16, corruption="minimal")


@pytest.fixture(scope="module")
def heads(hops, task):
    return reasoning(hops[1], task=task, n_random=2)


@pytest.fixture(scope="module")
def flow(hops, task):
    return reasoning_flow(hops[1], task=task, n_random=2)


@pytest.fixture(scope="module")
def inert():
    """Random heads alone, asked the same."""
    made = factory.plant([], architecture="llama", seed=0, n_layers=2)
    return interp.load(made.model, tokenizer=made.tokenizer), planted_prompts(
        made, "two_hop", n=12, corruption="minimal"
    )


def variant(result, name):
    rows = result.table[result.table["variant"] == name]
    return rows.set_index("component")


def named(made, *roles):
    return head_names([place for role in roles for place in made.truth.roles[role]])


def labelled(result, name):
    rows = variant(result, name)
    return set(rows.index[rows["label"].fillna(False).astype(bool)])


def test_one_head_writes_the_conclusion_and_the_two_below_carry_it(hops, heads):
    made, _ = hops
    answer, moved = variant(heads, "answer"), variant(heads, "moved")
    assert labelled(heads, "answer") == set(named(made, "name_mover"))
    assert labelled(heads, "moved") == set(named(made, "name_duplicate", "inhibition"))
    layers = {role: made.truth.roles[role][0][0] for role in ROLES}
    assert max(layers["name_duplicate"], layers["inhibition"]) < layers["name_mover"]
    written = made.truth.effects["two_hop"]["name_mover"]
    (mover,), carriers = named(made, "name_mover"), named(made, "name_duplicate", "inhibition")
    assert_allclose(answer.loc[mover, "value"], written, rtol=1e-3)
    assert answer.loc[mover, "role"] == "answer writing" and set(moved.loc[carriers, "role"]) == {"information moving"}
    assert np.abs(answer.drop(mover)["value"]).max() < 1e-5
    assert_allclose(moved.loc[carriers, "value"], 2 * written, rtol=1e-2)  # the twin's answer is the other name
    assert np.abs(moved.drop(carriers)["value"]).max() < 1e-4


def test_direct_and_moved_sum_to_the_total_and_the_source_is_the_other_name(hops, heads):
    made, _ = hops
    total, direct, moved = (variant(heads, name)["value"] for name in ("total", "direct", "moved"))
    assert_allclose(total, direct.loc[total.index] + moved.loc[total.index], atol=1e-5)
    (mover,) = named(made, "name_mover")
    assert_allclose(direct[mover], total[mover], rtol=1e-5)
    assert np.abs(direct.drop(mover)).max() < 1e-4
    rows = heads.table[(heads.table["variant"] == "source") & (heads.table["component"] == mover)]
    by_source = rows.set_index("source")["value"]
    assert_allclose(by_source["IO"], variant(heads, "answer").loc[mover, "value"], rtol=1e-3)
    assert np.abs(by_source.drop("IO")).max() < 1e-3
    assert set(by_source.index) == {"IO", "S1", "S2", "start", "own", "others"}


def test_without_the_writer_names_are_guessed_and_without_others_not(heads):
    rows = heads.interventions.set_index("metric")
    assert rows.loc["accuracy", "clean"] == 1.0 == rows.loc["accuracy", "random_mean"]
    assert abs(rows.loc["logit_diff", "edited"]) < 0.5 < rows.loc["logit_diff", "random_mean"]


def test_each_name_is_read_in_the_layer_of_its_head(hops, flow):
    made, _ = hops
    layers = [made.truth.roles[role][0][0] for role in ROLES]
    expected = {f"A{layer}<{name}" for layer, name in zip(layers, ("S1", "S2", "IO"), strict=True)}
    assert labelled(flow, "read") == expected
    rows = variant(flow, "read")
    assert np.abs(rows.drop(list(expected))["value"]).max() < 0.01 * rows.loc[list(expected), "value"].min()
    assert flow.provenance["data"]["mostly_read_in"] == dict(zip(("S1", "S2", "IO"), layers, strict=True))


def test_readings_sum_to_the_whole_and_cuts_are_those_of_whole_runs(hops, task, flow):
    _, model = hops
    read, late, early = (flow.table[flow.table["variant"] == name] for name in ("read", "late", "early"))
    whole = late[late["layer"] == 0].set_index("statement")["value"]
    assert_allclose(read.groupby("statement")["value"].sum().loc[whole.index], whole, atol=1e-5)
    assert_allclose(early[early["layer"] == 3].set_index("statement")["value"].loc[whole.index], whole, atol=1e-5)
    for name, mask in statement_masks(task).items():
        for rows, cut in ((late, lambda layer: range(layer, 4)), (early, lambda layer: range(layer + 1))):
            for layer in (1, 2):
                pairs = behind(mask)[:, :, None] & mask[:, None, :]
                edits = [KnockOut(Site("pattern", i), pairs=pairs, renormalise=False) for i in cut(layer)]
                fall = task.value(model.run(task.clean).logits) - task.value(model.run(task.clean, edits=edits).logits)
                value = rows[(rows["layer"] == layer) & (rows["statement"] == name)]["value"].iloc[0]
                assert_allclose(value, float(fall.mean()), atol=1e-5)


def test_random_tokens_are_worth_less_than_the_names(flow):
    rows, late = variant(flow, "random"), variant(flow, "late")
    for name in ("S1", "S2", "IO"):
        assert abs(rows.loc[f"A0<random tokens for {name}", "value"]) < late.loc[f"A0<{name}", "value"] / 2


def test_tokens_behind_a_statement():
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    assert behind(mask).tolist() == [[False, False, False, True, True], [False] * 5]


def test_the_prior_gives_way_where_the_conclusion_is_written(hops, task):
    made, model = hops
    found = reasoning_prior(model, task=task)
    layer = made.truth.roles["name_mover"][0][0]
    assert labelled(found, "advantage") == {f"L{layer}"}
    assert variant(found, "depth")["value"].iloc[0] == layer
    answer = variant(found, "answer")["value"].tolist()
    assert answer == [0.0] * layer + [1.0]
    ids = prior_tokens(model, task, "last token")
    cue = model.run([[made.vocab.bos, made.vocab.cue("<to>")]]).logits[0, -1]
    for row, token in enumerate(ids.tolist()):
        rest = cue.clone()
        rest[task.answers[row]] = -torch.inf
        assert token == int(rest.argmax())
    log_p = model.run(task.clean).logits[:, -1].log_softmax(-1)
    expected = log_p.gather(1, task.answers)[:, 0] - log_p.gather(1, ids[:, None])[:, 0]
    rows = variant(found, "advantage")
    assert_allclose(rows.loc[f"L{layer}", "value"], float(expected.mean()), rtol=1e-5)
    assert variant(found, "in_context").loc[f"L{layer}", "value"] == 1.0
    assert variant(found, "in_context").loc[f"L{layer}", "null"] < 0.8


def test_depth_counts_from_the_last_time_the_prior_led():
    advantage = np.array([[-1.0, 1.0, -1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, -1.0]])
    assert gives_way(advantage).tolist() == [3.0, 0.0, 4.0]


def test_nothing_is_found_where_nothing_is_planted(inert):
    model, task = inert
    assert labelled(reasoning(model, task=task, n_random=2), "answer") == set()
    assert labelled(reasoning(model, task=task, n_random=2), "moved") == set()
    assert labelled(reasoning_flow(model, task=task, n_random=1), "read") == set()
    assert labelled(reasoning_prior(model, task=task), "advantage") == set()


def pairs(model, n=8, *, wrong=True):
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(3, model.info.d_vocab, (n, 8), generator=generator).tolist()
    corrupt = [[*row[:2], (row[2] + 1) % model.info.d_vocab, *row[3:]] for row in clean]
    answers = [[(row[-1] + 1) % model.info.d_vocab] for row in clean]
    others = [[(row[-1] + 2) % model.info.d_vocab] for row in clean] if wrong else None
    roles = {"FIRST STOP": 2, "SECOND STOP": 4}
    return interp.pair(model, clean, corrupt, answers, others, roles=roles)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_oss"])
def test_other_architectures(name):
    model = tiny(name)
    task = pairs(model)
    found = reasoning(model, task=task, n_random=1, n_draws=6)
    total, direct, moved = (variant(found, v)["value"] for v in ("total", "direct", "moved"))
    assert_allclose(total, direct.loc[total.index] + moved.loc[total.index], atol=1e-4)
    assert set(reasoning_flow(model, task=task, n_random=1, n_draws=6).table["statement"]) == {"FIRST", "SECOND"}
    assert len(variant(reasoning_prior(model, task=task, prior="question"), "advantage")) == model.info.n_layers


def test_statements_end_where_the_task_says():
    model = tiny("gpt2")
    masks = statement_masks(pairs(model, 6))
    assert [int(i) for i in masks["FIRST"][0].nonzero()[:, 0]] == [1, 2]
    assert [int(i) for i in masks["SECOND"][0].nonzero()[:, 0]] == [3, 4]
    spans = torch.zeros(6, 8, dtype=torch.bool)
    spans[:, :4] = True
    own = pairs(model, 6)
    own = replace(own, clean=Batch(own.clean.ids, own.clean.mask, spans={"document": spans}))
    assert [int(i) for i in statement_masks(own)["document"][0].nonzero()[:, 0]] == [1, 2, 3]
    question = prior_tokens(model, pairs(model, 6), "question")
    ids = pairs(model, 6).clean.ids[:, 5:]
    logits = model.run(ids).logits[:, -1].clone()
    logits.scatter_(1, pairs(model, 6).answers, -torch.inf)
    assert_close(question, logits.argmax(-1))


def test_what_cannot_be_asked_is_refused():
    model = tiny("gpt2")
    bare = pairs(model, 8)
    with pytest.raises(TaskError, match="judged against a wrong one"):
        reasoning(model, task=pairs(model, wrong=False))
    for analysis in (reasoning, reasoning_flow, reasoning_prior):
        with pytest.raises(TaskError, match="too few exchanges"):
            analysis(model, task=pairs(model, 5))
    with pytest.raises(NotApplicable, match="marks no tokens but END"):
        reasoning_flow(model, task=replace(bare, roles={"END": bare.end}))
    with pytest.raises(SchemaError, match="unknown prior 'bigrams'"):
        reasoning_prior(model, task=bare, prior="bigrams")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reasoning", "reasoning_flow", "reasoning_prior"])
def test_what_is_promised_of_every_analysis_is_kept(name):
    assert "planted" in check_analysis(name) or name != "reasoning"
