"""SAELens: cfg.json (of release 6, or the flat one before) and sae_weights.safetensors; read and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.dictionaries.activations import Activation, BatchTopK, Gated, JumpReLU, Normalisation, ReLU, TopK
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.formats.folder import Folder, pick, value
from interp.dictionaries.formats.places import hook_site
from interp.errors import ModelLoadError, SchemaError, nearest
from interp.files import WRITER, write_files
from interp.sites import PER_HEAD, Site

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
ARCHITECTURES = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "batchtopk": ("b_enc", "topk_threshold"),
    "transcoder": ("b_enc",),
    "skip_transcoder": ("b_enc", "W_skip"),
    "jumprelu_transcoder": ("b_enc", "threshold"),
    "jumprelu_skip_transcoder": ("b_enc", "threshold", "W_skip"),
}
"""Architecture -> its tensors beside W_enc, W_dec and b_dec."""
NORMALISATIONS = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
    "expected_average_only_in": "scale",
}
RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
OWN = set(
    """
    d_in d_sae d_out dtype device apply_b_dec_to_input normalize_activations architecture k reshape_activations
    rescale_acts_by_decoder_norm activation_fn activation_fn_kwargs finetuning_scaling_factor
    hook_name hook_name_out hook_head_index hook_head_index_out hook_layer sae_lens_version written_by
    """.split()
)
"""Entries that are said by the dictionary itself."""


def read(folder: Folder) -> Dictionary:
    """A dictionary of SAELens.

    Raises:
        ModelLoadError: an architecture, activation or normalisation that is not one of those here; tensors that are
            missing or too many.
    """
    config = _flat(folder.json(CONFIG))
    kind = value(folder, config, "architecture", str, "standard")
    if kind not in ARCHITECTURES:
        raise ModelLoadError(f"architecture {kind!r} of {folder}: {nearest(kind, ARCHITECTURES)}")
    state = pick(folder, folder.tensors(WEIGHTS), "W_enc", "W_dec", "b_dec", *ARCHITECTURES[kind])
    for name, axis in (("d_in", 0), ("d_sae", 1)):
        size = value(folder, config, name, int)
        if state["W_enc"].ndim == 2 and state["W_enc"].shape[axis] != size:
            raise ModelLoadError(
                f"{folder}: {CONFIG} says {name} {size}, and W_enc has shape {list(state['W_enc'].shape)}"
            )
    transcoder = "transcoder" in kind
    site_in, sites_out = _sites(folder, config, transcoder)
    centred = bool(config.get("apply_b_dec_to_input", True))
    if transcoder and centred:
        raise ModelLoadError(f"{folder}: apply_b_dec_to_input is true, and a transcoder's b_dec is of its output")
    return Dictionary(
        w_enc=state["W_enc"],
        w_dec=state["W_dec"],
        b_enc=state["b_mag" if kind == "gated" else "b_enc"],
        b_dec=state["b_dec"],
        activation=_activation(folder, config, kind, state),
        site_in=site_in,
        sites_out=sites_out,
        normalisation=_normalisation(folder, config, undo=not transcoder),
        centred=centred,
        scaled=bool(config.get("rescale_acts_by_decoder_norm", False)),
        skip=state["W_skip"].mT.contiguous() if "W_skip" in state else None,
        claims=_claims(folder, state["W_enc"].shape[-1]),
        metadata={n: x for n, x in config.items() if n not in OWN},
    )


def write(dictionary: Dictionary, folder: str | Path, *, force: bool = False, obsolete: Sequence[str] = ()) -> None:
    """Write a dictionary so that SAELens 6 reads it, and `read` gives the same numbers, bit by bit.

    A BatchTopK dictionary is written as JumpReLU with its threshold for every feature, as SAELens does it. `force` and
    `obsolete`: see `interp.files.write_folder`.

    Raises:
        SchemaError: what SAELens has no place for; see `contents`.
        InterpError: the folder cannot be written, or holds what is not ours.
    """
    write_tensors(Path(folder), *contents(dictionary), force=force, obsolete=obsolete)


def contents(dictionary: Dictionary) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
    """Tensors and configuration of a dictionary as SAELens has them, each by the name of its file.

    Raises:
        SchemaError: what SAELens has no place for: several sites to write to, GroupMax, a scale (`fold_scale` first),
            a normalised transcoder that undoes it.
    """
    kind, more, config = _architecture(dictionary)
    state = {"W_enc": dictionary.w_enc, "W_dec": dictionary.w_dec, "b_dec": dictionary.b_dec, **more}
    config |= {
        "architecture": kind,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.n_features,
        "dtype": str(dictionary.w_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.centred,
        "normalize_activations": {v: k for k, v in NORMALISATIONS.items()}[dictionary.normalisation.kind],
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",
            **_plain(dictionary.metadata),
            **_hooks(dictionary),
            "written_by": WRITER,
        },
    }
    site = dictionary.site_in
    if site is not None and site.kind in PER_HEAD and site.head is None:
        config["reshape_activations"] = "hook_z"
    return {WEIGHTS: state}, {CONFIG: config}


def write_tensors(
    folder: Path,
    states: Mapping[str, Mapping[str, Tensor]],
    configs: Mapping[str, Any],
    *,
    force: bool = False,
    obsolete: Sequence[str] = (),
) -> None:
    """Safetensors and configurations (JSON, which is YAML too) of a folder, all or none; see `interp.files`."""
    import json
    from functools import partial

    from safetensors.torch import save

    def content(state: Mapping[str, Tensor]) -> bytes:
        return save({n: x.detach().cpu().contiguous() for n, x in state.items()}, metadata={"writer": WRITER})

    data = {name: content(state) for name, state in states.items()}
    data |= {n: json.dumps(config, indent=1).encode() for n, config in configs.items()}
    writers = {name: partial(Path.write_bytes, data=content) for name, content in data.items()}
    write_files(folder, writers, force=force, obsolete=obsolete)


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of either generation, as one mapping with the names of release 6."""
    metadata = config.get("metadata")
    if isinstance(metadata, Mapping):
        return {**metadata, **{n: x for n, x in config.items() if n != "metadata"}}
    config = {RENAMED.get(n, n): x for n, x in config.items()}
    options = config.get("activation_fn_kwargs")
    if config.get("activation_fn") == "topk" and isinstance(options, Mapping) and "k" in options:
        config |= {"architecture": "topk", "k": options["k"]}
    return config


