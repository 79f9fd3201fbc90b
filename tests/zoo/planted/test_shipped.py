"""The planted model does what its weights were written to do, and nothing else does it."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from interp.zoo.planted.shipped import N_HEADS, N_WORDS, Subspaces, expected_scores, planted_induction
from interp.zoo.trained.measure import head_scores, patterns, repeated_tokens, second_copy_scores, zeroed

PERIODS = (16, 32, 60)
ROLE_SCORE = {"previous_token": "previous", "induction": "induction"}


def sequences(*, period: int, batch: int = 16):
    generator = torch.Generator().manual_seed(period)
    return repeated_tokens(batch=batch, period=period, repeats=2, n_words=N_WORDS, generator=generator)


@pytest.fixture(scope="module", params=[0, 1, 2], ids=lambda seed: f"seed{seed}")
def planted(request):
    return planted_induction(seed=request.param)


@pytest.mark.parametrize("period", PERIODS)
def test_planted_heads_score_as_derived_and_no_other_head_does(planted, period):
    model, _, truth = planted
    scores = head_scores(model, sequences(period=period), period=period)
    expected = expected_scores(period=period)
    for role, ((layer, head),) in truth.roles.items():
        values = scores[ROLE_SCORE[role]].clone()
        assert values[layer, head] >= 0.99
        assert_close(values[layer, head].item(), expected[role], atol=5e-3, rtol=0)
        values[layer, head] = 0.0
        assert values.max() <= 0.08
    assert scores["duplicate"].max() <= 0.08
    assert scores["first"].max() <= 0.12


def test_expected_scores_are_those_of_the_stated_length(planted):
    model, _, truth = planted
    scores = head_scores(model, sequences(period=32), period=32)
    for role, ((layer, head),) in truth.roles.items():
        measured = scores[ROLE_SCORE[role]][layer, head].item()
        assert_close(measured, truth.expected[role], atol=5e-3, rtol=0)


def test_other_heads_are_near_uniform_but_depend_on_content(planted):
    model, _, truth = planted
    tokens = sequences(period=32)
    pattern = patterns(model, tokens)[..., -1, :]  # layer batch head key
    named = [place for places in truth.roles.values() for place in places]
    for layer in range(2):
        for head in range(N_HEADS):
            if (layer, head) in named:
                continue
            row = pattern[layer, :, head]
            assert row.max() <= 0.25
            assert row.std(dim=0).mean() >= 1e-3  # over the batch: other words, other weights


def test_induction_head_is_diffuse_on_the_first_copy(planted):
    model, _, truth = planted
    ((layer, head),) = truth.roles["induction"]
    row = patterns(model, sequences(period=60))[layer, :, head, 60]
    assert row.max() <= 0.25
    assert row[:, 0].mean() <= 0.05


@pytest.mark.parametrize("period", PERIODS)
def test_second_copy_is_predicted(planted, period):
    copy = second_copy_scores(planted[0], sequences(period=period), period=period)
    assert copy["accuracy"] >= 0.97
    assert copy["loss"] <= 0.05


def test_only_the_planted_heads_matter(planted):
    model, _, truth = planted
    tokens = sequences(period=32, batch=4)
    clean = second_copy_scores(model, tokens, period=32)["accuracy"]
    named = {place for places in truth.roles.values() for place in places}
    for layer in range(2):
        for head in range(N_HEADS):
            with zeroed(model, [(layer, head)]):
                accuracy = second_copy_scores(model, tokens, period=32)["accuracy"]
            if (layer, head) in named:
                assert accuracy < 0.1
            else:
                assert_close(accuracy, clean, atol=0.02, rtol=0)


def test_zeroing_leaves_the_model_as_it_was(planted):
    model = planted[0]
    tokens = sequences(period=16)
    before = model(tokens).logits
    with zeroed(model, [(0, 0), (1, 1)]):
        pass
    assert_close(model(tokens).logits, before, rtol=0, atol=0)


def test_same_seed_same_bytes_and_the_global_generator_is_untouched():
    state = torch.random.get_rng_state()
    first, second = planted_induction(seed=3)[0], planted_induction(seed=3)[0]
    assert_close(torch.random.get_rng_state(), state, rtol=0, atol=0)
    other = planted_induction(seed=4)[0].state_dict()
    for name, weight in first.state_dict().items():
        assert_close(second.state_dict()[name], weight, rtol=0, atol=0)
    q_proj = "model.layers.0.self_attn.q_proj.weight"
    assert (other[q_proj] - first.state_dict()[q_proj]).abs().max() > 0.1


def test_seed_draws_the_places():
    places = {str(planted_induction(seed=seed)[2].roles) for seed in range(6)}
    assert len(places) >= 4


def test_saved_and_loaded_by_transformers_it_is_the_same_model(planted, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer, _ = planted
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tokens = AutoTokenizer.from_pretrained(tmp_path)("sun moon sun", return_tensors="pt").input_ids
    assert tokens.tolist() == [[0, 4, 5, 4]]
    logits = AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits
    assert_close(logits, model(tokens).logits)
    assert tokenizer.decode(logits[0, -1].argmax()) == "moon"


def test_subspaces_are_disjoint_and_bounded():
    parts = Subspaces(10)
    assert parts.claim("a", 4) == slice(0, 4)
    assert parts.claim("b", 6) == slice(4, 10)
    with pytest.raises(ValueError, match="0 are free"):
        parts.claim("c", 1)
    with pytest.raises(ValueError, match="'a'"):
        Subspaces(10, {"a": slice(0, 1)}).claim("a", 1)
