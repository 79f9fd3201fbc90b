"""From a checkpoint to a TransformerLens bridge, without the hub."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from interp.backends.checkpoint import Checkpoint
from interp.backends.lens.model import LensModel
from interp.errors import ModelLoadError
from interp.numerics import device_of, evaluating

OTHER = 0.05  # of the logits' spread: far more than rounding in half precision


def boot(checkpoint: Checkpoint, *, ours: bool = False) -> LensModel:
    """A bridge around the checkpoint's module, or around a copy where it is not ours: bridges replace submodules.

    The tokenizer stays ours: a bridge's own needs one that was loaded from disk.

    Raises:
        ModelLoadError: TransformerLens has no adapter for this architecture, or one that computes something else.
    """
    model = checkpoint.model if ours else copy.deepcopy(checkpoint.model)
    family = type(model).__name__
    model.config._attn_implementation = "eager"
    ids = torch.tensor([[0, 1, 0, 1]], device=device_of(model.get_input_embeddings()))
    with evaluating(model), torch.no_grad():
        own = model(ids, use_cache=False).logits.float()
    try:
        bridge: Any = build_bridge_from_module(model, family, hf_config=model.config, model_name=checkpoint.name)
    except (ValueError, KeyError, AttributeError) as error:
        lines = str(error).strip().splitlines()
        raise ModelLoadError(f"TransformerLens cannot bridge {family}: {lines[0] if lines else error!r}") from error
    lens = LensModel(bridge, name=checkpoint.name, commit=checkpoint.commit)
    lens.tokenizer = checkpoint.tokenizer
    error = float((lens.run(ids).logits.float() - own).abs().max())  # type: ignore[union-attr]  # a run to the end
    if not error <= OTHER * max(float(own.std()), 1e-6):
        raise ModelLoadError(
            f"TransformerLens's bridge of {family} gives other logits than the model, by {error:.2g}; load it with "
            'backend="hf"'
        )
    return lens
