"""`jacobian_lens`: the mean Jacobian from a layer's stream to the last one's, as a map from one to the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.edits import Edit
from interp.errors import TaskError
from interp.lenses.lens import Lens, chosen_layers, constant_log_p, distances, halves, lens_data, lens_rows, streams
from interp.model import Model
from interp.results.provenance import recorded
from interp.sites import Site


@recorded
def jacobian_lens(
    model: Model,
    tokens: Prompts,
    *,
    layers: Sequence[int] | None = None,
    skip: int = 0,
    final: bool = False,
    held_out: float = 0.25,
    batch_size: int = 8,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> Lens:
    """KL(p_model || softmax(cap(W_U norm(J_l h_l)))) on held-out prompts, J_l = mean d h_last,t' / d h_l,t.

    J_l = E_prompt [1 / |V| sum_{t in V} sum_{t' in V, t' >= t} d h_last,t' / d h_l,t], V the positions of a prompt that
    count: effects on later positions are summed, sources and prompts averaged. With J_l = 1 it is the logit lens. The
    rows of W_U J_l are the directions along which a layer moves a token's logit, to first order and on average; that
    average need not be near the model's distribution, and rows say how far it is. Nothing is trained. Cost: d_model
    backward passes over each batch of prompts. Reference: Gurnee et al. 2026, "Verbalizable Representations Form a
    Global Workspace in Language Models" (transformer-circuits.pub); the formula is that of TransformerLens 4.3's
    `JacobianLens`.

    Args:
        model: any backend with gradients.
        tokens: prompts.
        layers: to be mapped; all but the last without.
        skip: first tokens of each prompt that are not in V: an attention sink has a Jacobian of its own.
        final: whether each prompt's last token is in V; TransformerLens leaves it out always.
        held_out: share of prompts that the mean is not taken over.
        batch_size: prompts of a pass.
        seed: of the split and the bootstrap.
        edits: changes under which the model runs.

    Returns:
        A `Lens` without offsets; rows as those of `tuned_lens`, variant "jacobian" beside "plain".

    Raises:
        SiteError: a layer that does not exist, or the last.
        TaskError: a prompt without a position that counts, or fewer than three prompts held out.
    """
    picked = chosen_layers(model, layers)
    train, test = halves(model, tokens, held_out, seed=seed)
    total = torch.zeros(len(picked), model.info.d_model, model.info.d_model)
    for rows in torch.arange(len(train.ids)).split(batch_size):
        part = train.select(rows)
        total += _jacobians(model, part, picked, _positions(part, skip, final))
    matrices = total / len(train.ids)
    offsets = torch.zeros(len(picked), model.info.d_model)
    constant = constant_log_p(model, streams(model, train, picked[:1], train.mask, batch_size)[-1])
    lens = Lens(picked, matrices, offsets)
    kl = distances(model, test, picked, lens, constant, batch_size=batch_size)
    facts = {"method": "jacobian-lens", "data": lens_data(train, test)}
    return Lens(picked, matrices, offsets, lens_rows("jacobian", picked, kl, seed=seed), facts)


def _positions(batch: Batch, skip: int, final: bool) -> Bool[Tensor, "batch pos"]:
    """Positions that count.

    Raises:
        TaskError: a prompt has none.
    """
    places = batch.positions
    length = batch.mask.sum(1, keepdim=True)
    inside = batch.mask & (places >= skip) & (places < length - int(not final))
    if not bool(inside.any(1).all()):
        raise TaskError(f"a prompt of {int(length.min())} tokens has no position that counts; take a smaller `skip`")
    return inside


def _jacobians(
    model: Model, batch: Batch, layers: Sequence[int], inside: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "layer d_model d_model"]:
    """Sum over prompts of their mean Jacobians: row i of each by one backward pass from channel i of the last stream.

    Prompts do not see one another, so one pass serves all; weights of 1 / |V| at the sources make it a mean for each.
    """
    last = model.info.n_layers - 1
    sites = [Site("resid_post", i) for i in layers]
    with model.frozen():
        run = model.run(batch, capture=[*sites, Site("resid_post", last)], stop=last, gradients=True)
        end = run.acts[Site("resid_post", last)]
        targets = torch.where(inside[..., None].to(end.device), end, 0.0).sum((0, 1))
        acts = [run.acts[s] for s in sites]
        weight = (inside / inside.sum(1, keepdim=True)).to(end)
        rows = []
        for i in range(len(targets)):
            grads = torch.autograd.grad(targets[i], acts, retain_graph=i + 1 < len(targets))
            rows.append(torch.stack([torch.einsum("bp,bpd->d", weight.to(g), g).float().cpu() for g in grads]))
    return torch.stack(rows, 1)
