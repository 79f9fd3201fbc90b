"""One model, three wrappers: the same sites, the same edits, the same numbers."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from agreement import ARCHITECTURES, PAGE, SITES, differences, on
from tiny_models import D_MODEL, N_HEADS, SIDES, build, ragged
from tolerance import assert_equal_to_rounding

import interp
from interp.attention import Entropy, KeyMass, Offset, Rows, TopKeys
from interp.edits import Ablate, Add, Apply, AttentionBias, ForcePattern, KnockOut, Noise, Replace, Scale, Uniform

CLOSE = 1e-5
OTHERS = ("lens", "nnsight")
FEW = ("gpt2", "llama", "gpt_neox", "gemma2", "gpt_oss")  # learned positions, GQA, parallel, post-norm, sink logits


EDITS = {
    "ablated head": [Ablate("L0H1.z")],
    "ablated heads of some rows": [Ablate("L0H1.z", rows=[0]), Ablate("L1H2.z", rows=[1, 2])],
    "scaled MLP": [Scale("L0.mlp_out", 0.5)],
    "raised neurons": [Add("L1.mlp_post@-1", torch.ones(1))],
    "scaled MLP input": [Scale("L1.mlp_in", 0.5)],
    "attention input": [Add("L1.attn_in@-1", torch.linspace(-1, 1, D_MODEL))],
    "pre-activations of neurons": [Scale("L0.mlp_pre", 0.5)],
    "scores": [Scale("L0H1.scores", 0.5), Apply("L1H2.scores@-1", lambda s: s / 3)],
    "function of a pattern": [
        Apply("L1.pattern", lambda p: p.flip(1), rows=[2, 0]),
        Apply("L0H1.pattern@2", torch.sqrt),
    ],
    "module": [Scale("module:{mlp}", 0.5), Add("module:{mlp}:input@0", torch.linspace(-1, 1, D_MODEL))],
    "replaced residual": [Replace("L1.resid_pre@0", torch.linspace(-1, 1, D_MODEL))],
    "added after a layer": [Add("L0.resid_post", torch.linspace(-1, 1, D_MODEL), positions=[1, 3])],
    "noise on the embeddings": [Noise("embed", 0.5, seed=3)],
    "attention output": [Scale("L0.attn_out", 0.3)],
    "one head's write": [Scale("L1H3.head_out", 3.0)],
    "queries, keys and values": [Scale("L0H1.q", 2.0), Scale("L1H0.k", 0.5), Scale("L0H1.v", -1.0)],
    "knock-out": [KnockOut("L1H2.pattern", keys=0)],
    "knock-out of every key": [KnockOut("L1H2.pattern", queries=-1)],
    "knock-out without renormalising": [KnockOut("L1H2.pattern", keys=0, renormalise=False)],
    "bias on scores": [
        AttentionBias("L0.pattern", torch.linspace(-1, 1, 16)),
        AttentionBias("L1H1.pattern@-1", torch.arange(16.0)),
    ],
    "uniform attention": [Uniform("L0H3.pattern", queries=[2, 5])],
    "forced pattern": [ForcePattern("L1H5.pattern", torch.eye(16))],
    "scaled pattern": [Scale("L1H5.pattern", 0.5)],
    "logits": [Scale("logits", 0.5)],
    "all at once": [Ablate("L0H1.z"), Scale("L0.mlp_out", 0.5), Scale("L1H0.q", 2.0), KnockOut("L1.pattern", keys=0)],
}


MLP = dict.fromkeys(FEW, "model.layers.1.mlp") | {"gpt2": "transformer.h.1.mlp", "gpt_neox": "gpt_neox.layers.1.mlp"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_site_is_the_same(name):
    for site, by_backend in differences(name, ragged(16, "unpadded")).items():
        for backend, apart in by_backend.items():
            assert apart is None or apart <= CLOSE, (site, backend, apart)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_padding_makes_no_difference(name, side):
    for site, by_backend in differences(name, ragged(30, side)).items():
        for backend, apart in by_backend.items():
            assert apart is None or apart <= CLOSE, (site, backend, apart)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("name", FEW)
def test_every_edit_does_the_same(name, backend):
    tokens = ragged(16, "unpadded")
    ours, theirs = on("hf", name), on(backend, name)
    for what, made in EDITS.items():
        if name == "gpt_oss" and "neurons" in what:
            continue
        if name == "gpt_oss" and backend == "lens" and what == "scores":
            continue
        edits = [replace(e, site=str(e.site).replace("{mlp}", MLP[name])) for e in made]
        want = ours.run(tokens, edits=edits).logits
        assert_equal_to_rounding(theirs.run(tokens, edits=edits).logits, want, msg=what)
        assert what == "logits" or not torch.allclose(want, ours.run(tokens).logits, atol=1e-4), f"{what} does nothing"


@pytest.mark.parametrize("backend", OTHERS)
def test_resid_mid_is_edited_for_both_of_its_readers(backend):
    tokens, edits = ragged(12, "left"), [Add("L1.resid_mid", torch.linspace(-2, 2, D_MODEL))]
    found = [on(b, "llama").run(tokens, edits=edits, capture=["resid_mid"]) for b in ("hf", backend)]
    real = tokens.mask[..., None]
    assert_equal_to_rounding(found[1].logits * real, found[0].logits * real)
    assert_equal_to_rounding(found[1]["L1.resid_mid"] * real, found[0]["L1.resid_mid"] * real)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("name", FEW)
def test_start_and_stop(name, backend):
    tokens, model = ragged(12, "unpadded"), on(backend, name)
    full = model.run(tokens, capture=["L1.resid_pre", "L0.z"])
    again = model.run(tokens, start=(1, full["L1.resid_pre"]))
    assert_equal_to_rounding(again.logits, full.logits)
    short = model.run(tokens, capture=["L0.z"], stop=0)
    assert short.logits is None
    torch.testing.assert_close(short["L0.z"], full["L0.z"], rtol=0, atol=0)
    with pytest.raises(interp.InterpError, match="L1.z: layer 1 is not run"):
        model.run(tokens, capture=["L1.z"], stop=0)


def gradients(model, tokens, sites):
    run = model.run(tokens, capture=sites, gradients=True)
    return torch.autograd.grad(run.logits[:, -1, 3].sum(), [run[s] for s in sites])


def test_gradients_are_those_of_eager_attention_with_sinks():
    model, given = build("gpt_oss"), []

    def leaf(module, args, output):
        given.append(output.detach().requires_grad_())
        return given[0]

    tokens = ragged(12, "unpadded")
    model.get_input_embeddings().register_forward_hook(leaf)
    want = torch.autograd.grad(model(tokens.ids).logits[:, -1, 3].sum(), given)[0]
    found = gradients(on("lens", "gpt_oss"), tokens, ["embed"])[0]
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("name", FEW)
def test_gradients_are_the_same(name, backend):
    tokens = ragged(12, "unpadded")
    sites = ["embed", "L0.z", "L1H2.q", "L1H3.pattern", "L1.resid_pre@-1", "L0.attn_out", "L1.mlp_out"]
    both = (gradients(on(b, name), tokens, sites) for b in ("hf", backend))
    for site, want, found in zip(sites, *both, strict=True):
        assert float(want.abs().max()) > 0, site
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5, msg=site)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_attention_statistics_are_the_same(name, backend, side):
    tokens = ragged(30, side)
    rows = torch.tensor([[-1, 3], [5, 7], [8, 12]])
    first = torch.nn.functional.one_hot(tokens.first, tokens.ids.shape[1]).bool()
    asked = {
        "offset": Offset(1),
        "beyond the window": Offset(20),
        "first": KeyMass(first),
        "entropy": Entropy(),
        "rows": Rows(rows),
        "top": TopKeys(rows, k=1),
    }
    want, found = (on(b, name).attention(tokens, asked) for b in ("hf", backend))
    for what in asked:
        torch.testing.assert_close(found[what], want[what], rtol=0, atol=1e-4, equal_nan=True, msg=what)


@pytest.mark.parametrize("backend", OTHERS)
def test_means_and_circuits_are_the_same(backend):
    tokens = ragged(20, "right")
    ours, theirs = on("hf", "gemma2"), on(backend, "gemma2")
    assert_equal_to_rounding(theirs.mean(tokens), ours.mean(tokens))
    for name in ("w_v", "w_o", "w_e", "w_u"):
        want, found = getattr(ours.ov_circuits(), name), getattr(theirs.ov_circuits(), name)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("backend", OTHERS)
def test_generation_under_edits_is_the_same(backend):
    tokens, edits = ragged(10, "left"), [Ablate("L0H1.z"), Scale("L1.mlp_out", 2.0)]
    want = on("hf", "llama").generate(tokens, edits=edits, max_new_tokens=6)
    assert torch.equal(on(backend, "llama").generate(tokens, edits=edits, max_new_tokens=6), want)
    assert not torch.equal(on(backend, "llama").generate(tokens, max_new_tokens=6), want)


@pytest.mark.parametrize("backend", OTHERS)
def test_edits_of_a_context_apply_inside_it_alone(backend):
    tokens, model, edits = ragged(10, "unpadded"), on(backend, "llama"), interp.ablate_heads(["L0H1", "L1H3"])
    plain = model.run(tokens).logits
    with interp.model.editing(model, edits):
        inside = model.run(tokens).logits
    torch.testing.assert_close(inside, model.run(tokens, edits=edits).logits, rtol=0, atol=0)
    torch.testing.assert_close(model.run(tokens).logits, plain, rtol=0, atol=0)


def test_the_table_in_the_docs_covers_what_is_tested():
    text = Path(PAGE).read_text()
    assert f"| site | backend | {' | '.join(ARCHITECTURES)} |" in text
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \|(.*)\|$", text, flags=re.M)
    assert [(site, backend) for site, backend, _ in rows] == [(s, b) for s in SITES for b in OTHERS]
    numbers = [float(cell) for _, _, cells in rows for cell in cells.split("|") if cell.strip() != "none"]
    assert max(numbers) <= CLOSE
    assert on("lens", "gpt2").info.n_heads == N_HEADS
