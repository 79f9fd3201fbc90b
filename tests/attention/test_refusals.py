"""What cannot be measured is refused, and the refusal says why."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import (
    CONTEXT,
    D_VOCAB,
    MOST,
    N_HEADS,
    N_LAYERS,
    build,
    make_call,
    ragged,
    tiny,
)

import interp
from interp.attention import Call, CausalMask, Entropy, Recorder, hook, intercept, measure
from interp.batch import Batch
from interp.errors import BackendError, InterpError, ModelLoadError

METHODS = ("fused", "naive")


@pytest.fixture(params=MOST)
def model(request):
    return tiny(request.param)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj"])
@pytest.mark.parametrize(("side", "count"), [("unpadded", "21 of 21"), ("left", "14 of 14")])
def test_not_a_number_is_named_and_counted(side, count, projection, method):
    module = build("llama")
    model = interp.load(module)
    with torch.no_grad():
        getattr(module.model.layers[1].self_attn, projection).weight[5, 3] = torch.nan
    batch = ragged(7, side, lengths=(7, 4, 3))
    with pytest.raises(BackendError, match=rf"^layer 1: .*not finite at {count} tokens"):
        model.attention(batch, {"H": Entropy()}, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_one_bad_query_is_counted_alone(method):
    call = make_call(10, batch=2)
    call.query[1, 0, 6] = torch.nan
    with pytest.raises(BackendError, match=r"1 of 20 tokens \(first at position 6\)"):
        measure(call, {}, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_holes_in_the_padding_are_refused(name, method):
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 4] = False
    batch = Batch(ragged(9, "unpadded", lengths=(9, 9)).ids, mask)
    with pytest.raises(InterpError, match="prompt 1 has padding within it"):
        tiny(name).attention(batch, {"H": Entropy()}, method=method)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_a_dense_mask_is_refused(name):
    module = build(name)
    dense = torch.zeros(1, 1, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    if name == "gemma2":
        dense = {"full_attention": dense, "sliding_attention": dense}
    with pytest.raises(BackendError, match="dense mask of shape"), intercept(module, Recorder()), torch.no_grad():
        module(torch.arange(6)[None], attention_mask=dense, use_cache=False)


SMALL = {"vocab_size": D_VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_an_encoder_without_logits_is_refused():
    config = transformers.BertConfig(**SMALL, intermediate_size=32)
    with pytest.raises(ModelLoadError, match="no output embeddings"):
        interp.load(transformers.BertModel(config))


@pytest.mark.parametrize(
    "predicate", [lambda b, h, q, k: (k <= q) & (k != 3), lambda b, h, q, k: (k < q) | (q + k == 0)]
)
def test_keys_that_are_not_one_run_ending_at_the_query_are_refused(predicate):
    call = make_call(10)
    looking = Call(call.query, call.key, call.value, call.scale, CausalMask(2, 10, 10, predicate=predicate))
    with pytest.raises(BackendError, match="query 9 sees 9 keys that are not one run ending at itself"):
        measure(looking, {}, method="fused")


OUTSIDE = {
    "GPTJForCausalLM": ("GPTJConfig", {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "rotary_dim": 8}),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 1, "n_head": 2}),
}


@pytest.mark.parametrize("family", OUTSIDE)
def test_other_families_are_refused_by_name(family):
    config, options = OUTSIDE[family]
    module = getattr(transformers, family)(getattr(transformers, config)(**options))
    with pytest.raises(ModelLoadError, match=family):
        interp.load(module)
    assert hook._active.get() is None


def test_the_shared_sizes_are_those_of_the_models(model):
    info = model.info
    assert (info.n_layers, info.n_heads, info.d_vocab, info.context) == (N_LAYERS, N_HEADS, D_VOCAB, CONTEXT)


@pytest.mark.parametrize(("name", "refused"), [("sinks", True), ("block_indices", True), ("position_ids", False)])
def test_a_tensor_of_unknown_meaning_is_refused(name, refused):
    """A score may be made with it: attention would be measured without, and be wrong."""
    call = make_call(6, batch=1)
    inputs = (torch.nn.Identity(), call.query, call.key, call.value, None)
    if refused:
        with pytest.raises(BackendError, match=f"makes its scores with '{name}' too"):
            hook.attention(*inputs, is_causal=True, **{name: torch.ones(1, 6)})
    else:
        hook.attention(*inputs, is_causal=True, **{name: torch.arange(6)[None]})
