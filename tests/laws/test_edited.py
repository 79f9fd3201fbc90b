"""The residual stream of an edited model taken apart: parts sum, and what an edit adds is a part."""

from __future__ import annotations

import pytest
import torch
from edited_models import KINDS, changed_model, edits_of, small_model, small_task
from tiny_models import ARCHITECTURES, ragged, tiny
from torch.testing import assert_close

import interp
from interp.decompose import attribute, decompose, logit_lens
from interp.edits import Ablate, Add, Apply, KnockOut, Noise, Replace, Scale
from interp.errors import BackendError, SiteError
from interp.patching.activations import activation_patching
from interp.patching.nodes import node_attribution

SPANNING = ("gpt2", "gpt_neox", "gemma2")  # learned positions and biases; parallel; norms behind; each another layout
BATCH = ragged(9, "left", lengths=(9, 6))
VECTOR = torch.linspace(-1, 1, 64)
EDITS = (
    Add("embed", VECTOR),
    Scale("L0.z", 0.5),
    Add("L0.attn_out", VECTOR),
    Scale("L0H1.head_out", -2.0),
    Scale("L0.mlp_out", 0.5),
    Add("L1.resid_pre", VECTOR, positions=-1),
    Scale("L1.mlp_post", 2.0),
    Scale("L1.resid_mid", 1.5),
    Noise("L1.mlp_out", 0.1),
    Apply("L1.resid_post", lambda x: x - x.mean(-1, keepdim=True) * torch.linspace(0, 1, x.shape[-1]) + 1),
)


def usable(model):
    """Those edits whose sites the architecture has."""
    present = []
    for edit in EDITS:
        try:
            model.run(BATCH, edits=[edit])
        except (SiteError, BackendError):
            continue
        present.append(edit)
    assert len(present) >= len(EDITS) - 4
    return present


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SPANNING else [pytest.mark.slow]) for n in ARCHITECTURES]
)
def test_parts_of_an_edited_stream_sum_to_it(name):
    model = tiny(name)
    edits = usable(model)
    want = model.run(BATCH, edits=edits, capture=["L1.resid_post"])
    for options in ({"position": None}, {"sources": True}, {"heads": False, "neurons": [1] if name == "llama" else []}):
        parts = decompose(model, BATCH, edits=edits, **options)
        resid = want["L1.resid_post"] if options.get("position", -1) is None else want["L1.resid_post"][:, -1]
        assert_close(parts.residual[parts.mask], resid[parts.mask], rtol=1e-4, atol=1e-4)
        assert {"edit_embed", "edit_resid_pre1"} & set(parts.names)
    effects = attribute(model, BATCH, 3, 5, edits=edits)
    logits = want.logits[:, -1, 3] - want.logits[:, -1, 5]
    assert_close(effects.capped, logits, rtol=1e-4, atol=1e-4)
    assert effects.error < 1e-5
    assert not model.edits


@pytest.mark.parametrize("kind", KINDS)
def test_attribution_lens_and_patching_of_an_edited_model(kind):
    """Ablate and attribute again, steer and read the lens, patch an ablated model: as if the weights were changed."""
    model, task, layer = small_model(), small_task(), 1
    edits, changed = edits_of(model, kind, layer), changed_model(model, kind, layer)
    with model.editing(edits):
        inside = attribute(model, task.clean, 3, 7)
    own, want = attribute(model, task.clean, 3, 7, edits=edits), attribute(changed, task.clean, 3, 7)
    assert_close(inside.values, own.values, rtol=0, atol=0)
    terms = {f"edit_mlp_out{layer}": f"b_mlp{layer}"}  # a steering vector is a bias there
    for name in (t.name for t in own.terms):
        other = f"b_attn{layer}" if kind == "mean" and name == f"L{layer}H0" else terms.get(name, name)
        assert_close(own[name], want[other], rtol=0, atol=1e-5, msg=name)
    assert_close(own.logit, want.logit, rtol=0, atol=1e-5)
    lens = logit_lens(model, task.clean, answer=3, edits=edits)
    assert_close(lens.p, logit_lens(changed, task.clean, answer=3).p, rtol=0, atol=1e-6)
    assert float(lens.kl[-1].abs().max()) < 1e-6
    patched, want_patched = (activation_patching(m, task, edits=e).table for m, e in ((model, edits), (changed, ())))
    assert float((patched["value"] - want_patched["value"]).abs().max()) < 1e-5
    estimate, want_estimate = (node_attribution(m, task, edits=e).mean for m, e in ((model, edits), (changed, ())))
    assert abs(estimate - want_estimate).max() < 1e-5


def test_a_run_of_single_tokens_knows_no_positions():
    """The lens reads every stream by itself: edits of a position act where the prompt runs, and nowhere else."""
    model, task = small_model(), small_task()
    vector = torch.linspace(-1, 1, 16)
    steer = [Add("L2.resid_post", vector, positions=-1), Replace("L2.z", torch.zeros(2, 8), positions=3)]
    lens = logit_lens(model, task.clean, answer=3, edits=steer)
    want = model.run(task.clean, edits=steer).logits.softmax(-1)[..., 3]
    assert_close(lens.p[-1], want, rtol=0, atol=1e-6)
    with pytest.raises(SiteError, match="changes some tokens' logits"):
        logit_lens(model, task.clean, edits=[Add("logits", torch.ones(16), positions=0)])


def test_knocked_out_sources_and_functions():
    model, task = small_model(), small_task()
    knock = [KnockOut("L1H0.pattern", keys=1)]
    effects = attribute(model, task.clean, 3, 7, sources=True, edits=[*knock, Ablate("L1H1.z", "mean", torch.ones(8))])
    assert float(effects["L1H0<1"].abs().max()) == 0
    assert float(effects["L1H1<0"].abs().max()) == 0
    assert float(effects["L1H1<edit"].abs().max()) > 0
    with pytest.raises(SiteError, match="not affine"):
        attribute(model, task.clean, 3, edits=[Apply("L1.resid_post", torch.relu)])


def test_provenance_lists_edits_and_the_run_has_its_own_id():
    model, name = small_model(), "previous_token"
    outer, inner = edits_of(model, "ablation", 0), edits_of(model, "steering", 2)
    plain = interp.analyze(model, name, n_prompts=4, length=12)
    with model.editing(outer):
        both = interp.analyze(model, name, n_prompts=4, length=12, edits=inner)
    assert plain.provenance["edits"] == []
    assert [(e["edit"], e["site"]) for e in both.provenance["edits"]] == [("Ablate", "L0H0.z"), ("Add", "L2.mlp_out")]
    assert both.provenance["edits"][1]["value"].startswith("tensor (16,) ")
    assert both.provenance["run_id"] != plain.provenance["run_id"]
    assert not model.edits
