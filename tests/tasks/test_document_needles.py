"""Needles among documents and answers among options: what stands where, what is right, contexts apart."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny

import interp
from interp.edits import KnockOut
from interp.errors import NotApplicable, TaskError
from interp.tasks import document_needles, option_mass, options
from interp.zoo.planted import factory


@pytest.fixture(scope="module")
def model():
    made = factory.plant([factory.Induction()], architecture="llama", seed=1)
    return interp.load(made.model, tokenizer=made.tokenizer)


@pytest.fixture(scope="module")
def found(model):
    return document_needles(model, n=3, n_documents=4, length=50)


def test_prompts_of_a_group_differ_in_the_gold_documents_place_alone(found):
    assert found.gold.tolist() == [0, 1, 2, 3] * 3
    assert found.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    ids, spans = found.batch.ids, found.batch.spans
    assert torch.equal(ids[:4].sort(1).values, ids[:1].sort(1).values.expand(4, -1))
    for row, gold in enumerate(found.gold.tolist()):
        assert torch.equal(spans["gold"][row], spans[f"document {gold + 1}"][row])
        assert (spans["needle"][row] & ~spans["gold"][row]).sum() == 0
        others = [ids[row][spans[f"document {i + 1}"][row]].tolist() for i in range(4) if i != gold]
        first = [ids[row - gold][spans[f"document {i + 1}"][row - gold]].tolist() for i in range(1, 4)]
        assert others == first
    every = torch.stack([*(spans[f"document {i}"] for i in range(1, 5)), spans["question"], spans["answer"]])
    assert (every.sum(0)[:, 1:] == 1).all()  # all but BOS, and nothing twice


def test_the_answer_stands_in_the_gold_document_behind_the_key_that_is_asked(found):
    for row, answer in enumerate(found.answers):
        ids = found.batch.ids[row]
        assert found.batch.span("needle")[row, list(answer.keys)].all()
        assert ids[list(answer.keys)].tolist() == ids[found.batch.span("answer")[row]].tolist()
        question = range(*answer.question)
        assert ids[question[-1]] == ids[answer.keys[0] - 1]
        assert answer.rows == (question[-1],)
        assert answer.depth == found.gold[row] / 3


def test_an_induction_head_answers_at_every_place_and_not_without_its_document(model, found):
    right = found.right(model.run(found.batch).logits)
    table = found.by_place(right)
    assert table["place"].tolist() == [1, 2, 3, 4]
    assert (table["accuracy"] == 1).all()
    assert (table["n"] == 3).all()
    blind = [KnockOut("pattern", keys="gold", queries="question", renormalise=True)]
    assert not found.right(model.run(found.batch, edits=blind).logits).any()
    mixed = torch.arange(12) % 4 == 1
    assert found.by_place(mixed)["accuracy"].tolist() == [0, 1, 0, 0]


def test_documents_read_in_parallel_see_none_of_the_others(model, found):
    pairs, block = found.apart(), found.blocks()
    inside = block > 0
    assert torch.equal(pairs, inside[:, :, None] & inside[:, None, :] & (block[:, :, None] != block[:, None, :]))
    assert found.apart(shared=False)[:, 1, 0].all()
    assert not pairs[:, 1, 0].any()
    run = model.run(found.batch, capture=["pattern"], edits=[KnockOut("pattern", pairs=pairs, renormalise=True)])
    pattern = run["L1.pattern"]
    assert pattern.transpose(0, 1)[:, pairs].abs().max() == 0
    question = found.batch.span("question")
    whole = model.run(found.batch, capture=["pattern"])["L0.pattern"]
    assert torch.equal(run["L0.pattern"].transpose(1, 2)[question], whole.transpose(1, 2)[question])


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(NotApplicable, match="haystack"):
        document_needles(model, n=1, n_documents=9, length=30)
    for wrong in ({"n_documents": 1}, {"n_documents": 3, "places": (3,)}):
        with pytest.raises(TaskError, match="documents"):
            document_needles(model, n=1, **wrong)


@pytest.mark.parametrize("asked", ["letter", "name"])
def test_options_are_listed_and_one_is_asked_for(model, asked):
    task = options(model, n=6, n_options=3, asked=asked)
    first, second = (0, 1) if asked == "name" else (1, 0)  # what is said, and what is asked for
    for row in range(6):
        ids = task.clean.ids[row]
        listed = [ids[task.clean.span(f"option {i + 1}")[row]].tolist() for i in range(3)]
        said = ids[-1].item()
        (right,) = [pair for pair in listed if pair[first] == said]
        assert task.answers[row].tolist() == [right[second]]
        assert sorted(task.wrong[row].tolist()) == sorted(pair[second] for pair in listed if pair is not right)
        assert ids[task.clean.span("right")[row]].tolist() == right
        assert ids[task.roles["RIGHT"][row]] == right[second]
        assert task.corrupt.ids[row, -1] in [pair[first] for pair in listed if pair is not right]
    if asked == "name":  # the name follows its letter: an induction head says it
        logits = model.run(task.clean).logits
        assert (logits[:, -1].argmax(-1) == task.answers[:, 0]).all()


def test_the_mass_on_options_is_a_sum_of_probabilities(model):
    task = options(model, n=2, n_options=3)
    logits = torch.zeros(2, model.info.d_vocab)
    assert torch.allclose(option_mass(logits, task), torch.tensor(3 / model.info.d_vocab))
    logits[0, task.answers[0]] = 50.0
    logits[1, task.wrong[1]] = 50.0
    assert torch.allclose(option_mass(logits, task), torch.ones(2))
    task.wrong[1, 1] = -1  # a row with fewer options
    assert torch.allclose(option_mass(logits, task), torch.tensor([1.0, 0.5]))


def test_odd_options_are_refused():
    with pytest.raises(TaskError, match="unknown kind"):
        options(tiny("gpt2"), asked="number")
    with pytest.raises(TaskError, match="2 to 8"):
        options(tiny("gpt2"), n_options=1)
    assert len(options(tiny("gpt2"), n=2)) == 2  # no tokenizer: tokens
