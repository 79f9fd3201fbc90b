"""circuit-tracer: config.yaml with a file a layer (transcoders), or W_enc and W_dec of each (cross-layer)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from torch import Tensor

from interp.dictionaries.activations import Activation, JumpReLU, ReLU
from interp.dictionaries.dictionary import Dictionaries, Dictionary
from interp.dictionaries.formats.folder import Folder, pick, tensors_of, value
from interp.dictionaries.formats.places import hook_site
from interp.dictionaries.formats.saelens import hook_name, write_tensors
from interp.errors import ModelLoadError, SchemaError, nearest
from interp.files import WRITER
from interp.loading.hub import fetch
from interp.sites import Site

CONFIG = "config.yaml"
THRESHOLD = "activation_function.threshold"
KINDS = ("transcoder_set", "cross_layer_transcoder")
SCOPE = {"w_enc": "W_enc", "w_dec": "W_dec", "threshold": THRESHOLD, "affine_skip_connection": "W_skip"}
"""Names of Gemma Scope 2 in files that a set lists -> those of circuit-tracer; W_enc and W_skip are transposed."""


def read(folder: Folder) -> Dictionaries:
    """Transcoders of every layer, or a cross-layer transcoder, as circuit-tracer's `load_transcoders` gives them.

    Raises:
        ModelLoadError: a kind that is not one of those here, layers missing, tensors missing or too many.
    """
    config = folder.yaml(CONFIG)
    kind = value(folder, config, "model_kind", str)
    if kind not in KINDS:
        raise ModelLoadError(f"model_kind {kind!r} of {folder}: {nearest(kind, KINDS)}")
    hooks = [value(folder, config, name, str) for name in ("feature_input_hook", "feature_output_hook")]
    members = _set(folder, config, hooks) if kind == KINDS[0] else _cross_layer(folder, hooks)
    if not members:
        raise ModelLoadError(f"{folder} has a {CONFIG} and no layers: neither layer_0 nor W_enc_0.safetensors")
    return Dictionaries(
        members, {n: x for n, x in config.items() if n not in ("transcoders", "model_kind", "written_by")}
    )


def write(
    dictionaries: Dictionaries,
    folder: str | Path,
    *,
    model_name: str = "",
    scan: str = "",
    force: bool = False,
    obsolete: Sequence[str] = (),
) -> None:
    """Write transcoders, or a cross-layer transcoder, so that circuit-tracer reads them, and `read` the same bits.

    Args:
        dictionaries: one for each layer from 0 on.
        folder: where to; made if it is not there.
        model_name: what the configuration calls the model.
        scan: what it calls the features.
        force: see `interp.files.write_folder`.
        obsolete: likewise.

    Raises:
        SchemaError: what circuit-tracer has no place for: other activations than ReLU and JumpReLU, centred or
            normalised input, layers left out, sites of several kinds, a skip across layers.
    """
    sites_in, sites_out = _one_kind(dictionaries)
    crossing = len(dictionaries) > 1 and any(d.w_dec.ndim == 3 for d in dictionaries)
    states: dict[str, dict[str, Tensor]] = {}
    for i, d in enumerate(dictionaries):
        a = d.activation
        if not isinstance(a, ReLU | JumpReLU) or d.centred or d.scaled or d.normalisation.kind != "none":
            raise SchemaError(f"circuit-tracer has no transcoder with {a.name}, or with a centred or normalised input")
        threshold = {} if isinstance(a, ReLU) else {"threshold": a.threshold}
        if crossing:
            if d.skip is not None:
                raise SchemaError("circuit-tracer's files of a cross-layer transcoder have no place for a skip")
            encoder = {"W_enc": d.w_enc.mT, "b_enc": d.b_enc, "b_dec": d.b_dec, **threshold}
            states[f"W_enc_{i}.safetensors"] = {f"{n}_{i}": x for n, x in encoder.items()}
            w_dec = d.w_dec if d.w_dec.ndim == 3 else d.w_dec[:, None]
            states[f"W_dec_{i}.safetensors"] = {f"W_dec_{i}": w_dec}
        else:
            skip = {} if d.skip is None else {"W_skip": d.skip.mT}
            state = {"W_enc": d.w_enc.mT, "W_dec": d.w_dec, "b_enc": d.b_enc, "b_dec": d.b_dec, **skip}
            states[f"layer_{i}.safetensors"] = state | ({THRESHOLD: threshold["threshold"]} if threshold else {})
    config = {**_plain(dictionaries.metadata), "model_kind": KINDS[crossing], "written_by": WRITER}
    config |= {"feature_input_hook": _hook(sites_in), "feature_output_hook": _hook(sites_out)}
    config |= {n: x for n, x in (("model_name", model_name), ("scan", scan)) if x}
    write_tensors(Path(folder), states, {CONFIG: config}, force=force, obsolete=obsolete)


def _set(folder: Folder, config: Mapping[str, Any], hooks: list[str]) -> tuple[Dictionary, ...]:
    members = []
    for layer, file in enumerate(_layers(folder, config)):
        # Gemma Scope has names of its own, and both its releases a threshold by that name and W_enc the other way
        turned = ("w_enc", "W_enc", "affine_skip_connection") if "threshold" in file else ()
        renamed = {SCOPE.get(n, n): x.mT if n in turned else x for n, x in file.items()}
        state = pick(folder, renamed, "W_enc", "W_dec", "b_enc", "b_dec", optional=("W_skip", THRESHOLD))
        site_in, site_out = (hook_site(f"blocks.{layer}.{hook}", f"{CONFIG} of {folder}") for hook in hooks)
        members.append(
            Dictionary(
                w_enc=state["W_enc"].mT.contiguous(),
                w_dec=state["W_dec"],
                b_enc=state["b_enc"],
                b_dec=state["b_dec"],
                activation=_activation(state.get(THRESHOLD)),
                site_in=site_in,
                sites_out=(site_out,),
                skip=state["W_skip"].mT.contiguous() if "W_skip" in state else None,
            )
        )
    return tuple(members)


def _layers(folder: Folder, config: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Tensors of each layer: files that the configuration lists, here or on the hub, or layer_0, layer_1 ..."""
    listed = config.get("transcoders")
    if listed is None:
        layer = 0
        while folder.file(f"layer_{layer}.safetensors") is not None:
            yield folder.tensors(f"layer_{layer}.safetensors")
            layer += 1
        return
    if not isinstance(listed, list) or not all(isinstance(x, str) for x in listed):
        raise ModelLoadError(f"transcoders in {CONFIG} of {folder} is no list of files")
    for name in listed:
        if not name.startswith("hf://"):
            if Path(name).name != name:
                raise ModelLoadError(f"{CONFIG} of {folder} names {name!r}, which is not inside the folder")
            yield folder.tensors(name)
            continue
        address = urlparse(name)
        repository, _, file = address.path.strip("/").partition("/")
        revision = (parse_qs(address.query).get("revision") or [None])[0]
        path = (
            fetch(f"{address.netloc}/{repository}", file, revision) if file.endswith((".npz", ".safetensors")) else None
        )
        if path is None:
            raise ModelLoadError(f"{CONFIG} of {folder} names {name!r}, which is not there, or no safetensors or npz")
        yield tensors_of(path)


