"""What the tests of attention analyses share: reading a result, dense patterns, a model that attends blindly."""

from __future__ import annotations

import torch
from tiny_models import build

import interp

LENGTH = 40
"""Tokens of each of the prompts of attention analyses."""
HEADLINES = {"entropy": "focus", "offset_profile": "peak", "lag_profile": "best", "distraction": "auroc"}


def variant(result, name):
    return result.table[result.table["variant"] == name].set_index("component")


def column(result, name, field="value"):
    return variant(result, name)[field].to_numpy(dtype=float)


def eager(model, batch):
    """[layer prompt head query key] as transformers itself computes it."""
    with torch.no_grad():
        found = model.torch_module(
            batch.ids, attention_mask=batch.mask.long(), position_ids=batch.positions, output_attentions=True
        )
    return torch.stack(found.attentions).double().numpy()


def blind(architecture="llama", **changes):
    """A model whose queries are zero: every row is uniform over what it may see."""
    module = build(architecture, **changes)
    for name, parameter in module.named_parameters():
        if "q_proj" in name or "q_norm" in name:
            parameter.data.zero_()
    return interp.load(module)


def named(made, role):
    return ["L{}H{}".format(*at) for at in made.truth.roles[role]]
