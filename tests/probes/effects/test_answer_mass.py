"""Mass on answer options: exact on logits made by hand, and that of a model's own probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from probe_cases import variant

import interp
from interp.errors import NotApplicable, TaskError
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import Induction
from probes.effects._answer_mass import option_scores


@pytest.fixture(scope="module")
def induction():
    made = factory.plant([Induction()], seed=0)
    return made, interp.load(made.model, tokenizer=made.tokenizer)


@pytest.fixture(scope="module")
def task(induction):
    """Prompts of the planted task, with two wrong options each: words of the prompt."""
    made, model = induction
    asked = made.task("induction", seed=0, n=12)
    other = asked.tokens.clone()
    other[:, -1] = other[:, 1]
    wrong = [[int(x) for x in row[1:4] if x != a][:2] for row, a in zip(asked.tokens, asked.answers, strict=True)]
    answers = [[int(a)] for a in asked.answers]
    return interp.pair(model, asked.tokens.tolist(), other.tolist(), answers, wrong)


def test_scores_are_exact_on_logits_made_by_hand():
    p = torch.tensor([[[0.5, 0.25, 0.125, 0.125], [0.125, 0.125, 0.25, 0.5]]], dtype=torch.float64)
    ids = torch.tensor([[1, 0, -1], [3, 0, 1]])
    right = torch.tensor([[True, False, False], [True, False, False]])
    mass, of_right, first = option_scores(p.log(), ids, right)
    assert_allclose(mass, [[0.75, 0.75]], rtol=1e-12)
    assert_allclose(of_right, [[1 / 3, 2 / 3]], rtol=1e-12)
    assert first.tolist() == [[0, 1]]


def test_the_output_s_mass_is_that_of_its_probabilities(induction, task):
    model = induction[1]
    found = interp.analyze(model, "answer_mass", task=task, n_draws=8)
    p = model.run(task.clean).logits[:, -1].double().softmax(-1)
    right = p.gather(1, task.answers)[:, 0]
    whole = right + p.gather(1, task.wrong).sum(1)
    rows = {name: variant(found, name) for name in ("mass", "bound", "right", "first")}
    assert rows["mass"]["value"]["logits"] == pytest.approx(float(whole.mean()), rel=1e-5)
    assert_allclose(rows["bound"]["value"], 1 - rows["mass"]["value"], rtol=1e-12)
    assert rows["right"]["value"]["logits"] == pytest.approx(float((right / whole).mean()), rel=1e-5)
    assert rows["first"]["value"]["logits"] == 1
    assert rows["right"]["null"].unique() == pytest.approx([1 / 3])
    assert_allclose(rows["mass"]["value"]["L1"], rows["mass"]["value"]["logits"], rtol=1e-5)


def test_the_layer_that_answers_and_no_earlier_one(induction, task):
    rows = variant(interp.analyze(induction[1], "answer_mass", task=task), "mass")
    assert rows["label"].astype(bool).to_dict() == {"L0": False, "L1": True, "logits": True}
    assert (rows["null"] < 0.15).all()


def test_an_indifferent_model_gives_options_no_more_than_their_share(task):
    made = factory.plant([], seed=0, noise=0.0, n_words=48)
    made.model.get_output_embeddings().weight.data.zero_()
    model = interp.load(made.model, tokenizer=made.tokenizer)
    rows = variant(interp.analyze(model, "answer_mass", task=task), "mass")
    assert_allclose(rows["value"], 3 / model.info.d_vocab, rtol=1e-5)
    assert_allclose(rows["null"], 3 / model.info.d_vocab, rtol=1e-5)
    assert not rows["label"].any()
    assert np.all(rows["p"] > 0.1)


def test_questions_without_options(induction, task):
    model = induction[1]
    alone = interp.pair(model, task.clean.ids.tolist(), task.corrupt.ids.tolist(), task.answers[:, 0].tolist())
    with pytest.raises(TaskError, match="no wrong option"):
        interp.analyze(model, "answer_mass", task=alone)
    many = interp.pair(
        model, task.clean.ids.tolist(), task.corrupt.ids.tolist(), task.answers.tolist(),
        [[i for i in range(4, 44) if i != a] for a in task.answers[:, 0].tolist()],
    )  # fmt: skip
    with pytest.raises(NotApplicable, match="a random set of as many"):
        interp.analyze(model, "answer_mass", task=many)
