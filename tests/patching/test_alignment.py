"""Distributed alignment search finds the direction that a planted head reads, and says what controls reach."""

import random

import numpy as np
import pytest
import torch
from tiny_models import tiny
from torch.testing import assert_close

import interp
from circuits import distributed_alignment
from interp.errors import SchemaError, SiteError, TaskError
from interp.patching.alignment import difference_span, exchanged
from interp.tasks.prompt import collate
from interp.zoo.planted import factory


@pytest.fixture(scope="module")
def planted():
    """A model with an induction head, pairs whose answer is one of two words, and what the words' embeddings differ in.

    Clean and corrupted prompts differ in that word alone (role B1), which the head copies.
    """
    made = factory.plant([factory.Induction()], seed=0, n_layers=2, n_words=12)
    model, word = interp.load(made.model, tokenizer=made.tokenizer), made.vocab.word
    rng, rows = random.Random(0), []
    for _ in range(40):
        right, wrong = rng.sample([word(0), word(1)], 2)
        one, two, three, four = (word(w) for w in rng.sample(range(2, 12), 4))
        rows.append(([0, two, one, right, three, four, one], [0, two, one, wrong, three, four, one], right, wrong))
    clean, corrupt, right, wrong = zip(*rows, strict=True)
    task = collate(
        "two words",
        list(zip(clean, corrupt, strict=True)),
        answers=[[x] for x in right],
        wrong=[[x] for x in wrong],
        roles=[{"B1": 3}] * 40,
        templates=["one"] * 40,
        corruption="other word",
        metric="logit_diff",
    )
    embed = model.run([[word(0)], [word(1)]], capture=["embed"])["embed"][:, 0]
    return model, task, embed[0] - embed[1]


def test_a_planted_direction_is_recovered(planted):
    model, task, direction = planted
    found = distributed_alignment(model, task, site="L1.resid_pre", role="B1", steps=30, n_random=5, batch_size=12)
    rows = found.rows.set_index("variant")["value"]
    assert (rows["subspace"], rows["whole"], rows["none"], rows["random"]) == (1, 1, 0, 0)
    assert rows["shuffled"] < 0.8
    assert found.rows["p"].iloc[0] < 0.01
    assert float(found.angles(direction)) < 40 < float(found.angles(torch.randn(112)))
    assert_close(found.basis.T @ found.basis, torch.eye(1))
    assert found.losses[-1] < 0.1 * found.losses[0]
    assert found.provenance["method"] == "alignment-search"
    assert len(found.plot().data) >= 1
    base, source = torch.randn(3, 112), torch.randn(3, 112)
    assert_close(
        (found.exchange(base, source) - base) @ found.basis, (source - base) @ found.basis, atol=1e-5, rtol=1e-4
    )


def test_at_another_token_nothing_is_found(planted):
    model, task, _ = planted
    other = distributed_alignment(model, task, site="L1H7.z", role="B1", rank=2, steps=3, n_random=5)
    assert set(other.rows["value"]) <= {0.0, *other.rows.loc[other.rows["variant"] == "shuffled", "value"]}
    head = distributed_alignment(model, task, site="L1H7.z", rank=3, steps=10, n_random=5)
    assert head.rows["value"].iloc[0] == 1.0
    assert head.basis.shape == (model.info.d_head, 3)


@pytest.mark.slow
def test_a_boundless_width_shrinks_to_what_is_needed(planted):
    model, task, direction = planted
    found = distributed_alignment(
        model, task, site="L1.resid_pre", role="B1", rank=None, steps=150, n_random=5, rate=0.1
    )
    assert found.rank <= 6
    assert found.rows["value"].iloc[0] == 1.0
    assert float(found.angles(direction)) < 30


def test_a_width_that_brings_nothing_is_given_up_at_its_rate(planted):
    """Both runs have the same token at END, so that the cost alone moves the width: by a tenth of the rate a step."""
    model, task, _ = planted
    found = distributed_alignment(
        model, task, site="L0.resid_pre", rank=None, steps=8, rate=0.5, n_random=5, batch_size=12
    )
    assert found.rank == round((0.5 - 8 * 0.05) * 112)
    assert found.rows["rank"].iloc[0] == found.basis.shape[1] == found.rank
    assert found.exchange(torch.zeros(2, 112), torch.ones(2, 112)).shape == (2, 112)
    assert_close(found.angles(found.basis[:, :2].T), torch.zeros(2), atol=0.1, rtol=0)
    assert found.rows.set_index("variant")["value"][["subspace", "whole", "none"]].eq(0).all()


def test_an_exchange_is_a_projection_of_the_difference():
    base, source = torch.randn(4, 7), torch.randn(4, 7)
    basis = torch.linalg.qr(torch.randn(7, 3)).Q
    expected = torch.stack([b + basis @ (basis.T @ (s - b)) for b, s in zip(base, source, strict=True)])
    assert_close(exchanged(base, source, basis), expected, atol=1e-5, rtol=1e-5)
    assert_close(exchanged(base, source, torch.linalg.qr(torch.randn(7, 7)).Q), source, atol=1e-5, rtol=1e-5)
    half = exchanged(base, source, basis, torch.tensor([1.0, 0.0, 0.0]))
    assert_close(half, exchanged(base, source, basis[:, :1]), atol=1e-5, rtol=1e-5)


def test_refusals(planted):
    model, task, _ = planted
    for site, message in (("resid_post", "one layer"), ("L0.z", "one head"), ("L0.pattern", "inside a layer")):
        with pytest.raises(SiteError, match=message):
            distributed_alignment(model, task, site=site)
    with pytest.raises(SchemaError, match="1 to 112"):
        distributed_alignment(model, task, site="L0.resid_post", rank=113)
    with pytest.raises(SchemaError, match="one side empty"):
        distributed_alignment(model, task, site="L0.resid_post", held_out=1.0)
    with pytest.raises(TaskError, match="too few"):
        distributed_alignment(model, task, site="L0.resid_post", n_random=1)
    with pytest.raises(TaskError, match="a task is a PromptTask"):
        distributed_alignment(tiny("gpt2"), np.zeros(3), site="L0.resid_post")


def test_a_direction_is_sought_within_the_columns_given(planted):
    model, task, direction = planted
    other = torch.randn(112, generator=torch.Generator().manual_seed(0))
    within = torch.linalg.qr(torch.stack([direction, other], 1)).Q
    found = distributed_alignment(model, task, site="L1.resid_pre", role="B1", steps=8, n_random=5, within=within)
    assert_close(within @ (within.T @ found.basis), found.basis, atol=1e-5, rtol=1e-5)
    assert found.rows["value"].iloc[0] == 1
    for columns, message in ((torch.eye(3), "columns of 112"), (2 * within, "not orthonormal")):
        with pytest.raises(SchemaError, match=message):
            distributed_alignment(model, task, site="L1.resid_pre", within=columns)
    with pytest.raises(SchemaError, match="1 to 2"):
        distributed_alignment(model, task, site="L1.resid_pre", rank=3, within=within)


def test_the_span_of_differences_leaves_out_what_hardly_differs():
    generator = torch.Generator().manual_seed(0)
    base, axes = torch.randn(20, 6, generator=generator), torch.eye(6)
    size = torch.randn(20, 3, generator=generator) * torch.tensor([10.0, 3.0, 0.01])
    span = difference_span(base + size @ axes[:3], base)
    assert span.shape == (6, 2)
    assert_close(span @ (span.T @ axes[:2].T), axes[:2].T, atol=1e-2, rtol=0)
    assert difference_span(base, base).shape[1] == 0
