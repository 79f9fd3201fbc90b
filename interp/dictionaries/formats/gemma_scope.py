"""Gemma Scope: params.npz, whose path alone says layer and L0; its successor: params.safetensors, config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from interp.dictionaries.activations import JumpReLU
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.formats.folder import Folder, pick
from interp.dictionaries.formats.places import hook_point
from interp.errors import ModelLoadError
from interp.sites import Site

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"
LAYER = re.compile(r"(?:^|[/_])layer_(\d+)(?=[/_]|$)")
WIDTH = re.compile(r"width_(\d+)([km]?)(?=[/_]|$)")
L0 = re.compile(r"average_l0_(\d+)")
KINDS = {
    r"-res(/|$)|resid_post": "resid_post",
    r"-mlp(/|$)|mlp_out": "mlp_out",
    r"-att(/|$)|attn_out": "z",
    r"transcoder": "mlp_in",
}
"""What a path has in it -> what the dictionary reads."""
NAMES = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")


def read_first(folder: Folder) -> Dictionary:
    """Of Gemma Scope: W_enc [d_in feature] and so on, JumpReLU, in a folder layer_20/width_16k/average_l0_71.

    Raises:
        ModelLoadError: arrays missing or too many; a width that is not the path's.
    """
    state = {name.lower(): x for name, x in folder.tensors(FIRST).items()}
    state = pick(folder, state, *NAMES, optional=("scaling_factor",))
    if "scaling_factor" in state and bool((state["scaling_factor"] != 1).any()):
        raise ModelLoadError(f"{folder} has a scaling_factor other than 1, for which no convention is known here")
    _check_width(folder, state["w_enc"])
    claim = L0.search(folder.name)
    return Dictionary(**_parts(state, _sites(folder)), claims={} if claim is None else {"l0": float(claim[1])})


def _parts(state: Mapping[str, Tensor], sites: tuple[Site | None, tuple[Site, ...]]) -> dict[str, Any]:
    """What both releases call alike."""
    tensors = {name: state[name] for name in ("w_enc", "w_dec", "b_enc", "b_dec")}
    return {**tensors, "activation": JumpReLU(state["threshold"]), "site_in": sites[0], "sites_out": sites[1]}


def read_second(folder: Folder) -> Dictionary:
    """Of Gemma Scope 2: the same names, an affine skip connection [d_in d_out] where there is one, sites by module.

    Raises:
        ModelLoadError: an architecture other than jump_relu, or sites that are not known here.
    """
    config = folder.json(CONFIG)
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise ModelLoadError(f"architecture {config['architecture']!r} of {folder}: only jump_relu is known here")
    state = folder.tensors(folder.only or SECOND)
    affine = "affine_skip_connection"
    state = pick(folder, state, *NAMES, optional=(affine,))
    if bool(config.get("affine_connection")) is not (affine in state) and "affine_connection" in config:
        raise ModelLoadError(f"{folder}: {CONFIG} says affine_connection {config['affine_connection']}, the file not")
    return Dictionary(
        **_parts(state, _configured(folder, config)),
        skip=state.get(affine),
        claims={"l0": float(config["l0"])} if isinstance(config.get("l0"), int | float) else {},
        metadata={"model_name": config["model_name"]} if "model_name" in config else {},
    )


def _sites(folder: Folder) -> tuple[Site | None, tuple[Site, ...]]:
    """By the path: its layer, and the kind by the repository's name."""
    layer = LAYER.search(folder.name)
    kind = next((kind for pattern, kind in KINDS.items() if re.search(pattern, folder.name)), None)
    if layer is None or kind is None:
        return None, ()
    site = Site(kind, int(layer[1]))
    return site, (Site("mlp_out", site.first),) if kind == "mlp_in" else (site,)


def _configured(folder: Folder, config: Mapping[str, Any]) -> tuple[Site | None, tuple[Site, ...]]:
    first, last = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    if first is None:
        return _sites(folder)
    site = hook_point(str(first), f"{CONFIG} of {folder}")
    return site, (site if last is None else hook_point(str(last), f"{CONFIG} of {folder}"),)


def _check_width(folder: Folder, w_enc: Tensor) -> None:
    width = WIDTH.search(folder.name)
    if width is None or w_enc.ndim != 2:
        return
    stated = int(width[1]) * {"": 1, "k": 2**10, "m": 2**20}[width[2]]
    if not 0.9 <= w_enc.shape[1] / stated <= 1.1:  # 65k and 131k are rounded
        raise ModelLoadError(f"{folder} is named {width[0]}, and w_enc has {w_enc.shape[1]} features")
