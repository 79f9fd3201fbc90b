"""From the residual stream at END to the metric: all that has to be computed above the last layer.

The final norm, the unembedding and what the model does behind it (a multiplier, a soft-cap) are exact. Metrics that
look at the logits of right and wrong answers alone need those columns of the unembedding and no others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.decompose.head import read_head
from interp.decompose.lens import logit_edits
from interp.decompose.stream import allowed
from interp.edits import Apply
from interp.errors import BackendError, TaskError
from interp.model import Model
from interp.numerics import wide
from interp.patching.case import Case
from interp.sites import Site
from interp.tasks import metrics
from interp.weights.norms import Norm
from interp.weights.weights import Weights

BY_COLUMNS = ("logit_diff", "logit_margin")
"""Metrics of the logits of a prompt's own answers."""
PROBES = 4
"""Streams from which a multiplier or soft-cap behind the unembedding is read."""
AT_ONCE = 2**26
"""Logits made at one time."""

Head = tuple[float, float | None]
"""Multiplier and soft-cap behind the unembedding."""

_cache: WeakKeyDictionary[Weights, tuple[Norm | None, Head | None]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Exit:
    """The way out of a model.

    Attributes:
        model: whose it is. weights: its matrices. norm: the one before the unembedding.
        head: multiplier and soft-cap behind the unembedding; None where the logits are something else, and all of
            them are then computed by the model itself.
    """

    model: Model
    weights: Weights
    norm: Norm | None
    head: Head | None

    @classmethod
    def of(cls, case: Case, resid: Float[Tensor, "prompt d_model"]) -> Exit:
        """Read once per copy of the weights: `resid` are some streams behind the last layer."""
        weights = case.weights
        if weights not in _cache or logit_edits(case.model):
            norm = weights.final_norm
            outcome = norm, _head(case.model, weights, norm, resid[:PROBES])
            if logit_edits(case.model):
                return cls(case.model, weights, *outcome)
            _cache[weights] = outcome
        return cls(case.model, weights, *_cache[weights])

    def values(
        self,
        part: Case,
        resid: Float[Tensor, "*set prompt d_model"],
        *,
        divisor: Float[Tensor, "prompt 1"] | None = None,
    ) -> Float[Tensor, "*set prompt"]:
        """The metric from the stream behind the last layer at each prompt's END; sets of prompts at once.

        With a `divisor` the final norm divides by that, and a soft-cap is left out: the metric is then linear in the
        stream where it is linear in the logits.

        Raises:
            TaskError: a divisor with a metric that is not of the answers' logits alone, or with unknown logits.
        """
        sets = resid.reshape(-1, *resid.shape[-2:])
        by_columns = part.metric in BY_COLUMNS and self.head is not None
        if divisor is not None and not by_columns:
            raise TaskError(f"a frozen norm needs a metric among {', '.join(BY_COLUMNS)}; got {part.metric!r}")
        metric_values = (
            self._by_columns(part, sets, divisor) if by_columns else torch.cat(list(self._by_all(part, sets)))
        )
        return metric_values.reshape(resid.shape[:-1])

    def divisor(self, resid: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "prompt 1"]:
        """What the final norm divides by; ones without a norm."""
        return torch.ones_like(resid[:, :1]) if self.norm is None else self.norm.divisor(wide(resid))

    def _by_columns(self, part: Case, sets: Tensor, divisor: Tensor | None) -> Float[Tensor, "set prompt"]:
        assert self.head is not None  # asked before
        task, source = part.task, self.weights.source
        ids = torch.cat([task.answers, task.wrong], 1)
        at = ids.clamp(min=0)
        columns = source.columns(at.flatten().cpu()).unflatten(0, at.shape).to(sets.device)
        bias = source.b_u[at.cpu()].to(sets.device)
        x, norm = wide(sets), self.norm
        if norm is not None:
            norm = norm.to(sets.device)
            x = norm(x) if divisor is None else norm.linear(x) / divisor + norm.bias
        multiplier, cap = self.head
        logits = (torch.einsum("sbd,bkd->sbk", x, columns.to(x)) + bias.to(x)) * multiplier
        if cap is not None and divisor is None:
            logits = cap * torch.tanh(logits / cap)
        answers, wrong = _column_numbers(ids, task.answers.shape[1])
        local, metric = replace(task, answers=answers, wrong=wrong), metrics.by_name(part.metric)
        return torch.stack([metric(own, local) for own in logits])

    def _by_all(self, part: Case, sets: Tensor) -> Iterator[Float[Tensor, "set prompt"]]:
        size = max(1, AT_ONCE // (self.model.info.d_vocab * sets.shape[1]))
        for block in sets.split(size):
            logits = unembedded(self.model, block.flatten(0, 1)).unflatten(0, block.shape[:2])
            yield torch.stack([part.value(own) for own in logits])


def unembedded(
    model: Model, resid: Float[Tensor, "row d_model"], *, gradients: bool = False
) -> Float[Tensor, "row d_vocab"]:
    """Logits as the model itself makes them: its last layer runs on one token per row and its outcome is replaced.

    With `gradients` they reach the streams given.
    """
    last = model.info.n_layers - 1
    tokens = torch.zeros(len(resid), 1, dtype=torch.long)
    edits = [Apply(Site("resid_post", last), resid[:, None].to), *logit_edits(model)]
    with model.resting():
        run = model.run(tokens, start=(last, resid.detach()[:, None]), edits=edits, gradients=gradients)
    assert run.logits is not None  # no `stop`
    return run.logits[:, 0]


def at_end(case: Case, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_model"]:
    """The stream at each prompt's END."""
    return resid[torch.arange(len(resid), device=resid.device), case.task.end.to(resid.device)]


def value_at_end(
    case: Case, end: Float[Tensor, "batch d_model"], *, gradients: bool = False
) -> Float[Tensor, " batch"]:
    """The metric of each prompt whose stream ends in `end`: final norm, unembedding and cap are the model's own."""
    return case.value(unembedded(case.model, end, gradients=gradients))


def _head(model: Model, weights: Weights, norm: Norm | None, resid: Float[Tensor, "prompt d_model"]) -> Head | None:
    x = wide(resid).cpu()
    try:
        raw = weights.unembed(x if norm is None else norm.to("cpu")(x)) + weights.b_u
        logit_head = read_head(raw, unembedded(model, resid).float().cpu(), slack=2 * allowed(model))
    except BackendError:
        return None
    return logit_head.multiplier, logit_head.softcap


def _column_numbers(ids: Int[Tensor, "prompt k"], n: int) -> tuple[Tensor, Tensor]:
    """Ids of the first n columns and of the others as numbers of the columns; what fills up stays."""
    numbers = torch.where(ids >= 0, torch.arange(ids.shape[1], device=ids.device), ids)
    return numbers[:, :n], numbers[:, n:]
