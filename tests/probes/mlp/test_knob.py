"""A planted switch between context and memory is recovered as one direction, and turning it turns every answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from probe_cases import variant
from tiny_models import tiny
from torch.testing import assert_close

import interp
from interp import tasks
from interp.errors import NotApplicable, SchemaError, TaskError
from interp.patching.alignment import distributed_alignment
from interp.tasks.metrics import logit_margin
from interp.tasks.planted_pairs import planted_intents
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import Fact, Switch, Told
from probes.mlp import IntentRuns, context_knob, fit_knob
from probes.mlp._context_knob import _orthogonal, above


@pytest.fixture(scope="module")
def planted():
    made = factory.plant([Switch()], seed=0)
    return made, interp.load(made.model, tokenizer=made.tokenizer)


@pytest.fixture(scope="module")
def pairs(planted):
    return planted_intents(planted[0].vocab, n=32, seed=0)


@pytest.fixture(scope="module")
def result(planted, pairs):
    return context_knob(planted[1], task=pairs, steps=5, n_random=5)


@pytest.fixture(scope="module")
def direction(planted, pairs):
    """What the planted head writes for one intent less the other, at the end."""
    made, model = planted
    ((layer, head),) = made.truth.roles["intent"]
    site = f"L{layer}H{head}.head_out"
    use, ignore = (model.run(batch, capture=[site])[site][:, -1] for batch in (pairs.clean, pairs.corrupt))
    return torch.nn.functional.normalize((use - ignore).mean(0), dim=0)


def test_the_switch_is_recovered_and_flips_every_answer(result):
    swap = variant(result, "swap")
    assert swap.loc["L0.resid_post", "value"] == 1
    assert swap.loc["L0.resid_post", "null"] == 0
    assert swap["label"].tolist() == [True, False]  # behind the answer's layer no one direction does it
    assert variant(result, "whole")["value"].tolist() == [1, 1]
    for name in ("set", "mean", "separation"):
        assert variant(result, name).loc["L0.resid_post", "value"] == 1
    assert variant(result, "agreement").loc["L0.resid_post", "value"] > 0.99


def test_its_direction_is_the_planted_one(planted, pairs, direction):
    runs = IntentRuns.of(planted[1], pairs)
    assert runs.obeyed.all()
    knob = fit_knob(runs, 0, steps=5, n_random=5, train=True, seed=0)
    assert abs(float(knob.direction @ direction)) >= 0.99
    assert float(knob.direction @ direction) > 0 > knob.memory - knob.context


def test_turning_the_knob_turns_the_answer(planted, pairs):
    _, model = planted
    knob = fit_knob(IntentRuns.of(model, pairs), 0, steps=5, n_random=5, train=False, seed=0)
    for batch, to in ((pairs.corrupt, "context"), (pairs.clean, "memory")):
        margin = logit_margin(model.run(batch, edits=[knob.edit(to)]).logits, pairs)
        assert ((margin > 0) == (to == "context")).all()
        x = model.run(batch, edits=[knob.edit(to)], capture=[str(knob.site)])[str(knob.site)]
        plain = model.run(batch, capture=[str(knob.site)])[str(knob.site)]
        assert_close(x[:, -1] @ knob.direction, torch.full((32,), getattr(knob, to)), atol=1e-4, rtol=1e-4)
        assert_close(x[:, :-1], plain[:, :-1])
        moved = (x - plain)[:, -1]
        assert_close(moved, (moved @ knob.direction)[:, None] * knob.direction, atol=1e-4, rtol=1e-4)
    with pytest.raises(SchemaError, match="'context' or 'memory'"):
        knob.edit("both")


@pytest.mark.slow
def test_a_search_of_the_whole_space_flips_the_answer_along_another_direction(planted, pairs, direction):
    """Why the direction is sought among the differences."""
    found = distributed_alignment(planted[1], pairs, site="L0.resid_post", steps=60, n_random=5)
    assert found.rows["value"].iloc[0] == 1
    assert abs(float(found.basis[:, 0] @ direction)) < 0.5


def test_random_directions_are_orthogonal_and_areas_are_shares():
    u = torch.nn.functional.normalize(torch.randn(40), dim=0)
    random = _orthogonal(u, 6, 0)
    assert_close(random @ u, torch.zeros(6), atol=1e-5, rtol=0)
    assert_close(random.norm(dim=1), torch.ones(6))
    assert above(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == 0.875


def test_a_model_without_a_switch_has_no_knob(pairs):
    made = factory.plant([Fact(), Told()], seed=0)
    with pytest.raises(NotApplicable, match="does as asked in 0 of 32 pairs"):
        context_knob(interp.load(made.model, tokenizer=made.tokenizer), task=pairs)


def test_refusals(planted, pairs):
    _, model = planted
    with pytest.raises(TaskError, match="known answer as its wrong one"):
        context_knob(model, task=replace(pairs, wrong=torch.full_like(pairs.wrong, -1)))
    with pytest.raises(TaskError, match="too few for a test"):
        context_knob(model, task=pairs, n_random=2)
    with pytest.raises(NotApplicable, match="tokenizer"):
        context_knob(tiny("llama"))


def test_the_shipped_model_does_as_either_wording_asks():
    model = interp.load("zoo:default")
    task = tasks.intents(model, n=16)
    assert (logit_margin(model.run(task.clean).logits, task) > 0).all()
    assert (logit_margin(model.run(task.corrupt).logits, task) < 0).all()
    assert torch.equal(task.clean.ids.gather(1, task.role("TOLD")[:, None]), task.answers)
    assert task.sha256 == tasks.intents(model, n=16).sha256 != tasks.intents(model, n=16, seed=1).sha256
    other = (tasks.INTENTS[0], replace(tasks.INTENTS[1], text="Rumour {core} {told} . {core}"))
    with pytest.raises(NotApplicable, match="as many tokens"):
        tasks.intents(model, n=4, wordings=other)


@pytest.mark.slow
def test_the_shipped_model_has_a_knob_before_the_layers_that_answer():
    result = context_knob(interp.load("zoo:default"))
    swap = variant(result, "swap")["value"]
    assert swap["L1.resid_post"] > 0.75 > swap["L3.resid_post"]
    assert variant(result, "whole").loc["L3.resid_post", "value"] == 1
