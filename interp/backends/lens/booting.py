"""From a checkpoint to a TransformerLens bridge, without the hub."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import PreTrainedModel

from interp.backends.checkpoint import Checkpoint
from interp.backends.lens.model import LensModel
from interp.errors import ModelLoadError
from interp.numerics import device_of, evaluating

OTHER = 0.05  # of the logits' spread: far more than rounding in half precision

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
SMALL = 50_000_000
"""Numbers in a table of embeddings, or in a layer, up to which one layer is made to try an adapter."""


def fits(checkpoint: Checkpoint) -> bool:
    """Whether TransformerLens has an adapter for a checkpoint's architecture, whose layers have attention to hook.

    An adapter may be there and give nothing to hook: where one layer of random weights is small, it is tried.
    """
    model = checkpoint.model
    config = model.config.get_text_config()
    heads = [getattr(config, name, None) for name in HEADS]
    if type(model).__name__ not in SUPPORTED_ARCHITECTURES or not any(heads):
        return False
    width = next(model.get_input_embeddings().parameters()).shape
    if width.numel() > SMALL or 12 * width[-1] ** 2 > SMALL:
        return True
    with torch.random.fork_rng(devices=[]):
        try:
            boot(Checkpoint(checkpoint.name, _sketch(model), None), ours=True)
        except Exception:  # whatever stops the sketch would stop the model
            return False
    return True


def _sketch(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and sizes with one layer of random weights."""
    config = copy.deepcopy(model.config)
    for name in LAYERS:
        if isinstance(config.__dict__.get(name), int):
            setattr(config, name, 1)
    return type(model)(config).eval()


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
    except Exception as error:  # whatever an adapter makes of a configuration that it does not know
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
