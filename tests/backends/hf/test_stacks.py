"""Stacks of encoder-decoders: each number is that of transformers' own forward pass, or refused with the reason."""

import logging

import pytest
import torch
import transformers
from torch.testing import assert_close

import interp
from interp.attention import Entropy, KeyMass, SumSquares
from interp.batch import Batch
from interp.decompose import attribute, decompose
from interp.edits import Ablate, KnockOut
from interp.errors import BackendError, ModelLoadError, NotApplicable, SiteError, TaskError
from interp.measurement.checks.backend import random_module

SOURCE, WRITTEN = [5, 9, 7, 33, 21, 8, 2], [0, 11, 12, 13, 14]
ROWS = [[3, 4, 5, 6, 7, 8], [9, 10, 11]]
STACKS = ("encoder", "decoder", "cross")


def t5(**options):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
    config = transformers.T5Config(vocab_size=64, **sizes, decoder_start_token_id=0, **options)
    return random_module(config, scale=1.2)


def bart():
    sizes = {"encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 0}
    config = transformers.BartConfig(vocab_size=64, d_model=32, max_position_embeddings=40, **sizes, **heads)
    return random_module(config, scale=3.0)


MODELS = {"t5": t5, "t5 v1.1": lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False), "bart": bart}
PARTS = {  # self-attention, attention to the source and MLP of a decoder's layer
    "t5": lambda m, i: [m.decoder.block[i].layer[j] for j in range(3)],
    "bart": lambda m, i: [m.model.decoder.layers[i]] * 3,
}


def loaded(module, stack, source=SOURCE):
    return interp.load(module, stack=stack, source_text=None if stack == "encoder" else source)


def own(module, source=SOURCE, written=WRITTEN):
    ids = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([written])}
    with torch.no_grad():
        return module(**ids, output_attentions=True, output_hidden_states=True)


def outputs_of(modules, call):
    """What modules give during a call."""
    wrote = {}
    handles = [
        m.register_forward_hook(lambda _, args, out, kind=kind: wrote.update({kind: out.detach()}))
        for kind, m in modules.items()
    ]
    call()
    for handle in handles:
        handle.remove()
    return wrote


