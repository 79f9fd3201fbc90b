"""Identities that hold for any attention, and that looking leaves no trace."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import (
    ARCHITECTURES,
    CONTEXT,
    D_VOCAB,
    N_HEADS,
    N_LAYERS,
    VARIANTS,
    build,
    first_token,
    make_call,
    padding,
    questions,
    ragged,
    tiny,
)
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import interp
from interp.attention import (
    Call,
    CausalMask,
    Distance,
    Entropy,
    KeyMass,
    Mean,
    Offset,
    Pairs,
    Received,
    Recorder,
    Rows,
    SumSquares,
    TopKeys,
    fused,
    hook,
    intercept,
    measure,
)
from interp.batch import Batch
from interp.edits import Ablate
from interp.errors import BackendError, InterpError, ModelLoadError
from interp.sites import Site

METHODS = ("fused", "naive")


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny(request.param)


def everything(batch):
    return torch.ones(batch.ids.shape)


# --- rows and columns of one pattern -----------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["unpadded", "left"])
def test_rows_sum_to_one_or_to_what_the_sink_leaves(model, side):
    batch = ragged(40, side)
    asked = {"mass": KeyMass(everything(batch))} | {str(d): Offset(d) for d in range(40)}
    answers = model.attention(batch, asked)
    mass = answers["mass"]
    real = batch.mask[None, :, None].expand_as(mass)
    assert mass[~real].isnan().all()
    if model.info.sink_logits:
        assert mass[real].max() <= 1 + 1e-6
        assert mass[real].mean() < 0.95
    else:
        assert_close(mass[real], torch.ones_like(mass[real]), atol=1e-5, rtol=0)
    over_offsets = torch.stack([answers[str(d)] for d in range(40)]).nansum(0)
    assert_close(over_offsets[real], mass[real], atol=1e-5, rtol=0)


def test_the_sink_slot_of_a_model_takes_its_share():
    model, batch = tiny("gpt_oss"), ragged(5, "unpadded")
    acts = model.run(batch, capture=["q", "k"]).acts
    mass = model.attention(batch, {"mass": KeyMass(everything(batch))})["mass"]
    for layer, part in enumerate(model.anatomy.attention):
        q, k = acts[Site("q", layer)][:, 0], acts[Site("k", layer)][:, 0].repeat_interleave(4, dim=1)
        odds = ((q * k).sum(-1) * part.module.scaling - part.module.sinks).exp()  # of itself against the slot
        assert_close(mass[layer, :, :, 0], odds / (1 + odds), atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", ["unpadded", "right"])
def test_what_keys_receive_is_what_queries_give(model, side):
    batch = ragged(40, side)
    received = model.attention(batch, {"received": Received(), "mass": KeyMass(everything(batch))})
    given = received["mass"].nansum(-1)
    assert_close(received["received"].nansum(-1), given, atol=2e-4, rtol=0)
    if not model.info.sink_logits:
        assert_close(given, batch.mask.sum(1).float()[None, :, None].expand_as(given), atol=2e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sink_share_completes_the_row(variant, method):
    call = make_call(40, **VARIANTS[variant], dtype=torch.float64)
    ones = torch.ones(2, 40, dtype=torch.float64)
    mass = measure(call, {"mass": KeyMass(ones)}, method=method)[1]["mass"]
    keys = call.key.repeat_interleave(2, dim=1)
    score = call.scale * call.query @ keys.mT
    if call.softcap is not None:
        score = call.softcap * torch.tanh(score / call.softcap)
    i, j = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    seen = (j <= i) & (j > i - VARIANTS[variant].get("width", 40))
    weight = score.exp().masked_fill(~seen, 0.0).sum(-1)
    slot = 0.0 if call.sinks is None else call.sinks.exp()[None, :, None]
    assert_close(mass, (weight / (weight + slot)).to(mass.dtype), atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("width", [None, 5])
def test_uniform_rows(method, width):
    call = make_call(20, width=width)
    call = Call(torch.zeros_like(call.query), call.key, call.value, call.scale, call.mask)
    asked = {"H": Entropy(), "squares": SumSquares(), "distance": Distance(), "same": Offset(0)}
    answers = measure(call, asked, method=method)[1]
    keys = torch.arange(1, 21).clamp(max=width or 20).double()  # how many each query sees
    expected = {"H": keys.log(), "squares": 1 / keys, "distance": (keys - 1) / 2, "same": 1 / keys}
    for name, value in expected.items():
        assert_close(answers[name].double(), value.expand(2, 4, 20), atol=2e-6, rtol=0, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_one_hot_rows(method):
    n = 12
    identity = torch.eye(n).expand(1, 2, n, n)
    call = Call(
        200 * identity.roll(1, dims=-2), identity, identity, 1.0, CausalMask(1, n, n)
    )  # query i wants key i - 1
    asked = {"H": Entropy(), "squares": SumSquares(), "previous": Offset(1), "distance": Distance()}
    answers = {k: v[..., 1:] for k, v in measure(call, asked, method=method)[1].items()}
    one = torch.ones(1, 2, n - 1)
    assert_close(answers["H"], 0 * one, atol=1e-4, rtol=0)
    for name in ("squares", "previous", "distance"):
        assert_close(answers[name], one, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_sum_of_squares_and_entropy_bound_each_other(model, method):
    batch = ragged(40, "left")
    answers = model.attention(batch, {"squares": SumSquares(), "H": Entropy(), "mass": KeyMass(everything(batch))})
    real = batch.mask[None, :, None].expand_as(answers["H"])
    squares, entropy, mass = (answers[k][real].double() for k in ("squares", "H", "mass"))
    n_seen = (batch.positions + 1).double()[None, :, None].expand_as(real)[real]
    assert (squares <= mass**2 + 1e-5).all()
    assert (squares >= mass**2 / n_seen - 1e-6).all()
    assert (entropy >= -1e-5).all()
    assert (entropy <= (n_seen + model.info.sink_logits).log() + 1e-5).all()
    if not model.info.sink_logits:
        assert (squares >= (-entropy).exp() - 1e-5).all()  # Renyi-2 entropy is at most Shannon's


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_queries_after_a_cache_are_the_last_rows_of_the_whole(variant, method):
    n, cached = 40, 25
    whole = make_call(n, **VARIANTS[variant])
    mask = CausalMask(2, n - cached, n, predicate=whole.mask.predicate, offset=cached)
    tail = Call(whole.query[:, :, cached:], whole.key, whole.value, whole.scale, mask, whole.softcap, whole.sinks)
    half = torch.rand(2, n) < 0.5
    weight = torch.rand(2, n)
    weight[:, :cached] = 0
    rows = torch.tensor([[cached, n - 1], [cached + 3, -1]])
    b, i, j = torch.tensor([[0, 30, 28], [1, 39, 35], [1, 39, 30]]).T
    asked = {
        "H": Entropy(),
        "near": Offset(1),
        "far": Offset(30),
        "half": KeyMass(half),
        "distance": Distance(),
        "squares": SumSquares(),
    }
    of_whole = asked | {"pairs": Pairs(b, i, j), "received": Received(weight), "top": TopKeys(rows, k=2)}
    shifted = torch.where(rows < 0, rows, rows - cached)
    of_tail = asked | {
        "pairs": Pairs(b, i - cached, j),
        "received": Received(weight[:, cached:]),
        "top": TopKeys(shifted, k=2),
    }
    expected, got = measure(whole, of_whole, method="naive")[1], measure(tail, of_tail, method=method)[1]
    for name, value in got.items():
        want = expected[name] if name in ("received", "top") else expected[name][..., cached:]
        assert_close(value, want, atol=1e-5, rtol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


# --- padding, batching -------------------------------------------------------------------------------------------


def table(model, batch):
    """[layer, prompt, head, column]: averages over each prompt's real rows."""
    asked = {
        "previous": Mean(Offset(1)),
        "stripe": Mean(Offset(7)),
        "first": Mean(KeyMass(first_token(batch))),
        "entropy": Mean(Entropy()),
        "squares": Mean(SumSquares()),
        "distance": Mean(Distance()),
    }
    answers = model.attention(batch, asked)
    return torch.stack([answers[name] for name in asked], dim=-1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side):
    batch = ragged(45, side, lengths=(45, 30, 9, 30))
    alone = [table(model, Batch.of(row[real][None])) for row, real in zip(batch.ids, batch.mask, strict=True)]
    assert_close(table(model, batch), torch.cat(alone, dim=1), atol=2e-5, rtol=0)


