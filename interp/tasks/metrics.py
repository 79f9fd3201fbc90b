"""Metrics of answers: (logits, task) -> one value per prompt, differentiable unless said otherwise.

Logits are [batch pos d_vocab], judged at each prompt's END, or [batch d_vocab], already taken there. No metric averages
over prompts: what is computed from one batch does not depend on how prompts were batched.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import TaskError, UnknownTask, first_line, nearest


@runtime_checkable
class AnswerKey(Protocol):
    """Prompts with their answers, as metrics need them; `interp.tasks.PromptTask` is one.

    Attributes:
        end: position of each prompt's last token, [batch].
        answers, wrong: right and wrong ids, [batch k]; -1 fills rows that have fewer.
    """

    @property
    def end(self) -> Int[Tensor, " batch"]: ...  # noqa: D102
    @property
    def answers(self) -> Int[Tensor, "batch right"]: ...  # noqa: D102
    @property
    def wrong(self) -> Int[Tensor, "batch wrong"]: ...  # noqa: D102


Metric = Callable[..., Tensor]
"""(logits, task) -> value per prompt."""
AnyMetric = str | Metric
"""A name in `METRICS`, or a function of one's own; see `own_values` for what it is called with."""


def answer_logits(logits: Float[Tensor, "..."], task: AnswerKey) -> Float[Tensor, "batch d_vocab"]:
    """Logits at each prompt's END; what is 2-dimensional already is given back."""
    if logits.ndim == 2:
        return logits
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, task.end.to(logits.device)]


def logit_diff(logits: Float[Tensor, "..."], task: AnswerKey) -> Float[Tensor, " batch"]:
    """l[answer] - l[wrong], each a mean where there are several; in logits. NaN where a prompt has no wrong answer."""
    at = answer_logits(logits, task)
    return _mean(at, task.answers) - _mean(at, task.wrong)


def logit_margin(logits: Float[Tensor, "..."], task: AnswerKey) -> Float[Tensor, " batch"]:
    """l[answer] - max l[wrong]: positive where the answer beats every wrong one; in logits."""
    at = answer_logits(logits, task)
    values, real = _of(at, task.wrong)
    return _mean(at, task.answers) - values.masked_fill(~real, -math.inf).amax(1)


def prob_diff(logits: Float[Tensor, "..."], task: AnswerKey) -> Float[Tensor, " batch"]:
    """sum p[answers] - sum p[wrong], from -1 to 1: greater-than's own metric."""
    p = answer_logits(logits, task).softmax(-1)
    return _sum(p, task.answers) - _sum(p, task.wrong)


def prob(logits: Float[Tensor, "..."], task: AnswerKey) -> Float[Tensor, " batch"]:
    """sum p[answers]: probability of a right answer."""
    return _sum(answer_logits(logits, task).softmax(-1), task.answers)


def loss_nats(logits: Float[Tensor, "..."], task: AnswerKey) -> Float[Tensor, " batch"]:
    """-log sum p[answers], in nats: low is good."""
    log_p, real = _of(answer_logits(logits, task).log_softmax(-1), task.answers)
    return -log_p.masked_fill(~real, -math.inf).logsumexp(1)


def kl(logits: Float[Tensor, "..."], task: AnswerKey, *, reference: Float[Tensor, "..."]) -> Float[Tensor, " batch"]:
    """KL(p_reference || p) at END, in nats; `reference` are logits of the same form. Its gradient at p = p_ref is 0."""
    log_p = answer_logits(logits, task).log_softmax(-1)
    log_reference = answer_logits(reference, task).detach().log_softmax(-1)
    return (log_reference.exp() * (log_reference - log_p)).sum(-1)


def rank(logits: Float[Tensor, "..."], task: AnswerKey) -> Float[Tensor, " batch"]:
    """Tokens whose logit is above that of the best right answer: 0 is first place. Not differentiable."""
    at = answer_logits(logits, task)
    values, real = _of(at, task.answers)
    best = values.masked_fill(~real, -math.inf).amax(1, keepdim=True)
    return (at > best).sum(1).to(at.dtype)


def accuracy(logits: Float[Tensor, "..."], task: AnswerKey) -> Float[Tensor, " batch"]:
    """1 where a right answer has the largest logit of all, else 0. Not differentiable."""
    return (rank(logits, task) == 0).to(logits.dtype)


def right(logits: Float[Tensor, "..."], task: AnswerKey) -> Bool[Tensor, " batch"]:
    """Whether the right answer's logit is above every wrong one's.

    Unless every prompt has a wrong one, it has to be the largest of all tokens'.
    """
    if bool((task.wrong >= 0).any(1).all()):
        return logit_margin(logits, task) > 0
    return rank(logits, task) == 0


