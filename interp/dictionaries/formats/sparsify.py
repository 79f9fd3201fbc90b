"""sparsify (EleutherAI): cfg.json and sae.safetensors in a folder that is named like the module it is of."""

from __future__ import annotations

from interp.dictionaries.activations import GroupMax, TopK
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.formats.folder import Folder, pick, value
from interp.dictionaries.formats.places import module_output
from interp.errors import ModelLoadError, nearest
from interp.sites import Site

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
ACTIVATIONS = {"topk": TopK, "groupmax": GroupMax}


def read(folder: Folder) -> Dictionary:
    """A sparse coder of sparsify: encoder.weight [feature d_in], W_dec [feature d_out], not transposed.

    Raises:
        ModelLoadError: an activation that is not one of those here; sizes that are not those of the configuration.
    """
    config = folder.json(CONFIG)
    skip = bool(config.get("skip_connection", False))
    names = ("encoder.weight", "encoder.bias", "W_dec", "b_dec", *(("W_skip",) if skip else ()))
    state = pick(folder, folder.tensors(WEIGHTS), *names)
    d_in = value(folder, config, "d_in", int)
    n = config.get("num_latents") or d_in * value(folder, config, "expansion_factor", int)
    if tuple(state["encoder.weight"].shape) != (n, d_in):
        raise ModelLoadError(
            f"{folder}: {CONFIG} says {n} latents of {d_in}, and encoder.weight has shape "
            f"{list(state['encoder.weight'].shape)}"
        )
    kind = value(folder, config, "activation", str, "topk")
    if kind not in ACTIVATIONS:
        raise ModelLoadError(f"activation {kind!r} of {folder}: {nearest(kind, ACTIVATIONS)}")
    transcoder = bool(config.get("transcode", False))
    site_in, sites_out = _sites(folder, transcoder)
    return Dictionary(
        w_enc=state["encoder.weight"].mT.contiguous(),
        w_dec=state["W_dec"],
        b_enc=state["encoder.bias"],
        b_dec=state["b_dec"],
        activation=ACTIVATIONS[kind](value(folder, config, "k", int)),
        site_in=site_in,
        sites_out=sites_out,
        centred=not transcoder,
        skip=state["W_skip"].mT.contiguous() if skip else None,
        metadata={n: x for n, x in config.items() if n not in ("d_in", "num_latents", "k", "activation")},
    )


def _sites(folder: Folder, transcoder: bool) -> tuple[Site | None, tuple[Site, ...]]:
    """By the folder's name: layers.3 is what layer 3 gives; a transcoder of layers.3.mlp reads what that takes."""
    place = module_output(folder.name.rstrip("/").split("/")[-1])
    if place is None:
        return None, ()
    layer, kind = place
    out = Site(kind, layer)
    if not transcoder:
        return out, (out,)
    inputs = {"mlp_out": "mlp_in", "resid_post": "resid_pre"}
    return (Site(inputs[kind], layer), (out,)) if kind in inputs else (None, ())
