"""Prompts in chunks of queries, with a cache, give what whole prompts give."""

from __future__ import annotations

import pytest
import torch
from tiny_models import D_MODEL, SIDES, SPANNING, build, questions, ragged, tiny

import interp
from interp.attention import Entropy, Received
from interp.backends.hf import prefill
from interp.edits import Ablate, Add, Apply, KnockOut, Replace, Scale
from interp.errors import BackendError, TaskError

N = 45
KEYS = {"entropy": Entropy(), "received": Received()}


def largest_difference(one, other):
    """Over all answers; NaN have to stand at the same places."""
    assert all(torch.equal(one[name].isnan(), other[name].isnan()) for name in one.values)
    return max(float((one[name] - other[name]).abs().nan_to_num(0).max()) for name in one.values)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", SPANNING)
def test_chunks_are_the_whole(name, side):
    batch, model = ragged(N, side), tiny(name)
    asked = questions(batch)
    whole = model.attention(batch, asked, chunk=N)
    parts = model.attention(batch, asked, chunk=14)
    assert all(parts[n].shape == whole[n].shape and parts[n].dtype == whole[n].dtype for n in asked)
    assert largest_difference(whole, parts) < 5e-5


def test_a_token_at_a_time():
    batch = ragged(14, "left")
    whole, parts = (tiny("gemma2").attention(batch, questions(batch), chunk=chunk) for chunk in (14, 1))
    assert largest_difference(whole, parts) < 5e-5


def test_every_statistic_of_the_oracle():
    batch = ragged(20, "right")
    asked = questions(batch)
    whole, parts = (tiny("llama").attention(batch, asked, chunk=chunk, method="naive") for chunk in (20, 6))
    assert largest_difference(whole, parts) < 5e-5


@pytest.mark.parametrize(
    "edit",
    [
        Ablate("L0H3.z"),
        Scale("L0.mlp_out", 0.5),
        Add("L0.resid_post@-1", 3 * torch.ones(D_MODEL)),
        Add("L1.q", torch.ones(8)),
        Scale("L0.k", 0.5),
        Ablate("L0.attn_out", positions=[3, 11]),
    ],
    ids=str,
)
def test_edits_of_tokens_and_heads(edit):
    batch, model = ragged(N, "left"), tiny("llama")
    whole, parts = (model.attention(batch, KEYS, edits=[edit], chunk=chunk) for chunk in (N, 7))
    assert largest_difference(whole, parts) < 5e-5
    assert largest_difference(whole, model.attention(batch, KEYS)) > 1e-2
    with model.editing([edit]):
        assert largest_difference(whole, model.attention(batch, KEYS, chunk=7)) < 5e-5


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (KnockOut("L0H1.pattern", keys=0), "KnockOut may look at all tokens"),
        (Apply("L0.z", lambda z: z), "Apply may look at all tokens"),
        (Replace("L0.resid_post", torch.zeros(3, N, D_MODEL)), "Replace has a value of each token"),
    ],
)
def test_other_edits_are_refused_and_run_whole_by_themselves(edit, reason, monkeypatch):
    batch, model = ragged(N, "unpadded"), tiny("llama")
    with pytest.raises(BackendError, match=reason):
        model.attention(batch, KEYS, edits=[edit], chunk=7)
    monkeypatch.setattr(prefill, "LARGE", 0)
    model.attention(batch, KEYS, edits=[edit])


@pytest.mark.parametrize("chunk", [0, -1, True, 2.0])
def test_a_chunk_is_a_number_of_tokens(chunk):
    with pytest.raises(TaskError, match="expected a number of tokens"):
        tiny("llama").attention(ragged(N, "unpadded"), KEYS, chunk=chunk)


def test_long_prompts_run_in_chunks_by_themselves_and_no_activation_is_of_all_tokens(monkeypatch):
    model = interp.load(build("gpt2"))
    module, batch = model.torch_module, ragged(600, "unpadded", lengths=(600,))
    whole, widths = model.attention(batch, KEYS), []
    heads = [module.lm_head.register_forward_pre_hook(lambda *_: widths.append(-1))]
    heads += [
        b.mlp.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1])) for b in module.transformer.h
    ]
    monkeypatch.setattr(prefill, "LARGE", 600 * 4 * D_MODEL * 4 - 1)
    monkeypatch.setattr(prefill, "ROOM", 1)
    parts = model.attention(batch, KEYS)
    for handle in heads:
        handle.remove()
    assert widths == [256, 256, 88]
    assert largest_difference(whole, parts) < 5e-5


def test_a_cache_that_keeps_nothing_is_noticed(monkeypatch):
    batch, model = ragged(N, "unpadded"), tiny("gpt2")
    monkeypatch.setattr(prefill.Portion, "inputs", lambda self, batch, inputs: {"use_cache": False})
    with pytest.raises(BackendError, match="its cache has 0"):
        model.attention(batch, KEYS, chunk=7)
