"""First-token sinks: the closed form of uniform attention, for every variant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_allclose, assert_array_equal
from probe_cases import blind, column, variant
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

import interp
from interp import tasks
from interp.errors import TaskError


def test_uniform_attention_has_the_closed_form_in_every_variant():
    model, n, length = blind(), 4, 32
    found = interp.analyze(model, "sink", n_prompts=n, length=length, seed=1)
    # alpha_k: what a key gets, 1/i of every query i >= k, over the queries that see it
    alpha = np.array([(1 / np.arange(k, length + 1)).sum() / (length - k + 1) for k in range(1, length + 1)])
    assert 0.1 < alpha[0] < 0.2
    for name in ("first_token", "first_token_without_bos"):
        assert_allclose(column(found, name), alpha[0], rtol=1e-5)
        assert_allclose(column(found, name, "null"), alpha[0], rtol=1e-12)
    for epsilon, share in ((0.1, 1), (0.2, 0), (0.3, 0), (0.5, 0)):
        assert_array_equal(column(found, f"rate_{epsilon}"), share)
    assert_allclose(column(found, "strongest_elsewhere"), alpha[1:].max(), rtol=1e-5)
    assert_array_equal(column(found, "strongest_elsewhere", "position"), 1)
    assert not variant(found, "first_token")["label"].any()
    assert (
        column(found, "first_token", "p") > 0.99
    ).all()  # no more over its uniform value than other keys over theirs

    batch = tasks.random_prompts(model, n=n, length=length, bos="default", seed=1)
    for layer in range(model.info.n_layers):
        norms = model.run(batch, capture=[f"L{layer}.v"])[f"L{layer}.v"].norm(dim=-1).double().numpy()
        ratio = (norms[:, 0] / np.sort(norms[:, 1:], axis=1)[:, (length - 2) // 2]).mean(0)
        rows = variant(found, "value_norm_ratio")
        group = model.info.n_heads // model.info.n_kv_heads
        assert_allclose(rows.loc[rows["layer"] == layer, "value"], np.repeat(ratio, group), rtol=1e-5)


def bos_sink(*, hidden=True):
    """A GPT-2 whose L0H0 keeps to the token 0, wherever it stands, and a tokenizer that knows it as BOS."""
    config = transformers.GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=8, n_positions=64)
    torch.manual_seed(0)
    module = transformers.GPT2LMHeadModel(config)
    along = torch.zeros(64)
    along[0], along[1] = 1, -1
    for table in (module.transformer.wte, module.transformer.wpe):
        table.weight.data[:, 1] = table.weight.data[:, 0]  # nothing along it
    module.transformer.wte.weight.data[0] = 3 * along
    attention = module.transformer.h[0].attn.c_attn
    attention.weight.data[:, :8] = 0
    attention.bias.data[:8] = 1.0  # the query, whatever the token
    attention.weight.data[:, 64:72] = along[:, None] * 0.16  # the key: 0.9 a channel at token 0, else nothing
    words = WordLevel({"<bos>": 0, **{f"w{i}": i for i in range(1, 64)}}, unk_token="w1")
    raw = Tokenizer(words)
    raw.pre_tokenizer = Whitespace()
    if not hidden:
        raw.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return interp.load(module, tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>"))


@pytest.mark.parametrize("hidden", [True, False])
def test_a_sink_on_a_bos_that_the_tokenizer_does_not_add(hidden):
    """Both starts are measured; each head is judged by its stronger one, at twice its p."""
    model = bos_sink(hidden=hidden)
    assert tasks.bos_id(model, "default") == (None if hidden else 0)
    found, forced, none = (
        interp.analyze(model, "sink", n_prompts=8, length=40, bos=b) for b in (None, "forced", "none")
    )
    first = variant(found, "first_token")
    assert list(first.index[first["label"].astype(bool)]) == ["L0H0"]
    assert first["value"]["L0H0"] > 0.6
    assert first["q"]["L0H0"] < 0.01
    assert first["bos"]["L0H0"]
    assert variant(found, "first_token_without_bos")["value"]["L0H0"] < 0.2
    assert not variant(none, "first_token")["label"].any()
    for name, alone in (("first_token_with_bos", forced), ("first_token_without_bos", none)):
        assert_allclose(column(found, name), column(alone, "first_token"), rtol=1e-6)

    behind = first["bos"].to_numpy(bool)
    assert_array_equal(behind, column(forced, "first_token") >= column(none, "first_token"))
    assert 0 < behind.sum() < len(behind)
    for name in ("first_token", "rate_0.1", "value_norm_ratio", "strongest_elsewhere"):
        assert_array_equal(variant(found, name)["bos"].to_numpy(bool), behind)
        alone = np.where(behind, column(forced, name), column(none, name))
        assert_allclose(column(found, name), alone, rtol=1e-6, err_msg=name)
    p = np.where(behind, column(forced, "first_token", "p"), column(none, "first_token", "p"))
    assert_allclose(column(found, "first_token", "p"), np.minimum(1, 2 * p), rtol=1e-6)
    assert found.provenance["data"]["heads_judged_behind_bos"] == behind.sum()


def test_a_start_that_is_given_is_the_only_one():
    model = bos_sink()
    assert "first_token_with_bos" not in set(interp.analyze(model, "sink", n_prompts=4, bos="none").table["variant"])
    by_name = interp.detect(model, "sink", bos="default")
    assert by_name.provenance["data"]["bos"] == "default"
    assert not variant(by_name, "first_token")["bos"].any()
    with pytest.raises(TaskError, match="unknown BOS policy 'front'; did you mean|valid choices"):
        interp.detect(model, "sink", bos="front")
    with pytest.raises(TaskError, match="this model has no BOS token"):
        interp.detect(blind(), "sink", bos="forced")
