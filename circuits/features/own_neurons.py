"""Neurons and coordinates as dictionaries: what a model has of its own, complete, so that nothing is left over."""

from __future__ import annotations

import torch

from interp.dictionaries import Dictionaries, Dictionary, JumpReLU
from interp.errors import NotApplicable
from interp.model import Model
from interp.sites import Site

NO_THRESHOLD = -1e30


def neurons(model: Model) -> Dictionaries:
    """Each MLP's neurons as features: f = mlp_post, read as they stand, written by the output projection.

    In an attribution graph a neuron's gate is held: of a gated MLP f(gate), of another f(x) / x. The error is 0.

    Raises:
        NotApplicable: an MLP without one set of neurons (experts), or with a norm behind it.
    """
    members = []
    for i in range(model.info.n_layers):
        write = model.writes(i).mlp
        if write is None or write.norm is not None:
            why = model.writes(i).missing.get("mlp_post", "a norm stands behind its MLP")
            raise NotApplicable(f"layer {i} has no neurons that write linearly: {why}; give a dictionary")
        with model.resting():  # edits may be of later tokens than this one
            width = model.run([0], capture=[Site("mlp_post", i)], stop=i)[Site("mlp_post", i)].shape[-1]
        matrix = write.matrix(width).detach()
        bias = write.bias(width, torch.ones(1, device=matrix.device)).detach().reshape(-1)
        identity, zero = torch.eye(width, device=matrix.device), torch.zeros(width, device=matrix.device)
        activation = JumpReLU(zero + NO_THRESHOLD, rectify=False)
        members.append(Dictionary(identity, matrix, zero, bias, activation).at(Site("mlp_post", i), Site("mlp_out", i)))
    return Dictionaries(tuple(members))


def coordinates(model: Model) -> Dictionaries:
    """Coordinates as features, f = x, at the output of each attention and MLP and the stream behind each layer.

    What a feature circuit is made of where no dictionary is at hand (Marks et al. call them neurons). The error is 0.
    """
    info = model.info
    sites = [Site("attn_out", i) for i in info.attention_layers]
    sites += [Site("mlp_out", i) for i in range(info.n_layers) if "mlp_out" not in model.reads(i).missing]
    sites += [Site("resid_post", i) for i in range(info.n_layers)]
    identity = torch.eye(info.d_model, device=model.device)
    zero = torch.zeros(info.d_model, device=model.device)
    one = Dictionary(identity, identity, zero, zero, JumpReLU(zero + NO_THRESHOLD, rectify=False))
    return Dictionaries(tuple(one.at(site) for site in sites))