def test_batch_order_and_size_change_nothing(model):
    batch = ragged(30, "unpadded", lengths=(30,) * 5)
    whole = table(model, batch)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_close(table(model, Batch.of(batch.ids[order])), whole[:, order], atol=1e-5, rtol=0)
    parts = [table(model, Batch.of(part)) for part in batch.ids.split(2)]
    assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)


def test_later_tokens_change_nothing(model):
    batch = ragged(30, "unpadded")
    other = Batch.of(torch.cat([batch.ids[:, :20], batch.ids[:, 20:].flip(1)], dim=1))
    asked = {"H": Entropy(), "previous": Offset(1)}
    before, after = model.attention(batch, asked), model.attention(other, asked)
    for name in asked:
        assert_close(before[name][..., :20], after[name][..., :20], atol=1e-5, rtol=0, equal_nan=True)


# --- nothing is left behind --------------------------------------------------------------------------------------


def snapshot(module):
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "modes": {name: m.training for name, m in module.named_modules()},
        "gradients": {name: (p.requires_grad, p.grad is None) for name, p in module.named_parameters()},
        "attention": {
            n: m.config._attn_implementation
            for n, m in module.named_modules()
            if isinstance(m, transformers.PreTrainedModel)
        },
        "config": module.config.to_dict(),
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in module.named_modules()},
    }


