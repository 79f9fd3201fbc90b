"""Every name that a TransformerLens bridge has for an activation: the same tensor here, or refused with a reason."""

from __future__ import annotations

import re

import pytest
import torch
from agreement import on
from tiny_models import N_LAYERS, build

import interp
from interp.errors import SiteError
from interp.sites import LENS, LENS_REFUSED, Site

IDS = torch.tensor([[5, 9, 5, 30, 41, 7, 9], [3, 8, 2, 60, 11, 13, 17]])
TURNED = {"attn.hook_q", "attn.q.hook_out", "attn.hook_k", "attn.k.hook_out"}
ELSEWHERE = {  # names refused because they mean another tensor in this architecture, or none
    "gpt2": set(),
    "llama": {*TURNED, "mlp.in.hook_out", "hook_pos_embed"},
    "gpt_neox": {*TURNED, "ln2.hook_in", "hook_pos_embed"},
    "gemma2": {
        *(*TURNED, "mlp.in.hook_out", "hook_pos_embed", "unembed.hook_out", "hook_unembed"),
        *("attn.hook_out", "attn.o.hook_out", "attn.hook_result", "attn.hook_hidden_states"),
        *("mlp.hook_out", "mlp.out.hook_out"),
    },
}


@pytest.fixture(scope="module", params=ELSEWHERE)
def hooks(request):
    """An architecture, and the tensor of every hook point of its bridge by each of its names; None: not reached."""
    bridge = interp.load(build(request.param), backend="lens").bridge
    bridge.cfg.use_attn_result = True
    with torch.no_grad():
        cache = bridge.run_with_cache(IDS)[1]
    return request.param, dict.fromkeys(bridge.hook_dict) | {name: cache[name] for name in cache.keys()}  # noqa: SIM118


def rest(name):
    return re.sub(r"^blocks\.\d+\.", "", name)


def same(ours, theirs):
    """Equal to 1e-6 of the largest; what a mask hides is -inf here and some lowest number there."""
    visible = ours.isfinite()
    apart = float((ours[visible] - theirs[visible]).abs().max())
    close = apart <= 1e-6 * max(1.0, float(theirs[visible].abs().max()))
    return ours.shape == theirs.shape and close and bool((theirs[~visible] < -1e30).all())


@pytest.mark.parametrize("backend", ["hf", "lens"])
def test_a_name_of_transformer_lens_is_the_same_tensor_or_refused(hooks, backend):
    name, tensors = hooks
    model, refused, compared = on(backend, name), set(), 0
    never = {rest(stem.replace("blocks.", "blocks.0.", 1)) for stem in LENS_REFUSED}
    for hook, tensor in tensors.items():
        try:
            ours = model.run(IDS, capture=[hook])[hook]
        except SiteError as error:
            assert "unknown site" not in str(error) and "cannot read" not in str(error)
            refused |= {rest(hook)} - never
            continue
        if tensor is not None:
            compared += 1
            assert same(ours, tensor), hook
    assert refused == ELSEWHERE[name]
    assert compared > 30 * N_LAYERS


def test_a_refused_name_is_refused_as_an_edit_and_as_a_key():
    model = on("hf", "gemma2")
    why = r"hook_out is another tensor .*: there before the norm behind attention.* write L1\.attn_out"
    for use in (
        lambda: model.run(IDS, edits=[interp.Ablate("blocks.1.attn.hook_out")]),
        lambda: model.run(IDS, capture=["L1.attn_out"])["blocks.1.attn.hook_out"],
    ):
        with pytest.raises(SiteError, match=why):
            use()
    assert model.run(IDS, capture=["L1.attn_out"])["blocks.1.hook_attn_out"].shape == (*IDS.shape, 64)


def test_the_names_are_of_kinds_and_traits_that_there_are():
    from interp.sites import DIFFERENCES, KINDS

    assert {kind for kind, *_ in LENS.values()} <= set(KINDS)
    assert {trait for _, *traits in LENS.values() for trait in traits} == set(DIFFERENCES)
    assert not set(LENS) & set(LENS_REFUSED)
    for stem in LENS:
        assert Site.parse(stem.replace("blocks.", "blocks.2.")).alias
