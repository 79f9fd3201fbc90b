"""A Llama with ReLU attention: its own weights are captured and measured, and nothing takes it for a softmax."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import interp
from interp.attention import Entropy, KeyMass, Mean, Received
from interp.batch import Batch
from interp.edits import KnockOut
from interp.errors import BackendError, NotApplicable
from interp.zoo.relu_llama import ReluLlamaConfig, ReluLlamaForCausalLM

N = 12


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    made = ReluLlamaForCausalLM(
        ReluLlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=24, max_position_embeddings=32, **sizes)
    )
    for parameter in made.parameters():
        parameter.data.mul_(8 if parameter.ndim > 1 else 1)
    return made.eval()


@pytest.fixture(scope="module")
def model(module):
    return interp.load(module)


@pytest.fixture(scope="module")
def batch():
    ids = torch.randint(40, (2, N), generator=torch.Generator().manual_seed(0)).tolist()
    return Batch.of([ids[0], ids[1][:7]])


def test_weights_are_the_relu_of_scores(model, module, batch):
    run = model.run(batch, capture=["q", "k", "v", "z", "scores", "pattern"])
    for layer in range(2):
        q, k, v, z, scores, pattern = (
            run[f"L{layer}.{kind}"] for kind in ("q", "k", "v", "z", "scores", "pattern")
        )  # fmt: skip
        k, v = (x.repeat_interleave(2, dim=2) for x in (k, v))
        score = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
        visible = torch.ones(N, N, dtype=torch.bool).tril() & batch.mask[:, None, None] & batch.mask[:, None, :, None]
        expected = torch.where(visible, score.clamp(min=0), 0.0)
        real = batch.mask[:, None, :, None].expand(pattern.shape)
        assert_close(pattern[real], expected[real])
        assert_close(scores[visible.expand(scores.shape)], score[visible.expand(score.shape)])
        assert_close(torch.einsum("bhqk,bkhd->bqhd", pattern, v)[batch.mask], z[batch.mask])
        assert (pattern.sum(-1)[:, :, 1:7] != 1).all()
    plain = module(batch.ids[:1], use_cache=False, output_attentions=True)
    assert_close(plain.logits[0], run.logits[0])
    assert_close(plain.attentions[1][0], run["L1.pattern"][0])


def test_statistics_are_of_these_weights_or_refused(model, batch):
    pattern = model.run(batch, capture=["pattern"])["L1.pattern"]
    first = torch.nn.functional.one_hot(batch.first, N).bool()
    asked = {"first": Mean(KeyMass(first), batch.mask), "received": Received()}
    found = model.attention(batch, asked)
    assert_close(found["first"][1, 0], pattern[0, :, :, 0].mean(-1))
    assert_close(found["received"][1, 0], pattern[0].sum(1))
    with pytest.raises(NotApplicable, match="ReLU of scores, so that rows do not sum to one"):
        model.attention(batch, {"entropy": Entropy()})
    with pytest.raises(BackendError, match="ReLU of scores, which no fused kernel does"):
        model.attention(batch, {"received": Received()}, method="fused")
    assert model.info.softmax_share == 0
    assert "without a softmax" in model.info.facts["Attention weights"]


def test_a_key_that_is_knocked_out_leaves_the_others_as_they_were(model, batch):
    plain = model.run(batch, capture=["L1.pattern"])["L1.pattern"]
    edit = KnockOut("L1H2.pattern", queries=-1, keys=0, renormalise=True)
    cut = model.run(batch, capture=["L1.pattern"], edits=[edit])["L1.pattern"]
    expected = plain.clone()
    expected[0, 2, N - 1, 0] = expected[1, 2, 6, 0] = 0.0
    real = batch.mask[:, None, :, None].expand(cut.shape)
    assert_close(cut[real], expected[real])


def test_it_comes_in_again_and_never_as_a_softmax(module, model, batch, tmp_path):
    module.save_pretrained(tmp_path)
    again = interp.load(tmp_path)
    assert again.info.family == "ReluLlamaForCausalLM"
    assert_close(again.run(batch).logits, model.run(batch).logits)
    with pytest.raises(ValueError, match="scaled_dot_product_attention|sdpa"):
        module.set_attn_implementation("sdpa")