def assert_unchanged(module, before):
    after = snapshot(module)
    weights, earlier = after.pop("weights"), before["weights"]
    assert list(weights) == list(earlier)
    for name, value in weights.items():
        assert_close(value, earlier[name], atol=0, rtol=0, msg=name)
    assert after == {k: v for k, v in before.items() if k != "weights"}
    assert hook._active.get() is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_run_leaves_the_model_as_it_was(name):
    module = build(name)
    module.train()
    next(m for n, m in module.named_modules() if n.endswith("1")).eval()
    before = snapshot(module)
    model = interp.load(module)
    assert_unchanged(module, before)
    batch = ragged(12, "left", lengths=(12, 5))
    model.run(batch, capture=["q", "z"], edits=[Ablate(Site("z", 0, head=1))])
    model.attention(batch, questions(batch), layers=[0])
    model.mean(batch)
    model.ov_circuits()
    assert_unchanged(module, before)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_exception_inside_leaves_the_model_as_it_was(name):
    module = build(name).train()
    model = interp.load(module)
    before = snapshot(module)
    with pytest.raises(RuntimeError, match="shape|size"):
        model.run(ragged(12, "unpadded"), edits=[Ablate(Site("z", 1, head=0), "mean", torch.zeros(999))])
    assert_unchanged(module, before)
    with pytest.raises(BackendError, match="unknown attention method 'fusd'.*'fused'"):
        model.attention(ragged(12, "unpadded"), {"H": Entropy()}, method="fusd")
    assert_unchanged(module, before)

    def explode(part, args):
        raise KeyboardInterrupt

    handle = model.anatomy.attention[1].module.register_forward_pre_hook(explode)
    for look in (
        model.run,
        model.mean,
        lambda ids: model.attention(ids, {"H": Entropy()}),
        lambda _: interp.load(module),
    ):
        with pytest.raises(KeyboardInterrupt):
            look(torch.arange(3, 9)[None])
    handle.remove()
    assert_unchanged(module, before)


def test_the_eager_model_computes_the_same_bits_after_a_run():
    module = build("llama")
    ids = ragged(20, "unpadded").ids
    with torch.no_grad():
        before = module(ids, use_cache=False).logits
        interp.load(module).attention(ids, {"H": Entropy()})
        assert_close(module(ids, use_cache=False).logits, before, atol=0, rtol=0)


# --- memory ------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation inside has produced."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                held = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, held)
        return out


def long_questions(n):
    i = torch.arange(1, n)
    indicator = torch.zeros(1, n, dtype=torch.bool)
    indicator[:, :3] = True
    half = (torch.arange(n) % 2)[None].float()
    rows = torch.arange(n - 8, n)[None]
    return {
        "offset": Offset(1),
        "pairs": Pairs(0 * i, i, i - 1),
        "few keys": KeyMass(indicator),
        "many keys": KeyMass(half),
        "distance": Distance(),
        "entropy": Entropy(),
        "squares": SumSquares(),
        "received": Received(),
        "rows": Rows(rows),
        "top": TopKeys(rows, k=2),
        "mean": Mean(Offset(3)),
    }


def largest(n, question, *, method, **variant):
    call = make_call(n, batch=1, heads=2, kv_heads=1, **variant)
    with Largest() as seen:
        measure(call, {"it": question}, method=method)
    return seen.elements


@pytest.mark.parametrize("variant", [*VARIANTS, "padded"])
@pytest.mark.parametrize("name", long_questions(16))
def test_no_square_tensor_is_made(name, variant):
    n = 3000
    options = VARIANTS.get(variant, {"real": padding(n, (n - 100,), "left")})
    assert largest(n, long_questions(n)[name], method="fused", **options) < max(n * n // 4, 2)


@pytest.mark.parametrize("name", long_questions(16))
def test_memory_is_linear(name):
    small, large = (largest(n, long_questions(n)[name], method="fused") for n in (3000, 6000))
    assert large <= 2.1 * small  # tiles begin at multiples of 256, so not exactly 2
    assert fused.PAIR_CHUNK < 3000**2


def test_the_measure_of_memory_sees_a_dense_pattern():
    assert largest(1000, Offset(1), method="naive") >= 1000**2


# --- what cannot be measured is refused --------------------------------------------------------------------------


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
    with pytest.raises(InterpError, match="padding inside the prompt"):
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


@pytest.mark.parametrize("cls", ["BertModel", "BertForMaskedLM"])
def test_an_encoder_is_refused(cls):
    config = transformers.BertConfig(**SMALL, intermediate_size=32)
    with pytest.raises(ModelLoadError, match="not causal|not a causal decoder"):
        interp.load(getattr(transformers, cls)(config))


def test_a_predicate_that_looks_ahead_is_refused():
    def ahead(batch, head, query, key):
        return key <= query + 1

    call = make_call(10)
    looking = CausalMask(2, 10, 10, predicate=ahead)
    with pytest.raises(BackendError, match="query 0 may see key 1.*not causal"):
        measure(Call(call.query, call.key, call.value, call.scale, looking), {}, method="fused")


OUTSIDE = {
    "GPTJForCausalLM": ("GPTJConfig", {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "rotary_dim": 8}),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 1, "n_head": 2}),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    ),
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