def of_equal_logits(metric: str, task: AnswerKey, n_logits: int) -> Float[Tensor, " batch"]:
    """A metric where a model prefers nothing: of equal logits for all `n_logits` tokens, of each prompt.

    Of `rank` and `accuracy`, which equal logits do not order, what a random order is expected to give for k right
    answers of V tokens: (V - k) / (k + 1) and k / V. NaN for `kl` and for metrics that are not in `METRICS`.
    """
    k = (task.answers >= 0).sum(1).double()
    if metric == "rank":
        return (n_logits - k) / (k + 1)
    if metric == "accuracy":
        return k / n_logits
    if metric == "kl" or metric not in METRICS:
        return torch.full_like(k, math.nan)
    return METRICS[metric](torch.zeros(len(k), n_logits, dtype=torch.float64, device=k.device), task)


METRICS: Mapping[str, Metric] = {
    f.__name__: f for f in (logit_diff, logit_margin, prob_diff, prob, loss_nats, kl, rank, accuracy)
}
"""By name. `kl` needs `reference` as well."""


def by_name(name: str) -> Metric:
    """Metric by name.

    Raises:
        TaskError: no such metric; names the nearest.
    """
    if name not in METRICS:
        raise UnknownTask(f"unknown metric {name!r}; {nearest(name, METRICS)}")
    return METRICS[name]


def function_of(metric: AnyMetric) -> Metric:
    """What computes a metric that is a name or a function; a function of one's own goes through `own_values`.

    Raises:
        TaskError: no such metric, or neither a name nor a function.
    """
    if isinstance(metric, str):
        return by_name(metric)
    if not callable(metric):
        raise TaskError(f"a metric is a name or a function (logits, task) -> [batch]; got {type(metric).__name__}")
    return metric if metric in METRICS.values() else partial(own_values, metric)


def name_of(metric: AnyMetric) -> str:
    """What tables call a metric; a function of one's own that is called like one of `METRICS` has its module before it.

    Raises:
        TaskError: no such metric, or neither a name nor a function.
    """
    function_of(metric)
    if isinstance(metric, str):
        return metric
    name = str(getattr(metric, "__name__", type(metric).__name__))
    shadows = name in METRICS and METRICS[name] is not metric
    return f"{metric.__module__}.{name}" if shadows else name


def description(metric: AnyMetric) -> str:
    """Its name and, for a function of one's own, eight hex digits of its code: what provenance and a run's id say."""
    name, code = name_of(metric), getattr(metric, "__code__", None)
    if name in METRICS or code is None:
        return name
    constants = [x for x in code.co_consts if not hasattr(x, "co_code")]  # the rest has an address
    return f"{name} {hashlib.sha256(repr((code.co_code, constants, code.co_names)).encode()).hexdigest()[:8]}"


def own_values(metric: Metric, logits: Float[Tensor, "..."], task: AnswerKey) -> Float[Tensor, " batch"]:
    """Values of a metric of one's own, called as metric(logits at each prompt's END [batch d_vocab], task).

    The task is that of the prompts at hand: prompts come in portions, so what the metric needs of a prompt (answers,
    roles) it takes from the task. Truth values and integers become numbers; those have no gradient.

    Raises:
        TaskError: it fails on such logits, or does not give one value per prompt.
    """
    at, name = answer_logits(logits, task), getattr(metric, "__name__", type(metric).__name__)
    expected = f"it is called with logits at END {tuple(at.shape)}, [batch d_vocab], and the task of these prompts"
    try:
        values = metric(at, task)
    except (IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise TaskError(f"the metric {name!r} failed ({first_line(error)}): {expected}") from error
    if not isinstance(values, Tensor):
        raise TaskError(f"the metric {name!r} gave {type(values).__name__}; expected a tensor [batch]: {expected}")
    if values.shape != at.shape[:1]:
        raise TaskError(
            f"the metric {name!r} gave shape {tuple(values.shape)}; expected one value per prompt, ({len(at)},), and "
            f"no mean over prompts: {expected}"
        )
    return values if values.is_floating_point() else values.to(at.dtype)


def _of(values: Float[Tensor, "batch d_vocab"], ids: Int[Tensor, "batch k"]) -> tuple[Float[Tensor, "batch k"], Tensor]:
    """Values of ids, and which ids are real.

    Raises:
        TaskError: an id that has no logit.
    """
    if ids.numel() and int(ids.max()) >= values.shape[1]:
        raise TaskError(f"answer {int(ids.max())}: this model gives {values.shape[1]} logits, numbered from 0")
    ids = ids.to(values.device)
    return values.gather(1, ids.clamp(min=0)), ids >= 0


def _sum(values: Float[Tensor, "batch d_vocab"], ids: Int[Tensor, "batch k"]) -> Float[Tensor, " batch"]:
    entries, real = _of(values, ids)
    return entries.masked_fill(~real, 0.0).sum(1)


def _mean(values: Float[Tensor, "batch d_vocab"], ids: Int[Tensor, "batch k"]) -> Float[Tensor, " batch"]:
    return _sum(values, ids) / (ids >= 0).sum(1).to(values.device)
