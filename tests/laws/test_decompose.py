"""The stream is the sum of what was written, a logit the sum of what it was given, the last lens the model."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import ARCHITECTURES, N_HEADS, N_LAYERS, build, ragged, tiny
from tolerance import assert_equal_to_rounding
from torch.testing import assert_close

import interp
from interp.backends.hf.read_norms import read_norm
from interp.decompose import attribute, decompose, logit_lens, read_out
from interp.decompose.head import read_head
from interp.errors import BackendError, SiteError, TaskError

SIDES = ("unpadded", "right", "left")
LEARNED = ("gpt2", "opt")  # positions


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


def relative(ours, given):
    return float((ours - given).norm() / given.norm())


def split(name):
    return () if name == "gpt_oss" else tuple(range(N_LAYERS))


@pytest.mark.parametrize("side", SIDES)
def test_components_sum_to_the_residual(name, side):
    model, batch = tiny(name), ragged(9, side, lengths=(9, 6, 7))
    run = model.run(batch, capture=["resid_post"])
    for layer in (0, None):
        given = run[f"L{N_LAYERS - 1 if layer is None else layer}.resid_post"]
        for heads in (True, False):
            parts = decompose(model, batch, layer=layer, position=None, heads=heads)
            ours = parts.vectors.sum(0)
            assert relative(ours[batch.mask], given[batch.mask]) <= 1e-5
            assert parts.error <= 1e-5
            assert_close(parts.residual, given, atol=0, rtol=0)
        last = decompose(model, batch, layer=layer, position=-1, sources=True, neurons=split(name)[: parts.layer + 1])
        end = batch.mask.shape[1] - 1 - batch.mask.flip(1).long().argmax(1)
        assert relative(last.vectors.sum(0), given[torch.arange(3), end]) <= 1e-5
        assert_close(last.residual, given[torch.arange(3), end], atol=0, rtol=0)


def test_components_are_what_the_run_captures(name):
    model, batch = tiny(name), ragged(9, "left", lengths=(9, 6))
    sites = ["embed", "attn_out", "mlp_out", "head_out"]
    run, parts = model.run(batch, capture=sites), decompose(model, batch, position=None)
    pos = parts["pos"] if "pos" in parts.names else 0
    assert ("pos" in parts.names) == (name in LEARNED)
    assert_equal_to_rounding(parts["embed"] + pos, run["embed"])
    for i in range(N_LAYERS):
        heads = torch.stack([parts[f"L{i}H{h}"] for h in range(N_HEADS)], 2)
        real = batch.mask
        assert_close(heads[real], run[f"L{i}.head_out"][real], atol=1e-5, rtol=1e-4)
        for kind, total in (("attn", heads.sum(2)), ("mlp", parts[f"M{i}"])):
            bias = parts[f"b_{kind}{i}"] if f"b_{kind}{i}" in parts.names else 0
            given = run[f"L{i}.{kind}_out"]
            assert relative((total + bias)[real], given[real]) <= 1e-5


def test_sources_sum_to_the_head_and_neurons_to_the_mlp(name):
    model, batch = tiny(name), ragged(9, "right", lengths=(9, 6))
    whole = decompose(model, batch, position=4)
    parts = decompose(model, batch, position=4, sources=True, neurons=split(name))
    for layer in range(N_LAYERS):
        for h in range(N_HEADS):
            found = [c for c in parts.terms if c.kind == "source" and (c.layer, c.head) == (layer, h)]
            assert [c.source for c in found] == list(range(9))
            vectors = torch.stack([parts[c.name] for c in found])
            assert relative(vectors.sum(0), whole[f"L{layer}H{h}"]) <= 1e-5
            assert not vectors[5:].any()  # what comes later is not seen
        if layer in split(name):
            neurons = parts.vectors[[i for i, c in enumerate(parts.terms) if c.kind == "neuron" and c.layer == layer]]
            assert relative(neurons.sum(0), whole[f"M{layer}"]) <= 1e-5
            assert len(neurons) > N_HEADS


def test_one_source_is_what_attention_to_it_brings():
    """Against the definition: p_ij of the captured pattern, v_j of the captured values, the layer's W_O."""
    model, batch = tiny("mistral"), ragged(30, "unpadded", lengths=(30, 30))
    run = model.run(batch, capture=["pattern", "v"])
    parts, w = decompose(model, batch, position=25, sources=True), model.weights()
    for layer, head, j in ((0, 3, 20), (1, 7, 24), (1, 0, 2)):
        p, v = run[f"L{layer}.pattern"][:, head, 25, j], run[f"L{layer}.v"][:, j, head // 4]
        assert_close(parts[f"L{layer}H{head}<{j}"], p[:, None] * v @ w[layer].w_o[head], atol=1e-5, rtol=1e-4)
    assert not parts["L1H0<2"].any()  # beyond the window


@pytest.mark.parametrize("side", SIDES)
def test_attributions_sum_to_the_logit(name, side):
    model, batch = tiny(name), ragged(9, side, lengths=(9, 6, 7))
    logits = model.run(batch).logits
    end = batch.mask.shape[1] - 1 - batch.mask.flip(1).long().argmax(1)
    at, rows = logits[torch.arange(3), end], torch.arange(3)
    right, wrong = torch.tensor([5, 9, 40]), torch.tensor([7, 7, 8])
    for against in (None, wrong):
        want = at[rows, right] - (0 if against is None else at[rows, against])
        for found in (
            attribute(model, batch, right, against),
            attribute(model, batch, right, against, sources=True, neurons=split(name)),
        ):
            assert_equal_to_rounding(found.capped, want, scale=float(at.abs().max()))
            assert found.error <= 1e-5
            if name != "gemma2":
                assert float((found.values.sum(0) - want).abs().max() / at.abs().max()) <= 1e-5
            else:
                assert found.softcap == 30.0
                assert_close(found.capped, _capped(model, found, right, against), atol=1e-4, rtol=1e-4)
    assert_close(found.heads, attribute(model, batch, right, wrong).heads, atol=1e-4, rtol=1e-4)


def _capped(model, found, right, wrong):
    """With one answer, the cap of the sum; with two, nothing can be said but that it is smaller."""
    return 30 * torch.tanh(found.values.sum(0) / 30) if wrong is None else found.capped


def test_an_attribution_is_the_vector_times_the_unembedding(name):
    model, batch = tiny(name), ragged(9, "unpadded", lengths=(9, 9))
    parts, found = decompose(model, batch), attribute(model, batch, 11, 4)
    norm, w_u = model.weights().final_norm, model.weights().w_u
    w = w_u[:, 11] - w_u[:, 4]
    want = norm.linear(parts.vectors) / norm.divisor(parts.residual) @ w
    assert [c.name for c in found.terms[: len(want)]] == list(parts.names)
    assert_close(found.values[: len(want)], want, atol=1e-4, rtol=1e-4)


def test_direct_effect_is_the_fall_of_the_logit_with_the_head_taken_out(name):
    """Taken out of what the final norm takes, in the model itself, with the norm's divisor as it was."""
    model, batch = tiny(name), ragged(9, "unpadded", lengths=(9, 9))
    found, run = attribute(model, batch, 11), model.run(batch, capture=["head_out"])
    final = model.anatomy.final_norm
    norm = read_norm(final, model.info.d_model)
    for layer, head in ((0, 1), (1, 6)):
        written = run[f"L{layer}.head_out"][:, :, head]

        def without(module, args, output, written=written):
            return output - norm.linear(written) / norm.divisor(args[0])

        handle = final.register_forward_hook(without)
        try:
            logits = model.torch_module(batch.ids).logits[:, -1, 11]
        finally:
            handle.remove()
        if name == "gemma2":
            logits = 30 * torch.atanh(logits / 30)
        assert_close(found.logit - logits, found[f"L{layer}H{head}"], atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("side", SIDES)
def test_the_lens_at_the_last_layer_is_the_model(name, side):
    model, batch = tiny(name), ragged(9, side, lengths=(9, 6, 7))
    run = model.run(batch, capture=["resid_post"])
    assert_equal_to_rounding(read_out(model, run[f"L{N_LAYERS - 1}.resid_post"]), run.logits)
    answer = torch.tensor([5, 9, 40])
    lens = logit_lens(model, batch, answer=answer, top=3)
    p = run.logits.softmax(-1)
    real = batch.mask
    assert_close(lens.kl[-1][real], torch.zeros_like(lens.kl[-1][real]), atol=1e-5, rtol=0)
    assert bool((lens.kl[0][real] > 1e-3).any())
    assert_close(lens.top_p[-1][real], p.topk(3).values[real], atol=1e-5, rtol=1e-4)
    own = p.gather(2, answer[:, None, None].expand(3, 9, 1))
    assert_close(lens.p[-1][real], own[..., 0][real], atol=1e-5, rtol=1e-4)
    assert_close(lens.rank[-1][real], (p > own).sum(-1).float()[real], atol=1, rtol=0)
    assert len(lens.table()) == N_LAYERS * int(real.sum())


def test_the_lens_of_an_early_layer_by_definition():
    """KL of the model's own prediction to the layer's; a rank counts the tokens that are likelier."""
    model, batch = tiny("gpt2"), ragged(9, "unpadded", lengths=(9, 9))
    run = model.run(batch, capture=["L0.resid_post"])
    own, early = run.logits.log_softmax(-1), read_out(model, run["L0.resid_post"]).log_softmax(-1)
    answer = torch.tensor([5, 40])
    lens = logit_lens(model, batch, answer=answer, layers=[0])
    assert_close(lens.kl[0], (own.exp() * (own - early)).sum(-1), atol=1e-4, rtol=1e-4)
    at = early[torch.arange(2), :, answer]
    assert_close(lens.p[0], at.exp(), atol=1e-6, rtol=1e-4)
    assert torch.equal(lens.rank[0], (early > at[..., None]).sum(-1).float())


def test_the_lens_at_chosen_layers_and_positions():
    model, batch = tiny("gpt2"), ragged(9, "left", lengths=(9, 6))
    whole, some = logit_lens(model, batch), logit_lens(model, batch, layers=[1], positions=[-1, 2])
    assert some.columns.tolist() == [[8, 2], [8, 5]]
    for b, columns in enumerate(some.columns.tolist()):
        assert_equal_to_rounding(some.kl[0, b], whole.kl[1, b, columns])
        assert some.top_ids[0, b].tolist() == whole.top_ids[1, b, columns].tolist()
    assert some.p.isnan().all()
    assert set(some.table()["layer"]) == {1}


GPTJ = {"vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 64, "rotary_dim": 4}


@pytest.mark.parametrize("backend", ["lens", "nnsight"])
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma2", "olmo2"])
def test_every_backend_gives_the_same_parts(name, backend):
    model, same, batch = tiny(name), interp.load(build(name), backend=backend), ragged(9, "left", lengths=(9, 6))
    ours, theirs = (decompose(m, batch, sources=True, neurons=[1]) for m in (model, same))
    assert ours.names == theirs.names
    assert_close(theirs.vectors, ours.vectors, atol=1e-4, rtol=1e-4)
    ours, theirs = (attribute(m, batch, 11, 4) for m in (model, same))
    assert_close(theirs.values, ours.values, atol=1e-3, rtol=1e-3)
    ours, theirs = (logit_lens(m, batch, answer=3) for m in (model, same))
    for of in ("kl", "p"):
        assert_close(getattr(theirs, of)[:, batch.mask], getattr(ours, of)[:, batch.mask], atol=1e-4, rtol=1e-3)


def test_outside_the_attention_interface():
    config = transformers.GPTJConfig(**GPTJ, bos_token_id=None, eos_token_id=None)
    model = interp.load(transformers.GPTJForCausalLM(config).eval(), backend="lens")
    batch = ragged(9, "unpadded", lengths=(9, 9))
    parts, found = decompose(model, batch, sources=True), attribute(model, batch, 11, 4, neurons=[0, 1])
    logits = model.run(batch).logits[:, -1]
    assert {c.kind for c in parts.terms} == {"embed", "source", "mlp"}  # biases are zero at the start
    assert_close(found.values.sum(0), logits[:, 11] - logits[:, 4], atol=1e-5, rtol=1e-5)


def test_shares_sum_to_one_and_tables_are_tidy():
    model, batch = tiny("olmo2"), ragged(9, "right", lengths=(9, 6))
    table = decompose(model, batch, position=None).table()
    assert table["share"].sum() == pytest.approx(1, abs=1e-5)
    found = attribute(model, batch, 3, neurons=[1])
    table = found.table()
    assert len(table) == 2 * len(found.terms)
    assert table.groupby("prompt")["value"].sum().tolist() == pytest.approx(found.logit.tolist(), abs=1e-3)
    top = found.top(3)
    assert_equal_to_rounding(abs(top["value"]), found.values.mean(1).abs().topk(3).values)


def test_several_answers_are_their_mean():
    model, batch = tiny("llama"), ragged(9, "unpadded", lengths=(9, 9))
    both = attribute(model, batch, torch.tensor([[5, 6], [9, -1]])).values
    five, six, nine = (attribute(model, batch, i).values for i in (5, 6, 9))
    assert_close(both[:, 0], (five + six)[:, 0] / 2, atol=1e-4, rtol=1e-4)
    assert_close(both[:, 1], nine[:, 1], atol=1e-4, rtol=1e-4)


def test_the_planted_mover_writes_the_answer():
    model = interp.load("zoo:planted-two-hop")
    task = interp.task("two_hop", model, n=32)
    found = attribute(model, task.clean, task.answers, task.wrong)
    (layer, head), *_ = _truth("planted-two-hop").roles["name_mover"]
    assert found.top(1)["component"].item() == f"L{layer}H{head}"
    assert (found[f"L{layer}H{head}"] > 0).all()
    sources = attribute(model, task.clean, task.answers, task.wrong, sources=True)
    own = [i for i, c in enumerate(sources.terms) if (c.layer, c.head) == (layer, head)]
    best = sources.values[own].argmax(0)  # by column of the key: where the answer stands
    assert_close(task.clean.ids.gather(1, best[:, None]), task.answers, atol=0, rtol=0)


def _truth(name):
    from interp import zoo

    return zoo.truth(name)


def test_half_precision_states_what_it_misses():
    model = interp.load(build("llama", scale=2.0).to(torch.bfloat16))
    parts = decompose(model, ragged(9, "unpadded", lengths=(9, 9)))
    assert 1e-5 < parts.error < 0.06
    with pytest.raises(BackendError, match="first after layer 0"):
        decompose(model, ragged(9, "unpadded", lengths=(9, 9)), tolerance=1e-6)


def test_something_else_in_a_layer_is_noticed():
    """A layer that adds what neither attention nor MLP wrote: the sum misses, and says where."""
    module = build("llama")
    model, batch = interp.load(module), ragged(9, "unpadded", lengths=(9, 9))
    handle = module.model.layers[1].register_forward_hook(lambda m, args, out: out + 0.1)
    try:
        with pytest.raises(BackendError, match=r"miss the residual stream .* first after layer 1"):
            decompose(model, batch)
        with pytest.raises(BackendError, match="first after layer 1"):
            attribute(model, batch, 3)
    finally:
        handle.remove()


def test_what_stands_behind_the_unembedding_is_told():
    raw = torch.randn(2, 50) * 9
    assert read_head(raw, raw, slack=1e-5).softcap is None
    assert read_head(raw, raw / 8, slack=1e-5).multiplier == pytest.approx(1 / 8)
    assert read_head(raw, 25 * torch.tanh(raw / 25), slack=1e-5).softcap == 25.0
    with pytest.raises(BackendError, match="multiplier or a soft-cap"):
        read_head(raw, raw + raw**2, slack=1e-5)


def test_questions_without_an_answer_are_refused():
    model, batch = tiny("gpt_oss"), ragged(9, "unpadded", lengths=(9, 9))
    with pytest.raises(SiteError, match="neurons of layer 7: out of range"):
        decompose(model, batch, neurons=[7])
    with pytest.raises(SiteError, match="layer 5 is out of range"):
        decompose(model, batch, layer=5)
    with pytest.raises(SiteError, match="position 30 is out of range"):
        decompose(model, batch, position=30)
    with pytest.raises(TaskError, match="one query position"):
        decompose(model, batch, position=None, sources=True)
    with pytest.raises(SiteError, match="did you mean 'L1H3'"):
        decompose(model, batch)["L1H33"]
    with pytest.raises(TaskError, match="no tokenizer"):
        attribute(model, batch, "word")
    with pytest.raises(TaskError, match="for 2 prompts"):
        attribute(model, batch, [1, 2, 3])
    with pytest.raises(TaskError, match="from 0 to 63"):
        attribute(model, batch, 64)
    with pytest.raises(SiteError, match="the residual stream is 64"):
        read_out(model, torch.zeros(3, 5))