def _sites(folder: Folder, config: Mapping[str, Any], transcoder: bool) -> tuple[Site | None, tuple[Site, ...]]:
    def site(name: str, head: str) -> Site | None:
        hook = config.get(name)
        return None if hook is None else hook_site(str(hook), f"{CONFIG} of {folder}", head=config.get(head))

    first = site("hook_name", "hook_head_index")
    last = site("hook_name_out", "hook_head_index_out") if transcoder else first
    return first, () if last is None else (last,)


def _activation(folder: Folder, config: Mapping[str, Any], kind: str, state: Mapping[str, Tensor]) -> Activation:
    if config.get("activation_fn", "relu") not in ("relu", "topk", None):
        raise ModelLoadError(f"{folder}: activation_fn {config['activation_fn']!r} is neither relu nor topk")
    if config.get("finetuning_scaling_factor"):
        raise ModelLoadError(f"{folder}: finetuning_scaling_factor is set, which SAELens 6 reads no more; fold it in")
    if kind == "topk":
        return TopK(value(folder, config, "k", int))
    if kind == "batchtopk":
        return BatchTopK(int(value(folder, config, "k", (int, float))), state["topk_threshold"].reshape(()))  # type: ignore[arg-type]
    if "threshold" in state:
        return JumpReLU(state["threshold"])
    if kind == "gated":
        return Gated(gate=state["b_gate"], scale=state["r_mag"])
    return ReLU()


def _normalisation(folder: Folder, config: Mapping[str, Any], *, undo: bool) -> Normalisation:
    name = config.get("normalize_activations")
    if name is None or isinstance(name, bool):
        name = "expected_average_only_in" if name else "none"
    if name not in NORMALISATIONS:
        raise ModelLoadError(f"{folder}: normalize_activations {name!r}; {nearest(str(name), NORMALISATIONS)}")
    return Normalisation(NORMALISATIONS[name], undo=undo and NORMALISATIONS[name] != "none")


