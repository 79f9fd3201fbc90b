"""Tensors of a HookedTransformer's state dict as the parameters of a `HookedDecoder`, and what is amiss with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.errors import ModelLoadError
from interp.loading.hooked.attention import rotary_table
from interp.loading.hooked.config import HookedConfig

SHOWN = 4  # names that an error lists
COMPUTED = re.compile(r"blocks\.\d+\.attn\.(mask|IGNORE|rotary_sin|rotary_cos)$|.*\.hook_\w+$")
"""Buffers that follow from the config."""
GROUPED = re.compile(r"(blocks\.\d+\.attn\.)_([Wb]_[KV])$")
"""Names under which grouped keys and values are saved."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the layout: the parameter it becomes, its shape, and how it is turned into it."""

    parameter: str
    shape: tuple[int, ...]
    turned: Callable[[Tensor], Tensor]


def layout(config: HookedConfig) -> dict[str, Entry]:
    """Every tensor that a HookedTransformer with this config has, by name."""
    d, out, vocab = config.hidden_size, config.output_size, config.vocab_size
    entries = {
        "embed.W_E": Entry("embed.weight", (vocab, d), _same),
        "unembed.W_U": Entry("unembed.weight", (d, out), _transposed),
        "unembed.b_U": Entry("unembed.bias", (out,), _same),
    }
    if config.positions in ("standard", "shortformer"):
        entries["pos_embed.W_pos"] = Entry("pos_embed.weight", (config.max_position_embeddings, d), _same)
    if config.norm_embedding:
        entries |= _norm("embed.ln", "embed_norm", d, "LN")
    if config.norm is not None and config.norm_gains:
        entries |= _norm("ln_final", "ln_final", d, config.final_norm)
    for layer in range(config.num_hidden_layers):
        entries |= _block(config, f"blocks.{layer}.")
    return entries


def parameters(state: Mapping[str, Tensor], config: HookedConfig) -> dict[str, Tensor]:
    """State of the decoder.

    Raises:
        ModelLoadError: tensors that are missing, not of this layout, of another shape, or not floating point.
    """
    named = {GROUPED.sub(r"\1\2", name): tensor for name, tensor in state.items()}
    entries = layout(config)
    missing = [name for name in entries if name not in named]
    if missing:
        raise ModelLoadError(
            f"{_count(missing, 'tensor')} of the layout missing: {_listed(missing)}{_hint(missing, named)}"
        )
    unexpected = [name for name in named if name not in entries and not COMPUTED.match(name)]
    if unexpected:
        raise ModelLoadError(
            f"{_count(unexpected, 'tensor')} without a place in the config: {_listed(unexpected)}; correct the config"
        )
    for name, entry in entries.items():
        if tuple(named[name].shape) != entry.shape:
            raise ModelLoadError(
                f"tensor {name!r} has shape {list(named[name].shape)}, and the config says {list(entry.shape)}"
            )
        if not named[name].is_floating_point():
            raise ModelLoadError(f"tensor {name!r} is of {named[name].dtype}; floating-point weights are needed")
    _check_computed(named, config)
    return {entry.parameter: entry.turned(named[name]).contiguous() for name, entry in entries.items()}