def _cross_layer(folder: Folder, hooks: list[str]) -> tuple[Dictionary, ...]:
    encoders, layer = [], 0
    while folder.file(f"W_enc_{layer}.safetensors") is not None:
        encoders.append(folder.tensors(f"W_enc_{layer}.safetensors"))
        layer += 1
    where, n = f"{CONFIG} of {folder}", len(encoders)
    sites_in, sites_out = ([hook_site(f"blocks.{i}.{hook}", where) for i in range(n)] for hook in hooks)
    members = []
    for i, encoder in enumerate(encoders):
        names = [f"{name}_{i}" for name in ("W_enc", "b_enc", "b_dec")]
        state = pick(folder, encoder, *names, optional=(f"threshold_{i}",))
        w_dec = pick(folder, folder.tensors(f"W_dec_{i}.safetensors"), f"W_dec_{i}")[f"W_dec_{i}"]
        if w_dec.ndim != 3 or w_dec.shape[1] != n - i:
            raise ModelLoadError(
                f"W_dec_{i} of {folder} has shape {list(w_dec.shape)}; expected [feature, {n - i} layers, d_model]"
            )
        members.append(
            Dictionary(
                w_enc=state[names[0]].mT.contiguous(),
                w_dec=w_dec,
                b_enc=state[names[1]],
                b_dec=state[names[2]],
                activation=_activation(state.get(f"threshold_{i}")),
                site_in=sites_in[i],
                sites_out=tuple(sites_out[i:]),
            )
        )
    return tuple(members)


def _activation(threshold: Tensor | None) -> Activation:
    return ReLU() if threshold is None else JumpReLU(threshold.reshape(-1), rectify=False)


def _one_kind(dictionaries: Dictionaries) -> tuple[list[Site], list[Site]]:
    """Sites that members read and first write to, by layer."""
    firsts = [d.site_in for d in dictionaries if d.site_in is not None]
    lasts = [d.sites_out[0] for d in dictionaries]
    crossing = any(d.w_dec.ndim == 3 for d in dictionaries)
    for i, (site_in, site_out) in enumerate(zip(firsts, lasts, strict=True)):
        kinds = (site_in.kind, site_out.kind) == (firsts[0].kind, lasts[0].kind)
        if not kinds or site_in.first != i or site_out.first != i or site_in.head is not None:
            raise SchemaError(f"circuit-tracer has one transcoder a layer from 0 on; number {i} is of {site_in}")
        if crossing and dictionaries[i].sites_out != tuple(lasts[i:]):
            raise SchemaError("circuit-tracer's cross-layer transcoder writes to every later layer")
    return firsts, lasts


def _hook(sites: list[Site]) -> str:
    return hook_name(sites[0]).removeprefix("blocks.0.")


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {n: x for n, x in metadata.items() if isinstance(x, str | int | float | bool | list | None)}