def _claims(folder: Folder, n_features: int) -> dict[str, float]:
    """L0 by the rates of features that SAELens keeps beside the weights, log10 of the share of tokens."""
    if folder.file(SPARSITY) is None or folder.only is not None:
        return {}
    rates = next(iter(folder.tensors(SPARSITY).values()), None)
    return {} if rates is None or rates.numel() != n_features else {"l0": float((10.0 ** rates.double()).sum())}


def _architecture(d: Dictionary) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """(architecture, tensors beside the common ones, entries of the configuration)."""
    a, more = d.activation, {"b_enc": d.b_enc}
    transcoder = d.writes_elsewhere
    if d.w_dec.ndim == 3:
        raise SchemaError("SAELens has no place for a dictionary that writes to several sites; write circuit-tracer's")
    if d.normalisation.kind != "none" and d.normalisation.undo is transcoder:
        raise SchemaError("SAELens undoes the normalisation of an autoencoder, and never that of a transcoder")
    if d.normalisation.kind == "scale" and d.normalisation.scale != 1.0:
        raise SchemaError("SAELens keeps no scale of the input; fold it into the weights first: dictionary.folded()")
    kinds: dict[type, str] = {
        ReLU: "standard",
        TopK: "topk",
        JumpReLU: "jumprelu",
        Gated: "gated",
        BatchTopK: "jumprelu",
    }
    kind = kinds.get(type(a))
    if kind is None or (transcoder and kind not in ("standard", "jumprelu")):
        raise SchemaError(f"SAELens has no {'transcoder' if transcoder else 'autoencoder'} with {a.name}")
    if d.scaled and not isinstance(a, TopK):
        raise SchemaError("SAELens has features in units of their decoder's length with topk alone")
    if isinstance(a, BatchTopK):
        if a.threshold is None:
            raise SchemaError("SAELens reads BatchTopK as JumpReLU, and this one has no threshold")
        more["threshold"] = a.threshold.to(d.b_enc).expand(d.n_features)
    elif isinstance(a, JumpReLU):
        more["threshold"] = a.threshold
    elif isinstance(a, Gated):
        more = {"b_mag": d.b_enc, "b_gate": a.gate, "r_mag": a.scale}
    config: dict[str, Any] = {"k": a.k, "rescale_acts_by_decoder_norm": d.scaled} if isinstance(a, TopK) else {}
    if transcoder:
        kind = "transcoder" if kind == "standard" else "jumprelu_transcoder"
        config["d_out"] = d.d_out
        if d.skip is not None:
            more["W_skip"] = d.skip.mT
            kind = kind.replace("transcoder", "skip_transcoder")
    return kind, more, config


def _hooks(d: Dictionary) -> dict[str, Any]:
    names = {"hook_name": d.site_in} | ({"hook_name_out": d.site_out} if d.writes_elsewhere else {})
    result: dict[str, Any] = {}
    for name, site in names.items():
        if site is not None:
            result[name] = hook_name(site)
            result |= {name.replace("name", "head_index"): site.head} if site.head is not None else {}
    return result


EMBEDDINGS = {"embed": "blocks.0.hook_resid_pre", "token_embed": "hook_embed", "pos_embed": "hook_pos_embed"}


def hook_name(site: Site) -> str:
    """TransformerLens's name of a site; the whole embedding has none but that of the first layer's input."""
    if site.kind in EMBEDDINGS:
        return EMBEDDINGS[site.kind]
    inner = {
        "z": "attn.hook_z",
        "q": "attn.hook_q",
        "k": "attn.hook_k",
        "v": "attn.hook_v",
        "head_out": "attn.hook_result",
    }
    inner |= {"mlp_in": "mlp.hook_in", "mlp_post": "mlp.hook_post"}
    rest = inner.get(site.kind, f"hook_{site.kind}")
    return rest if site.first is None else f"blocks.{site.first}.{rest}"


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {n: x for n, x in metadata.items() if isinstance(x, str | int | float | bool | list | dict | None)}
