"""The planted switch answers by the word of intent, and needs each of its parts for it."""

from __future__ import annotations

import pytest
import torch

from interp.tasks.planted_pairs import planted_intents
from interp.zoo.planted.factory import Fact, plant
from interp.zoo.planted.mechanisms import Switch
from interp.zoo.trained.measure import zeroed


@pytest.mark.parametrize("architecture", ["llama-gqa", pytest.param("gpt2", marks=pytest.mark.slow)])
@torch.no_grad()
def test_every_part_is_needed(architecture):
    made = plant([Switch()], architecture=architecture, seed=0)
    task = made.task("switch", seed=3, n=32)

    def accuracy():
        return task.accuracy(made.model(task.tokens, use_cache=False).logits)

    assert accuracy() == 1
    needed, inert = made.roles("switch"), made.inert(seed=0)
    assert {r.name for r in needed} == {"previous_token", "fact_mover", "fact_table", "intent", "switched_told"}
    for role in needed:
        with zeroed(made.model, role.heads, neurons=role.neurons):
            assert accuracy() <= 0.65
    for role in inert:
        with zeroed(made.model, role.heads, neurons=role.neurons):
            assert accuracy() == 1


def test_pairs_differ_in_the_intent_alone():
    made = plant([Fact(), Switch()], seed=1)
    task = planted_intents(made.vocab, n=16, seed=2)
    differ = (task.clean.ids != task.corrupt.ids).nonzero()
    assert differ[:, 0].tolist() == list(range(16))
    assert torch.equal(differ[:, 1], task.role("INTENT"))
    ids = task.clean.ids
    assert torch.equal(ids.gather(1, task.role("TOLD")[:, None]), task.answers)
    table = {made.vocab.word(s): made.vocab.word(a) for s, a in Switch().facts}
    subjects = ids.gather(1, task.role("SUBJECT")[:, None])[:, 0].tolist()
    assert [table[s] for s in subjects] == task.wrong[:, 0].tolist()
    assert (task.answers != task.wrong).all()


def test_an_intent_that_is_a_subject_is_refused():
    with pytest.raises(ValueError, match="word of intent"):
        Switch(intents=(12, 46))
