"""Gradients of a metric at sites, at weights, and at attention probabilities of pairs without storing a pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.attention import Pairs
from interp.batch import Prompts
from interp.edits import Edit
from interp.errors import SiteError, TaskError
from interp.model import Model
from interp.shapes import brief
from interp.sites import DIVISORS, Site
from interp.weights.changes import Matrix, WeightMatrices

Metric = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Gradients:
    """The metric of each prompt, its gradient at each site, and the activations there.

    Prompts do not see each other, so row b of a gradient is that of prompt b's own value.
    """

    value: Float[Tensor, " batch"]
    grads: dict[Site, Tensor]
    acts: dict[Site, Tensor]

    __repr__ = brief

    def __getitem__(self, site: Site | str) -> Tensor:
        """Gradient at one site: `gradients["L3.z"]`."""
        key = Site.parse(site) if isinstance(site, str) else site
        if key not in self.grads:
            raise SiteError(f"no gradient was taken at {str(key)!r}; there are {', '.join(map(str, self.grads))}")
        return self.grads[key]


def gradients(
    model: Model, tokens: Prompts, metric: Metric, sites: Sequence[Site | str], *, edits: Sequence[Edit] = ()
) -> Gradients:
    """d metric_b / d x for every site x, each of the shape of the activation.

    A site's gradient is total: through everything that reads it. A site stands where it is captured; where two are one
    (resid_post of a layer and resid_pre of the next), each has the gradient of the whole. The gradient at a pattern is
    with respect to the probabilities as they are, without the constraint that rows sum to one.

    Args:
        model: any backend that can run with gradients.
        tokens: prompts.
        metric: logits [batch pos d_vocab] -> one value per prompt.
        sites: where; heads and positions are narrowed as in captures.
        edits: applied in the same run.

    Raises:
        TaskError: the metric does not give one value per prompt, or does not depend on the logits.
        SiteError: a site that is read off and not passed on (the divisor of a norm).
    """
    run = model.run(tokens, capture=sites, edits=edits, gradients=True)
    value = _value(metric, run.logits, len(model.batch(tokens).ids))
    for site in run.acts:
        if site.kind in DIVISORS:
            raise SiteError(f"{site}: the divisor of a norm is read off and not passed on, so there is no gradient")
    # what an edit has cut off from the logits is not used: its gradient is zero
    grads = torch.autograd.grad(value.sum(), list(run.acts.values()), allow_unused=True, materialize_grads=True)
    acts = {site: x.detach() for site, x in run.acts.items()}
    return Gradients(value.detach(), dict(zip(acts, grads, strict=True)), acts)


def pair_gradients(
    model: Model,
    tokens: Prompts,
    metric: Metric,
    pairs: Pairs,
    *,
    layers: Sequence[int] | None = None,
    edits: Sequence[Edit] = (),
) -> Float[Tensor, "layer head pair"]:
    """d metric / d p_ij = (d metric / d z_i) . v_j for chosen (prompt, query, key), every head; O(pairs * d).

    The row for each layer with attention, or for each of `layers`. Exact as long as the pattern of these layers is not
    edited.
    """
    layers = model.info.attention_layers if layers is None else tuple(layers)
    sites = [Site(kind, layer) for layer in layers for kind in ("z", "v")]
    run = model.run(tokens, capture=sites, edits=edits, gradients=True)
    value = _value(metric, run.logits, len(model.batch(tokens).ids))
    grads = torch.autograd.grad(value.sum(), [run.acts[Site("z", layer)] for layer in layers])
    group = model.info.n_heads // model.info.n_kv_heads
    rows = []
    for layer, grad in zip(layers, grads, strict=True):
        b, i, j = (index.to(grad.device) for index in (pairs.batch, pairs.query, pairs.key))
        v = run.acts[Site("v", layer)].detach()[b, j].repeat_interleave(group, dim=1)  # pair head d
        rows.append((grad[b, i] * v).sum(-1).T)
    return torch.stack(rows)


def weight_gradients(
    model: Model,
    tokens: Prompts,
    metric: Metric,
    matrices: WeightMatrices,
    *,
    names: Sequence[Matrix] | None = None,
    changes: Mapping[Matrix, Float[Tensor, "..."]] | None = None,
    edits: Sequence[Edit] = (),
) -> tuple[Float[Tensor, " batch"], dict[Matrix, Float[Tensor, "..."]]]:
    """The metric of each prompt, and the gradient of their sum with respect to matrices: d sum_b metric_b / d W.

    Matrices are as `Weights` has them: W_Q [head d_model d_head] of the normalised input, whatever the model stores. A
    head's W_K and W_V are those of its key-value group. No parameter is touched, nor need any take a gradient.

    Args:
        model: any backend that can run with gradients.
        tokens: prompts.
        metric: logits [batch pos d_vocab] -> one value per prompt.
        matrices: of the model, made for prompts as long as these.
        names: (layer, name) of some; None: all that there are.
        changes: added to matrices, so that the gradient is taken there.
        edits: applied in the same run.

    Raises:
        TaskError: the metric does not give one value per prompt, or does not depend on the logits.
        SiteError: a matrix that there is none of, or a prompt longer than `matrices` are made for.
    """
    leaves = matrices.zeros(names)
    for name, change in (changes or {}).items():
        leaves[name] = leaves.get(name, torch.zeros_like(change)) + change.detach()
    own = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    with model.frozen():
        run = model.run(tokens, edits=[*edits, *matrices.edits(own)], gradients=True)
        value = _value(metric, run.logits, len(model.batch(tokens).ids))
        grads = torch.autograd.grad(value.sum(), list(own.values()), allow_unused=True, materialize_grads=True)
    wanted = own if names is None else names
    return value.detach(), {name: grad for name, grad in zip(own, grads, strict=True) if name in set(wanted)}


def _value(metric: Metric, logits: Tensor | None, batch: int) -> Float[Tensor, " batch"]:
    assert logits is not None  # the run has no `stop`
    value = metric(logits)
    if tuple(value.shape) != (batch,):
        raise TaskError(f"the metric gave shape {tuple(value.shape)}; expected one value per prompt, ({batch},)")
    if not value.requires_grad:
        raise TaskError("the metric does not depend on the logits in a way that has a gradient")
    return value
