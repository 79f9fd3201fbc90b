"""Every name that a TransformerLens bridge has for an activation: the same tensor here, or refused with a reason."""

from __future__ import annotations

import re

import pytest
import torch
from tiny_models import N_LAYERS, build

import interp
from interp.errors import SiteError
from interp.sites import LENS, LENS_REFUSED

IDS = torch.tensor([[5, 9, 5, 30, 41, 7, 9], [3, 8, 2, 60, 11, 13, 17]])
OFTEN = {  # of each: names refused there because they mean another tensor in this architecture
    "gpt2": set(),
    "llama": {"attn.hook_q", "attn.hook_k", "attn.q.hook_out", "attn.k.hook_out", "mlp.in.hook_out"},
    "gpt_neox": {"attn.hook_q", "attn.hook_k", "attn.q.hook_out", "attn.k.hook_out"},
    "gemma2": {
        *("attn.hook_q", "attn.hook_k", "attn.q.hook_out", "attn.k.hook_out", "mlp.in.hook_out", "attn.hook_result"),
        *("attn.hook_out", "attn.o.hook_out", "mlp.hook_out", "mlp.out.hook_out", "unembed.hook_out", "hook_unembed"),
    },
}
ABSENT = {"gpt2": set(), "llama": set(), "gemma2": set(), "gpt_neox": {"ln2.hook_in"}}


def names(bridge):
    """Tensors of every hook point that one pass reaches, under each of its names, old and new."""
    with torch.no_grad():
        cache = bridge.run_with_cache(IDS)[1]
    return {name: cache[name] for name in cache.keys()} | dict.fromkeys(set(bridge.hook_dict) - set(cache.keys()))


def rest(name):
    return re.sub(r"^blocks\.\d+\.", "", name)


def same(ours, theirs):
    """Equal to 1e-6 of the largest; what a mask hides is -inf here and some lowest number there."""
    visible = ours.isfinite()
    scale = max(1.0, float(theirs[visible].abs().max()))
    hidden = theirs[~visible]
    apart = float((ours[visible] - theirs[visible]).abs().max())
    return ours.shape == theirs.shape and apart <= 1e-6 * scale and bool((hidden < -1e30).all())


@pytest.mark.parametrize("backend", ["hf", "lens"])
@pytest.mark.parametrize("name", ["gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in OFTEN if n != "gpt2")])
def test_a_name_of_transformer_lens_is_the_same_tensor_or_refused(name, backend):
    lens = interp.load(build(name), backend="lens")
    lens.bridge.cfg.use_attn_result = True
    model = lens if backend == "lens" else interp.load(build(name))
    refused = set()
    tensors = names(lens.bridge)
    for hook, tensor in tensors.items():
        try:
            ours = model.run(IDS, capture=[hook])[hook]
        except SiteError as error:
            assert "unknown site" not in str(error), error
            refused.add(rest(hook))
            continue
        if tensor is not None:  # a name that no pass reaches stands for nothing there
            assert same(ours, tensor), hook
    never = {rest(re.sub(r"^blocks\.", "blocks.0.", n)) for n in LENS_REFUSED}
    print(sorted(refused - never))
    print(sorted(n for n in tensors if tensors[n] is None and ".1." not in n))