def _block(config: HookedConfig, at: str) -> dict[str, Entry]:
    d, d_head, d_mlp = config.hidden_size, config.head_dim, config.intermediate_size
    entries = {}
    heads = {"Q": config.num_attention_heads, "K": config.num_key_value_heads, "V": config.num_key_value_heads}
    for name, n in heads.items():
        to = f"{at}attn.{name.lower()}_proj"
        entries[f"{at}attn.W_{name}"] = Entry(f"{to}.weight", (n, d, d_head), _by_head)
        entries[f"{at}attn.b_{name}"] = Entry(f"{to}.bias", (n, d_head), _flat)
    entries[f"{at}attn.W_O"] = Entry(f"{at}attn.o_proj.weight", (heads["Q"], d_head, d), _from_heads)
    entries[f"{at}attn.b_O"] = Entry(f"{at}attn.o_proj.bias", (d,), _same)
    if d_mlp:
        entries[f"{at}mlp.W_in"] = Entry(f"{at}mlp.in_proj.weight", (d, d_mlp), _transposed)
        bias = "gated_bias" if config.gated else "in_proj.bias"
        entries[f"{at}mlp.b_in"] = Entry(f"{at}mlp.{bias}", (d_mlp,), _same)
        entries[f"{at}mlp.W_out"] = Entry(f"{at}mlp.out_proj.weight", (d_mlp, d), _transposed)
        entries[f"{at}mlp.b_out"] = Entry(f"{at}mlp.out_proj.bias", (d,), _same)
        if config.gated:
            entries[f"{at}mlp.W_gate"] = Entry(f"{at}mlp.gate_proj.weight", (d, d_mlp), _transposed)
        if config.norm_neurons == "LN":
            entries |= _norm(f"{at}mlp.ln", f"{at}mlp.ln", d_mlp, "LN")
    if config.norm is not None and config.norm_gains:
        places = ["ln1", "ln2"] if d_mlp else ["ln1"]
        places += [f"{place}_post" for place in places] if config.norm_after else []
        for place in places:
            entries |= _norm(f"{at}{place}", f"{at}{place}", d, config.norm)
    return entries


def _norm(name: str, parameter: str, width: int, kind: str | None) -> dict[str, Entry]:
    gain = {f"{name}.w": Entry(f"{parameter}.weight", (width,), _same)}
    return gain | ({f"{name}.b": Entry(f"{parameter}.bias", (width,), _same)} if kind == "LN" else {})


def _same(x: Tensor) -> Tensor:
    return x


def _transposed(x: Tensor) -> Tensor:
    return x.mT


def _by_head(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)


def _from_heads(x: Tensor) -> Tensor:
    return x.flatten(0, 1).mT


def _flat(x: Tensor) -> Tensor:
    return x.flatten()


def _check_computed(named: Mapping[str, Tensor], config: HookedConfig) -> None:
    """Masks and rotary tables that the checkpoint brings along must be those that the config makes."""
    n = config.max_position_embeddings
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    for layer in range(config.num_hidden_layers):
        at = f"blocks.{layer}.attn."
        mask = named.get(f"{at}mask")
        local = config.layer_types is not None and config.layer_types[layer] == "sliding_attention"
        visible = (j <= i) & (i - j < (config.sliding_window if local and config.sliding_window else n))
        if (
            mask is not None
            and mask.numel() > 0  # late releases write an empty one, and make it when it is needed
            and config.is_causal
            and (mask.shape != visible.shape or not torch.equal(mask.bool(), visible))
        ):
            raise ModelLoadError(f"tensor '{at}mask' lets other keys be seen than the config says; correct the config")
        if config.positions != "rotary" or f"{at}rotary_sin" not in named:
            continue
        tables = rotary_table(config, torch.arange(n)[None], torch.zeros((), dtype=torch.float32))
        for name, ours in zip(("rotary_cos", "rotary_sin"), tables, strict=True):
            theirs = named.get(at + name)
            if theirs is None or theirs.shape != ours[0].shape or float((theirs.float() - ours[0]).abs().max()) > 5e-3:
                raise ModelLoadError(f"tensor '{at}{name}' holds other angles than the config says; correct the config")


def _count(names: list[str], what: str) -> str:
    return f"{len(names)} {what}{'s' * (len(names) != 1)}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _hint(missing: list[str], named: Iterable[str]) -> str:
    """What in the config may be wrong."""
    if all(".ln" in f".{name}" for name in missing):
        return '; without norms the config says normalization_type null, with folded ones "LNPre" or "RMSPre"'
    if all(".mlp." in name for name in missing):
        return "; a model without MLPs says attn_only true"
    return "; correct the config, or save the whole state dict"
