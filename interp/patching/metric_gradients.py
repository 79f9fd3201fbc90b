"""Gradients of each prompt's metric at sites, from one pass that is unembedded at END alone.

Only what is read at END reaches the metric: the last layer is left behind with `stop`, and the model's own head is run
on one token per prompt whose stream is put in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits import Edit
from interp.errors import TaskError
from interp.model import Start
from interp.numerics import wide
from interp.patching.case import Case
from interp.patching.readout import at_end, value_at_end
from interp.sites import Site


@dataclass(frozen=True, eq=False)
class MetricGradients:
    """The metric of each prompt, and its gradients; prompts do not see each other.

    Attributes:
        value: the metric. sites: gradient at each site, at least in float32.
        end: gradient at the stream behind the last layer at END, where alone it is not zero.
        acts: activations at the sites and at what was captured beside them, detached.
    """

    value: Float[Tensor, " batch"]
    sites: dict[Site, Tensor]
    end: Float[Tensor, "batch d_model"]
    acts: dict[Site, Tensor]


def metric_gradients(
    case: Case,
    sites: Sequence[Site],
    *,
    beside: Sequence[Site] = (),
    start: Start | None = None,
    edits: Sequence[Edit] = (),
) -> MetricGradients:
    """One forward and one backward pass on the clean prompts, from a layer on or under edits.

    Raises:
        TaskError: the metric has no gradient.
    """
    n_layers = case.model.info.n_layers
    last = Site("resid_post", n_layers - 1)
    with case.model.frozen(), torch.enable_grad():
        run = case.model.run(
            case.task.clean,
            capture=list(dict.fromkeys([*sites, *beside, last])),
            start=start,
            stop=n_layers - 1,
            edits=edits,
            gradients=True,
        )
        end = at_end(case, run.acts[last])
        value = value_at_end(case, end, gradients=True)
        if not value.requires_grad:
            raise TaskError(f"{case.metric} has no gradient: attribution needs a metric that follows the logits")
        # a slot that nothing reads (the keys of a lone token) is not used: its gradient is zero
        slopes = torch.autograd.grad(
            value.sum(), [end, *(run.acts[s] for s in sites)], allow_unused=True, materialize_grads=True
        )
    acts = {site: x.detach() for site, x in run.acts.items() if site != last or last in beside}
    by_site = {site: wide(g.detach()) for site, g in zip(sites, slopes[1:], strict=True)}
    return MetricGradients(value.detach(), by_site, wide(slopes[0].detach()), acts)
