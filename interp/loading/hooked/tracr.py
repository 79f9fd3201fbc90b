"""Programs that Tracr compiled: their config and tensors (haiku's names) in the HookedTransformer layout, and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from interp.errors import ModelLoadError

SIZES = {"n_layers": "num_layers", "n_heads": "num_heads", "d_head": "key_size", "d_mlp": "mlp_hidden_size"}
TRACR = ("num_layers", "num_heads", "key_size", "mlp_hidden_size", "input_encoding")
BOS, PAD, UNKNOWN = "BOS", "compiler_pad", "_"


def is_tracr(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a compiled program."""
    return all(name in config for name in TRACR)


def tracr_options(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The program's sizes as options of a HookedTransformer.

    Raises:
        ModelLoadError: tensors missing that sizes are read off, or a program with norms.
    """
    if config.get("layer_norm"):
        raise ModelLoadError("a Tracr program with layer_norm true cannot be carried out: Tracr itself compiles none")
    tables = {name: _tensor(state, name) for name in ("token_embed/embeddings", "pos_embed/embeddings", "unembed/w")}
    vocab, n_ctx, d_out = tables["token_embed/embeddings"], tables["pos_embed/embeddings"], tables["unembed/w"]
    return {
        **{name: config[theirs] for name, theirs in SIZES.items()},
        "d_model": config.get("d_model", vocab.shape[-1]),
        "d_vocab": vocab.shape[0],
        "n_ctx": n_ctx.shape[0],
        "d_vocab_out": d_out.shape[-1],
        "act_fn": config.get("activation", "relu"),
        "normalization_type": None,
        "attention_dir": "causal" if config.get("causal") else "bidirectional",
    }


def tracr_state(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The program's tensors by the HookedTransformer layout's names.

    Raises:
        ModelLoadError: a tensor that is missing, has another shape, or no place.
    """
    n, d_head, d = (options[name] for name in ("n_heads", "d_head", "d_model"))
    left = dict(state)
    out = {
        "embed.W_E": left.pop("token_embed/embeddings"),
        "pos_embed.W_pos": left.pop("pos_embed/embeddings"),
        "unembed.W_U": left.pop("unembed/w"),
        "unembed.b_U": left.pop("unembed/b", torch.zeros(options["d_vocab_out"])),
    }
    for layer in range(options["n_layers"]):
        at, to = f"transformer/layer_{layer}/", f"blocks.{layer}."
        for name, theirs in (("Q", "query"), ("K", "key"), ("V", "value")):
            weight = _take(left, f"{at}attn/{theirs}/w", (d, n * d_head))
            out[f"{to}attn.W_{name}"] = weight.unflatten(1, (n, d_head)).transpose(0, 1)
            out[f"{to}attn.b_{name}"] = _take(left, f"{at}attn/{theirs}/b", (n * d_head,)).unflatten(0, (n, d_head))
        out[f"{to}attn.W_O"] = _take(left, f"{at}attn/linear/w", (n * d_head, d)).unflatten(0, (n, d_head))
        out[f"{to}attn.b_O"] = _take(left, f"{at}attn/linear/b", (d,))
        for name, theirs in (("in", "linear_1"), ("out", "linear_2")):
            for kind, letter in (("w", "W"), ("b", "b")):
                out[f"{to}mlp.{letter}_{name}"] = _take(left, f"{at}mlp/{theirs}/{kind}")
    if left:
        raise ModelLoadError(f"tensor {min(left)!r} has no place in a Tracr program of {options['n_layers']} layers")
    return out


def tracr_tokenizer(config: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The program's words, separated by spaces, behind its BOS.

    A word that it does not know is `_`, which programs keep for what is no word, or else `compiler_pad`.

    Raises:
        ModelLoadError: an encoding without BOS and `compiler_pad`.
    """
    words: dict[str, int] = dict(config["input_encoding"])
    if BOS not in words or PAD not in words:
        raise ModelLoadError(f"the input_encoding of a Tracr program needs {BOS!r} and {PAD!r}; it has {sorted(words)}")
    unknown = UNKNOWN if UNKNOWN in words else PAD
    backend = Tokenizer(WordLevel(words, unk_token=unknown))
    backend.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]  # the stubs know no setter
    backend.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, words[BOS])])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, pad_token=PAD, unk_token=unknown)


def tracr_words(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ids that the program sets apart and what its logits stand for, for the decoder's config."""
    encoding = config["input_encoding"]
    words = config.get("output_encoding")
    ordered = None if words is None else sorted(words, key=lambda word: words[word])
    return {"bos_token_id": encoding.get(BOS), "pad_token_id": encoding.get(PAD), "output_words": ordered}


def _tensor(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state or state[name].ndim != 2:
        raise ModelLoadError(f"tensor {name!r} of the Tracr program is missing, or no matrix")
    return state[name]


def _take(left: dict[str, Tensor], name: str, shape: tuple[int, ...] | None = None) -> Tensor:
    if name not in left:
        raise ModelLoadError(f"tensor {name!r} of the Tracr program is missing")
    tensor = left.pop(name)
    if shape is not None and tuple(tensor.shape) != shape:
        raise ModelLoadError(f"tensor {name!r} has shape {list(tensor.shape)}, and the config says {list(shape)}")
    return tensor