def near(ours, theirs, share=1e-6):
    assert_close(ours, theirs, rtol=0, atol=share * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_those_of_transformers(name, stack):
    module = MODELS[name]()
    model, theirs = loaded(module, stack), own(module)
    kind, ids = ("encoder", SOURCE) if stack == "encoder" else ("decoder", WRITTEN)
    attentions = getattr(theirs, f"{stack}_attentions")
    assert (model.info.stack, model.info.n_layers, model.info.causal) == (stack, len(attentions), stack != "encoder")
    run = model.run(ids, capture=["pattern", "resid_pre"])
    entropy = model.attention(ids, {"H": Entropy()})["H"]
    for i, pattern in enumerate(attentions):
        near(run[f"L{i}.pattern"], pattern)
        near(run[f"L{i}.resid_pre"], getattr(theirs, f"{kind}_hidden_states")[i], 2e-6)
        near(entropy[i], torch.special.entr(pattern).sum(-1), 1e-5)
    if stack != "encoder":
        near(run.logits, theirs.logits, 2e-6)
        assert model.info.source == tuple(SOURCE)
        assert model.bos_id == 0
    resid = model.run(ids, capture=["L1.resid_pre"])["L1.resid_pre"]
    late = model.run(ids, start=(1, resid), capture=["L1.pattern"])
    near(late["L1.pattern"], attentions[1], 2e-6)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_writes_and_ablations_are_those_of_hooks(name):
    module = MODELS[name]()
    outputs = {"t5": ("SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo")}
    paths = outputs.get(name, ("self_attn.out_proj", "encoder_attn.out_proj", "fc2"))
    for at, stack in enumerate(("decoder", "cross")):
        model = loaded(module, stack)
        parts = PARTS[name](module, 1)
        modules = {"attn_out": parts[at].get_submodule(paths[at]), "mlp_out": parts[2].get_submodule(paths[2])}
        wrote = outputs_of(modules, lambda: own(module))
        run = model.run(WRITTEN, capture=["L1.attn_out", "L1.mlp_out", "L1.head_out"])
        for kind, x in wrote.items():
            near(run[f"L1.{kind}"], x, 2e-6)

        def silent(_, args):
            z = args[0].clone()
            z[..., 8:16] = 0
            return (z,)

        handle = parts[at].get_submodule(paths[at]).register_forward_pre_hook(silent)
        theirs = own(module).logits
        handle.remove()
        near(model.run(WRITTEN, edits=[Ablate("L1H1.z")]).logits, theirs, 2e-6)
        near(model.run(WRITTEN, edits=[Ablate("L1H1.head_out")]).logits, theirs, 5e-6)
        assert float((theirs - own(module).logits).abs().max()) > 1e-3


def test_edits_of_the_encoder_hold_where_the_decoder_reads():
    module = t5()
    encoder, decoder = loaded(module, "encoder"), loaded(module, "decoder")

    def no_seven(_, args):
        return (torch.cat([args[0][..., :8], 0 * args[0][..., 8:16], args[0][..., 16:]], -1),)

    handle = module.encoder.block[1].layer[0].SelfAttention.o.register_forward_pre_hook(no_seven)
    theirs = own(module).logits
    handle.remove()
    for edit in (Ablate("L1H1.z"), KnockOut("L1H1.pattern", renormalise=False)):  # behind attention, and inside of it
        with encoder.editing([edit]):
            near(decoder.run(WRITTEN).logits, theirs, 2e-6)
            ours = decoder.run(WRITTEN, capture=["pattern"]).logits
            near(ours, theirs, 2e-6)
    near(decoder.run(WRITTEN).logits, own(module).logits, 2e-6)
    assert float((theirs - own(module).logits).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_keys_of_attention_to_a_source_are_the_source_s(name):
    module = MODELS[name]()
    model = loaded(module, "cross", SOURCE[:5])  # as many tokens as are written
    pattern = own(module, SOURCE[:5]).cross_attentions[1]
    run = model.run(WRITTEN, edits=[KnockOut("L1.pattern", keys=[-1, 0])], capture=["L1.pattern"])
    expected = pattern.clone()
    expected[..., [0, 4]] = 0
    near(run["L1.pattern"], expected / expected.sum(-1, keepdim=True))
    last = torch.zeros(2, 5)
    last[:, 4] = 1.0
    batch = Batch.of([WRITTEN, WRITTEN[:2]])
    asked = {"last": KeyMass(last), "squares": SumSquares()}
    mass, squares = (model.attention(batch, asked)[name][1] for name in asked)
    near(squares[1, :, :2], pattern[0, :, :2].square().sum(-1))
    near(mass[0], pattern[0, :, :, 4])
    near(mass[1, :, :2], pattern[0, :, :2, 4])
    assert mass[1, :, 2:].isnan().all()
    assert squares[1, :, 2:].isnan().all()
    for refusal in ({"capture": ["L0.k"]}, {"edits": [KnockOut("L0.pattern", pairs=[(1, 0)])]}):
        with pytest.raises(SiteError, match="the source's"):
            model.run(WRITTEN, **refusal)


@pytest.mark.parametrize("stack", STACKS)
def test_padded_prompts_are_as_alone_or_refused(stack):
    for name, sides in (("t5", ("left", "right")), ("bart", ("right",))):
        model = loaded(MODELS[name](), stack)
        alone = [model.run([row], capture=["L1.resid_post", "L1.pattern"]) for row in ROWS]
        for side in ("left", "right"):
            batch = Batch.of(ROWS, side=side)
            if side not in sides:
                with pytest.raises(BackendError, match="pad on the right"):
                    model.run(batch)
                continue
            run = model.run(batch, capture=["L1.resid_post", "L1.pattern"])
            for row, (single, real) in enumerate(zip(alone, batch.mask, strict=True)):
                near(run["L1.resid_post"][row, real], single["L1.resid_post"][0], 2e-6)
                pattern = run["L1.pattern"][row][:, real]
                near(pattern if stack == "cross" else pattern[..., real], single["L1.pattern"][0], 2e-6)


@pytest.mark.parametrize("stack", ["decoder", "cross"])
@pytest.mark.parametrize("name", MODELS)
def test_attributions_sum_to_the_logit_with_what_comes_from_the_source(name, stack):
    module = MODELS[name]()
    model = loaded(module, stack)
    parts = attribute(model, WRITTEN, 9)
    near(parts.values.sum(0), own(module).logits[:, -1, 9], 1e-5)
    stream = decompose(model, WRITTEN, position=None)
    near(stream.vectors.sum(0), model.run(WRITTEN, capture=["L2.resid_post"])["L2.resid_post"], 1e-5)
    if name != "bart":  # the rest of a layer is the other attention, in one piece
        other = loaded(module, "cross" if stack == "decoder" else "decoder")
        near(stream["B1"], other.run(WRITTEN, capture=["L1.attn_out"])["L1.attn_out"], 1e-5)


def test_gradients_are_torch_s_own():
    module = t5()
    model = loaded(module, "decoder")
    run = model.run(WRITTEN, capture=["L1.resid_pre", "L2.pattern"], gradients=True)
    ours = torch.autograd.grad(run.logits[0, -1, 5], run["L1.resid_pre"])[0]
    leaf = run["L1.resid_pre"].detach().requires_grad_()
    handle = module.decoder.block[1].register_forward_pre_hook(lambda _, args: (leaf, *args[1:]))
    ids = {"input_ids": torch.tensor([SOURCE]), "decoder_input_ids": torch.tensor([WRITTEN])}
    near(ours, torch.autograd.grad(module(**ids).logits[0, -1, 5], leaf)[0], 1e-5)
    handle.remove()


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_generation_and_other_sources(name):
    module = MODELS[name]()
    model = loaded(module, "decoder", [4, 4])
    assert not torch.allclose(model.run(WRITTEN).logits, own(module).logits)
    model = model.with_source(SOURCE)
    near(model.run(WRITTEN).logits, own(module).logits, 2e-6)
    ids = {"inputs": torch.tensor([SOURCE]), "decoder_input_ids": torch.tensor([WRITTEN])}
    plain = {"max_new_tokens": 5, "do_sample": False, "use_cache": False, "forced_eos_token_id": None}
    expected = module.generate(**ids, **plain)
    for cached in (True, False):
        ours = model.generate(WRITTEN, max_new_tokens=5, use_cache=cached, forced_eos_token_id=None)
        assert torch.equal(ours, expected[:, -ours.shape[1] :])
    cross = loaded(module, "cross")
    edit = [KnockOut("pattern", keys=[0])]
    tokens = cross.generate(WRITTEN, edits=edit, max_new_tokens=3, min_new_tokens=3)
    again = cross.run(tokens[:, :-1], edits=[KnockOut("pattern", keys=[0])]).logits[0, -1].argmax()
    assert int(tokens[0, -1]) == int(again) or name == "bart"  # BART forbids repeats and ends by its configuration


def test_analyses_of_the_encoder_have_nulls_of_attention_both_ways():
    module = t5()
    for block in module.encoder.block:
        block.layer[0].SelfAttention.q.weight.data.zero_()
    module.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data.zero_()
    model = loaded(module, "encoder")
    table = interp.analyze(model, "entropy", n_prompts=4, length=20).table
    assert table[table["variant"] == "focus"]["value"].abs().max() < 1e-5
    for name, reason in {"induction": "queries see later tokens too", "copying": "an encoder gives none"}.items():
        with pytest.raises(NotApplicable, match=reason):
            interp.analyze(model, name)


def test_the_decoder_s_heads_are_labelled_and_its_source_is_kept():
    result = interp.analyze(loaded(t5(), "decoder"), "previous_token")
    assert list(result.provenance["model"]["source"]) == SOURCE
    assert len(result.table) >= 12


def test_refusals():
    module = t5()
    encoder, decoder, cross = (loaded(module, stack) for stack in STACKS)
    run = encoder.run(SOURCE)
    for call in (
        lambda: run.logits,
        lambda: attribute(encoder, SOURCE, 3),
        lambda: interp.analyze(cross, "entropy"),
        lambda: encoder.weights().b_u,
    ):
        with pytest.raises(NotApplicable, match="gives no logits|among a prompt's own tokens"):
            call()
    with pytest.raises(BackendError, match="writes no tokens"):
        encoder.generate(SOURCE)
    with pytest.raises(SiteError, match="gives no logits"):
        encoder.run(SOURCE, capture=["logits"])
    with pytest.raises(BackendError, match="bias of position"):
        encoder.weights().rotation(0, 1)
    with pytest.raises(BackendError, match="reads something else"):
        _ = cross.weights()[0]
    with decoder.editing([Ablate("L0.z")]), pytest.raises(BackendError, match="edits of the same weights stand"):
        cross.run(WRITTEN)
    with pytest.raises(BackendError, match="reads no source"):
        encoder.with_source(SOURCE)
    with pytest.raises(TaskError, match="one source text"):
        decoder.with_source([SOURCE, SOURCE])
    with pytest.raises(TaskError, match="outside the vocabulary"):
        decoder.with_source([64])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stack": "decoder"}, "source_text="),
        ({"stack": "encode", "source_text": None}, "did you mean 'encoder'"),
        ({"stack": "encoder", "source_text": SOURCE}, "takes its source as the prompt"),
        ({"stack": "encoder", "backend": "lens"}, "runs no stack"),
    ],
)
def test_what_cannot_be_loaded(options, message):
    with pytest.raises(ModelLoadError, match=message):
        interp.load(t5(), **options)


def test_other_sources_than_text_and_models_without_stacks():
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ends = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = transformers.WhisperConfig(vocab_size=64, d_model=16, **sizes, **ends, encoder_ffn_dim=16)
    with pytest.raises(ModelLoadError, match="reads 'input_features' and no token ids"):
        interp.load(transformers.WhisperForConditionalGeneration(config))
    with pytest.raises(ModelLoadError, match="is no encoder-decoder"):
        interp.load("zoo:planted-induction", stack="decoder")


def test_a_folder_is_its_encoder_and_says_so(tmp_path, caplog):
    module = t5()
    module.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="interp"):
        model = interp.load(tmp_path)
    assert "its encoder is loaded" in caplog.text
    assert "encoder stack" in repr(model)
    near(model.run(SOURCE, stop=1, capture=["L1.resid_pre"])["L1.resid_pre"], own(module).encoder_hidden_states[1])
    decoder = interp.load(tmp_path, source_text=SOURCE)
    assert decoder.info.stack == "decoder"
    near(decoder.run(WRITTEN).logits, own(module).logits, 2e-6)
