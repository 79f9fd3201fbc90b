"""Dictionaries made for a model: principal directions of its activations, which explain a known part of them."""

from __future__ import annotations

import json

import torch

import interp
from interp.dictionaries import Dictionaries, Dictionary, ReLU
from interp.sites import Site


def random_dictionary(site, *outs, d_in=64, d_out=64, n=24, seed=0, **options):
    """A dictionary of random parameters; with several `outs`, a decoder for each."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) / 4

    sites = tuple(map(Site.parse, outs or (site,)))
    shape = (n, d_out) if len(sites) == 1 else (n, len(sites), d_out)
    options = {"activation": ReLU(), **options}
    return Dictionary(
        draw(d_in, n), draw(*shape), draw(n), draw(d_out), site_in=Site.parse(site), sites_out=sites, **options
    )


def transcoders(n_layers=2):
    """A cross-layer transcoder: each layer reads its MLP's input and writes to its MLP's output and all later ones."""
    outs = [f"L{layer}.mlp_out" for layer in range(n_layers)]
    return Dictionaries(
        tuple(random_dictionary(f"L{i}.mlp_in", *outs[i:], seed=i) for i in range(n_layers)),
    )


def principal(model: interp.Model, site, tokens, rank, *, normalised=False):
    """(W_enc, W_dec, b_enc, b_dec) of the 2 `rank` signed principal directions of a site's activations, ReLU."""
    x = model.run(tokens, capture=[site])[site][:, 1:].flatten(0, 1)
    if normalised:
        x = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
    mean = x.mean(0)
    _, _, v = torch.linalg.svd(x - mean, full_matrices=False)
    w = torch.cat([v[:rank], -v[:rank]]).mT.contiguous()
    return w, w.mT.contiguous(), torch.zeros(2 * rank), mean


def save_learned(folder, w_enc, w_dec, b_enc, b_dec, *, site="resid_post_layer_0", k=None, **claims):
    """A folder of dictionary_learning that holds these parameters, with an evaluation that claims something."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "encoder.weight": w_enc.mT.contiguous(),
        "encoder.bias": b_enc,
        "decoder.weight": w_dec.mT.contiguous(),
        "b_dec": b_dec,
        "k": torch.tensor(k or len(b_enc)),
        "threshold": torch.tensor(-1.0),
    }
    torch.save(state, folder / "ae.pt")
    trainer = {"dict_class": "AutoEncoderTopK", "k": k or len(b_enc), "submodule_name": site}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    (folder / "eval_results.json").write_text(json.dumps(claims))
    return folder
