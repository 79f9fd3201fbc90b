"""`LensInfo`: a bridge's sizes, and what TransformerLens has done to its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from interp.backends.base import sliding_window
from interp.backends.lens.parts import LensParts
from interp.model import ModelInfo


@dataclass(frozen=True)
class LensInfo(ModelInfo):
    """`ModelInfo` of a bridge.

    Attributes:
        attention_method: how attention statistics are computed: densely.
        weight_processing: what `enable_compatibility_mode` did: with norms folded or weights centred, activations are
            TransformerLens's and not the checkpoint's. All false for a bridge as it boots.
    """

    attention_method: str = "dense (lens)"
    weight_processing: dict[str, bool] = field(default_factory=dict)


def lens_info(bridge: Any, parts: LensParts, *, name: str | None, commit: str | None, method: str) -> LensInfo:
    """Sizes and traits of a bridge."""
    model, cfg = bridge.original_model, bridge.cfg
    config = model.config.get_text_config()
    embed = next(model.get_input_embeddings().parameters())
    return LensInfo(
        name=name or str(getattr(cfg, "model_name", None) or type(model).__name__),
        family=type(model).__name__,
        commit=commit or getattr(config, "_commit_hash", None),
        dtype=str(embed.dtype).removeprefix("torch."),
        n_layers=len(parts.blocks),
        n_heads=parts.n_heads,
        n_kv_heads=parts.n_kv_heads,
        d_model=parts.d_model,
        d_head=parts.d_head,
        d_vocab=int(embed.shape[0]),
        attention_layers=tuple(parts.attention),
        context=getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None),
        windows=tuple(sliding_window(config, layer) for layer in parts.attention),
        softcap=getattr(config, "attn_logit_softcapping", None),
        sink_logits=parts.sink_logits,
        attention_method=method,
        weight_processing=processing(bridge),
    )


def processing(bridge: Any) -> dict[str, bool]:
    """Changes to the weights since the checkpoint was loaded, as flags."""
    return {
        "compatibility_mode": bool(getattr(bridge, "compatibility_mode", False)),
        "processed": bool(getattr(bridge, "_weights_processed", False)),
        "folded_norms": bool(getattr(bridge.cfg, "layer_norm_folding", False)),
    }
