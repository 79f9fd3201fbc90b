"""dictionary_learning (Marks, Karvonen, Mueller): config.json and ae.pt, a pickle that torch opens as tensors alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from interp.dictionaries.activations import BatchTopK, Gated, JumpReLU, TopK
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.formats.folder import Folder, pick, value
from interp.errors import ModelLoadError, nearest
from interp.sites import Site

CONFIG, WEIGHTS, EVALUATION = "config.json", "ae.pt", "eval_results.json"
SUBMODULE = re.compile(r"^(resid_post|resid|attn|attention|mlp)(?:_out)?_layer_?(\d+)$")
KINDS = {
    "resid_post": "resid_post",
    "resid": "resid_post",
    "attn": "attn_out",
    "attention": "attn_out",
    "mlp": "mlp_out",
}
CLAIMS = {"l0": "l0", "frac_variance_explained": "fve", "frac_recovered": "loss_recovered"}
ENCODER = ("encoder.weight", "decoder.weight")


def read(folder: Folder) -> Dictionary:
    """A dictionary of dictionary_learning, as `load_dictionary` of that package gives it.

    Raises:
        ModelLoadError: a class that is not one of those here, tensors that are missing, or a pickle with objects in it.
    """
    config = folder.json(CONFIG).get("trainer", {})
    if not isinstance(config, Mapping):
        raise ModelLoadError(f"{CONFIG} of {folder} has no trainer: not written by dictionary_learning")
    name = value(folder, config, "dict_class", str)
    if name not in CLASSES:
        raise ModelLoadError(f"dict_class {name!r} of {folder}: {nearest(name, CLASSES)}")
    state = folder.tensors(WEIGHTS)
    scalars = {n: state.pop(n) for n in ("k", "group_sizes") if n in state}
    k = int(scalars["k"]) if "k" in scalars else config.get("k")
    parts = CLASSES[name](folder, state, k)
    site = _site(config)
    evaluation = folder.json(EVALUATION)
    return Dictionary(
        **parts,
        site_in=site,
        sites_out=() if site is None else (site,),
        claims={ours: float(x) for n, ours in CLAIMS.items() if isinstance(x := evaluation.get(n), int | float)},
        metadata=dict(config),
    )


def _linear(folder: Folder, state: Mapping[str, Tensor], k: int | None) -> dict[str, Any]:
    """AutoEncoder: f = max((x - b) W_enc + b_enc, 0), decoders brought to length 1 and features to match."""
    s = pick(folder, state, *ENCODER, "encoder.bias", "bias")
    length = s["decoder.weight"].norm(dim=0)
    return {
        "w_enc": (s["encoder.weight"] * length[:, None]).mT.contiguous(),
        "w_dec": (s["decoder.weight"] / length).mT.contiguous(),
        "b_enc": s["encoder.bias"] * length,
        "b_dec": s["bias"],
        "centred": True,
    }


def _linear_new(folder: Folder, state: Mapping[str, Tensor], k: int | None) -> dict[str, Any]:
    s = pick(folder, state, *ENCODER, "encoder.bias", "decoder.bias")
    return _both(s, s["encoder.bias"], s["decoder.bias"])


def _gated(folder: Folder, state: Mapping[str, Tensor], k: int | None) -> dict[str, Any]:
    s = pick(folder, state, *ENCODER, "decoder_bias", "r_mag", "gate_bias", "mag_bias")
    gate = Gated(gate=s["gate_bias"], scale=s["r_mag"])
    return _both(s, s["mag_bias"], s["decoder_bias"]) | {"activation": gate, "centred": True}


def _top_k(folder: Folder, state: Mapping[str, Tensor], k: int | None) -> dict[str, Any]:
    s = pick(folder, state, *ENCODER, "encoder.bias", "b_dec", optional=("threshold",))
    activation = TopK(_whole(folder, k))
    return _both(s, s["encoder.bias"], s["b_dec"]) | {"activation": activation, "centred": True}


def _batch_top_k(folder: Folder, state: Mapping[str, Tensor], k: int | None) -> dict[str, Any]:
    s = pick(folder, state, *ENCODER, "encoder.bias", "b_dec", "threshold")
    activation = BatchTopK(_whole(folder, k), s["threshold"].reshape(()))
    return _both(s, s["encoder.bias"], s["b_dec"]) | {"activation": activation, "centred": True}


def _matryoshka(folder: Folder, state: Mapping[str, Tensor], k: int | None) -> dict[str, Any]:
    s = pick(folder, state, "W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    activation = BatchTopK(_whole(folder, k), s["threshold"].reshape(()))
    return _named(s) | {"activation": activation, "centred": True}


def _jump_relu(folder: Folder, state: Mapping[str, Tensor], k: int | None) -> dict[str, Any]:
    s = pick(folder, state, "W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    return _named(s) | {"activation": JumpReLU(s["threshold"])}


CLASSES: dict[str, Callable[[Folder, Mapping[str, Tensor], int | None], dict[str, Any]]] = {
    "AutoEncoder": _linear,
    "AutoEncoderNew": _linear_new,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jump_relu,
}
"""Class that the configuration names -> what is made of its state."""


def _both(s: Mapping[str, Tensor], b_enc: Tensor, b_dec: Tensor) -> dict[str, Any]:
    """Linear layers hold their matrices transposed."""
    return {
        "w_enc": s["encoder.weight"].mT.contiguous(),
        "w_dec": s["decoder.weight"].mT.contiguous(),
        "b_enc": b_enc,
        "b_dec": b_dec,
    }


def _named(s: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"w_enc": s["W_enc"], "w_dec": s["W_dec"], "b_enc": s["b_enc"], "b_dec": s["b_dec"]}


def _whole(folder: Folder, k: Any) -> int:
    if not isinstance(k, int) or isinstance(k, bool):
        raise ModelLoadError(f"k of {folder} is {k!r:.40}; expected a whole number")
    return k


def _site(config: Mapping[str, Any]) -> Site | None:
    """By submodule_name (resid_post_layer_3); None where it says nothing that is known."""
    match = SUBMODULE.match(str(config.get("submodule_name") or ""))
    return None if match is None else Site(KINDS[match[1]], int(match[2]))
