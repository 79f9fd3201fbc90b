"""What is read of a model while edits of a context stand: weights are its own, runs are under the edits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from agreement import on
from tiny_models import D_MODEL, ragged
from torch.testing import assert_close

from interp.decompose.embeddings import effective_embedding
from interp.edits import Ablate, Add, Apply, ForcePattern, KnockOut, Replace, Scale

BACKENDS = ("hf", "lens", "nnsight")
NAMES = ("gpt2", "gemma2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("llama", "gpt_neox")))
"""Biases; norms behind attention and MLP; groups; parallel branches."""
BATCH = ragged(16, "unpadded")
WIDTHS = {("gpt2", "mlp"): 256, ("gemma2", "attn"): 128, ("", "attn"): 64, ("", "mlp"): 96}
EDITS = {
    "everything scaled": [
        *(Scale(f"L{i}.{kind}", 3.0) for i in (0, 1) for kind in ("attn_out", "mlp_out", "resid_post", "mlp_post")),
        Scale("embed", 0.5),
        Scale("L1.mlp_in", 2.0),
        Scale("logits", 0.1),
    ],
    "heads": [Ablate("L0H1.z"), Scale("L1H2.head_out", 5.0), Scale("L1.resid_mid", 2.0)],
    "inside attention": [Scale("L0.q", 2.0), Scale("L1.k", 0.1), Scale("L1.v", -1.0), KnockOut("L0.pattern", keys=0)],
    "of these prompts alone": [
        Replace("L1.resid_pre", torch.linspace(-9, 9, 3 * 16 * D_MODEL).view(3, 16, D_MODEL)),
        Add("L0.attn_out@12", torch.ones(D_MODEL)),
        ForcePattern("L0H5.pattern", torch.eye(16)),
        Apply("L1.z", lambda z: z * torch.arange(16.0)[:, None, None]),
    ],
}


def flat(thing):
    """Every tensor of nested dataclasses, by path."""
    if isinstance(thing, torch.Tensor):
        return {"": thing}
    if not dataclasses.is_dataclass(thing):
        return {}
    fields = {f.name: flat(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
    return {f"{name}.{rest}": x for name, parts in fields.items() for rest, x in parts.items()}


def readings(model, architecture):
    """All that can be read of a model's weights, by name."""
    weights = model.weights()
    found = {"w_e": weights.w_e, "w_u": weights.w_u, "b_u": weights.b_u, "turn": weights.rotation(1, 3)}
    found |= {f"final{k}": x for k, x in flat(weights.final_norm).items()}
    for layer in (0, 1):
        found |= {f"{layer} {k}": x for k, x in flat(weights[layer]).items()}
        writes, reads = model.writes(layer), model.reads(layer)
        for name in ("attn", "mlp"):
            write, width = getattr(writes, name), WIDTHS.get((architecture, name), WIDTHS["", name])
            if write is not None:
                found[f"{layer} writes {name}"] = write.matrix(width)
                found[f"{layer} bias {name}"] = write.bias(width, torch.ones(1, 1))
            found |= {f"{layer} reads {name}{k}": x for k, x in flat(getattr(reads, name)).items()}
        whole = reads.mlp_of(torch.linspace(-1, 1, D_MODEL)[None])
        found |= {} if whole is None else {f"{layer} mlp": whole}
    ov = model.ov_circuits()
    return found | {f"ov {name}": getattr(ov, name) for name in ("w_v", "w_o", "w_e", "w_u")}


def applies(model, edits):
    """Those edits whose sites the architecture has."""
    present = []
    for edit in edits:
        try:
            model.run(BATCH, edits=[edit])
        except Exception:  # whatever the reason is
            continue
        present.append(edit)
    assert len(present) >= len(edits) - 2
    return present


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_read_under_edits_are_the_models_own(backend, name, kind):
    model = on(backend, name)
    want, edits = readings(model, name), applies(model, EDITS[kind])
    before = model.run(BATCH).logits
    lazy = model.weights()  # read inside, made outside
    with model.editing(edits):
        edited = model.run(BATCH).logits
        with torch.no_grad():
            model.torch_module(BATCH.ids)  # and again after a pass of the module itself
        found = readings(model, name)
        w_q = lazy[0].w_q
    assert not torch.equal(edited, before)
    assert torch.equal(model.run(BATCH).logits, before)
    assert torch.equal(w_q, want["0 w_q."])
    assert found.keys() == want.keys()
    for key, x in want.items():
        assert torch.equal(found[key], x), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_captures_under_standing_edits_are_those_of_a_run_with_them(backend, name):
    """What heads write is z W_O of the edited z, by the matrices read inside and outside of the context alike."""
    model = on(backend, name)
    asked = ["L1.head_out", "L1.z", "L1.attn_out", "L0.norm_scale", "L1.norm_scale", "L1.resid_post"]
    for kind, edits in EDITS.items():
        present = [e for e in applies(model, edits) if e.site.kind != "head_out"]
        want = model.run(BATCH, edits=present, capture=asked)
        outer, inner = present[: len(present) // 2], present[len(present) // 2 :]
        with model.editing(outer):
            found = model.run(BATCH, edits=inner, capture=asked)
            w_o = model.weights()[1].w_o
            norm = model.weights()[1].norm_after
        assert torch.equal(found.logits, want.logits), kind
        for site, x in want.acts.items():
            assert torch.equal(found.acts[site], x), (kind, site)
        if norm is None:
            z, head_out = (found[f"L1.{k}"] for k in ("z", "head_out"))
            assert_close(head_out, torch.einsum("bphd,hdm->bphm", z, w_o), rtol=1e-4, atol=1e-4, msg=kind)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_effective_embedding_is_that_of_the_edited_model(backend):
    """A run like any other: under the edits of the context."""
    model, ids = on(backend, "llama"), torch.arange(3, 9)
    plain = effective_embedding(model, tokens=ids, variant="full")
    with model.editing([Scale("L0.resid_post", 2.0)]):
        assert_close(effective_embedding(model, tokens=ids, variant="full"), 2 * plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_partial_run_comes_by_some_edits_and_leaves_the_others_out(backend):
    """What it starts with stands behind the edits there; those above its end, or below its start, do not matter."""
    model = on(backend, "llama")
    plain, edits = model.run(BATCH).logits, [Scale("L0.z", 0.5), Scale("L1.resid_pre", 2.0), Scale("L1.mlp_out", 0.5)]
    with model.editing(edits[:1]), model.editing(edits[1:]):
        assert list(model.edits) == edits
        whole = model.run(BATCH, capture=["L0.resid_post", "L1.resid_pre"])
        early = model.run(BATCH, capture=["L0.resid_post"], stop=0)
        late = model.run(BATCH, start=(1, whole["L1.resid_pre"]))
        with model.resting():
            assert not model.edits
            assert torch.equal(model.run(BATCH).logits, plain)
            with model.editing(edits[:1]):
                alone = model.run(BATCH).logits
    assert torch.equal(early["L0.resid_post"], whole["L0.resid_post"])
    assert torch.equal(whole["L1.resid_pre"], 2 * whole["L0.resid_post"])
    assert_close(late.logits, whole.logits, rtol=0, atol=1e-6)
    assert torch.equal(alone, model.run(BATCH, edits=edits[:1]).logits)
    assert not model.edits
