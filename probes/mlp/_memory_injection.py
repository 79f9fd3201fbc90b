"""Memory injection: what the answer gains when tokens are written into the stream behind an attention layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from interp.components import attn_name
from interp.edits import Add, Edit
from interp.errors import NotApplicable, SchemaError, SiteError, TaskError, nearest
from interp.measurement.answers import TASKS, model_task, subject_role
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, interval_columns
from interp.model import Model
from interp.patching.case import Case
from interp.results import stats
from interp.results.figures import dots
from interp.sites import Site
from interp.tasks import PromptTask, metrics, ordinary_tokens

SPACES, TOKENS, INTO = ("unembed", "embed"), ("all", "END"), ("clean", "corrupt")
STRENGTHS = (1.0, 4.0)
LOW_IS_GOOD = ("loss_nats", "kl", "rank")
"""Metrics that better answers lower."""


@analysis(
    name="memory_injection",
    family="mlp",
    title="Layers that use an injected memory",
    unit="layer and strength",
    headline="injected",
    order=166,
    two_sided=True,
    figure=dots,
    quick={"n_prompts": 16, "n_random": 5, "strengths": (4.0,)},
    subject="zoo:default",
    exemptions={
        "planted": "planted models lack nothing that they could be told; its tests have the law of a toy without norms",
    },
    columns={"label": "boolean", "strength": "Float64"},
    means="With the memory's tokens written into the stream behind this layer's attention the metric rises by so much "
    "(where low is good, as of a loss, a label is for a fall).",
    misleads="Where the memory is the answer itself, late layers raise it without any recall: read `token`, the "
    "memory's own logit. Strengths are in units of unembedding rows: what is small in one model drowns all else in "
    "another, and the random tokens say how much any injection does. Better answers show that the information was "
    "lacking there, not how the model would have got it.",
    reference="Sakarvadia et al. 2023, arXiv 2309.05605 (memory injections)",
)
def memory_injection(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    memory: str | Tensor | None = None,
    strengths: Sequence[float] | None = None,
    layers: Sequence[int] | None = None,
    space: str = "unembed",
    tokens: str = "all",
    into: str = "clean",
    n_random: int = 8,
    n_prompts: int = 32,
    seed: int = 0,
) -> Findings:
    """m(x_l + tau B) - m(x_l), mean over prompts: B = sum of W_U[:, t] over the memory's tokens t, tau a strength.

    x_l is what attention of layer l writes, m the task's metric. Prompts without a memory are left out. Variants, a row
    for each layer and strength:
      injected  as above, with null, p, q and label;
      log_prob  change of the log probability of the right answers, nats;
      token     change of the mean logit of the memory's own tokens. Without norms and MLPs it is tau |W_U[:, t]|^2.

    The null is the mean over `n_random` draws of random ordinary tokens, as many for each prompt, injected alike; p
    (two-sided) tests against their spread, q is Benjamini-Hochberg over layers and strengths. A label needs q < 0.01,
    more than the null and an interval (bootstrap over prompts) above 0; less and below 0 of loss_nats, kl and rank.

    Args:
        model: any loaded model.
        task: prompts with answers, or a task's name; facts without.
        memory: what is injected: "subject" (the token in the subject's role; without), "answer", another role of the
            task, or ids [batch k], -1 for none.
        strengths: of tau; 1 and 4 without.
        layers: all with attention without.
        space: "unembed" for columns of W_U, "embed" for rows of W_E.
        tokens: "all" or "END", where it is added.
        into: "clean" or "corrupt" prompts; the memory is the clean prompt's in either.
        n_random: draws; at least five.
        n_prompts: of a task given by name.
        seed: of prompts, random tokens and bootstrap.

    Raises:
        NotApplicable: no such task for this model, or no layer whose attention is told apart.
        TaskError: no subject among the task's roles, no such role, or ids that are none of the model's.
        SchemaError: another space, other tokens or prompts; strengths that are no numbers; no layers.
        SiteError: a layer without attention.

    Reference: Sakarvadia et al. 2023 (arXiv 2309.05605), who inject the missing step of two-hop prompts at all tokens
    with strengths of 1 to 15; random tokens as the null are theirs in kind, the test is ours.
    """
    _choices(space=(space, SPACES), tokens=(tokens, TOKENS), into=(into, INTO))
    prompts = model_task(model, task, TASKS, n=n_prompts, seed=seed)
    own, prompts = _remembered(model, prompts, "subject" if memory is None else memory)
    case = Case.of(model, prompts)
    injection = _Injection.of(case, space=space, end=tokens == "END", corrupt=into == "corrupt", layers=layers)
    taus = _strengths(STRENGTHS if strengths is None else strengths)
    pool = ordinary_tokens(model)
    generator = torch.Generator().manual_seed(seed)
    draws = [_random_like(own, pool, generator) for _ in range(max(n_random, 0))]
    places = [(layer, tau) for layer in injection.layers for tau in taus]
    gains = [injection.gain(own, *place) for place in places]
    random = [[injection.gain(other, *place) for place in places] for other in draws]
    null = {name: np.array([[g[name].mean() for g in draw] for draw in random]) for name in gains[0]}
    base: dict[str, Any] = {"layer": [layer for layer, _ in places], "strength": [tau for _, tau in places]}
    base["component"] = [f"{attn_name(layer)} x{tau:g}" for layer, tau in places]
    score = stats.bootstrap_mean(np.stack([g["injected"] for g in gains], 1), seed=seed)
    p = stats.p_two_sided(score.mean, null["injected"])
    q = stats.benjamini_hochberg(p)
    columns = interval_columns(score)
    better = -1.0 if prompts.metric_name in LOW_IS_GOOD else 1.0
    beyond = np.minimum(better * score.low, better * score.high) > 0
    label = (q < LEVEL) & beyond & (better * (score.mean - null["injected"].mean(0)) > 0)
    head = {"variant": "injected", "unit": prompts.metric_name, **base, **columns}
    rows = [pd.DataFrame({**head, "null": null["injected"].mean(0), "p": p, "q": q, "label": label})]
    for name, unit in (("log_prob", "nats"), ("token", "logit")):
        interval = stats.bootstrap_mean(np.stack([g[name] for g in gains], 1), seed=seed)
        beside = {**interval_columns(interval), "null": null[name].mean(0)}
        rows.append(pd.DataFrame({"variant": name, "unit": unit, **base, **beside}))
    data = {**prompts.provenance(), "into": into, "tokens": tokens, "space": space}
    data |= {"memory": "ids of the caller's" if isinstance(memory, Tensor) else memory or "subject"}
    return Findings(pd.concat(rows, ignore_index=True), data, ability=case)


def memory_ids(task: PromptTask, memory: str | Tensor) -> Int[Tensor, "batch k"]:
    """Tokens injected into each prompt, -1 for none: those of a role of the clean prompts, the answers, or ids.

    Raises:
        TaskError: no such role, or ids of another number of prompts, or no whole numbers from -1 on.
    """
    if isinstance(memory, Tensor):
        ids = memory.cpu()
        if ids.ndim != 2 or len(ids) != len(task):  # noqa: PLR2004 - [batch k]
            raise TaskError(f"memory: expected ids [batch k] of {len(task)} prompts; got {tuple(ids.shape)}")
        if ids.is_floating_point() or not bool((ids >= -1).all()):
            raise TaskError("memory: expected ids, whole numbers, -1 for none")
        return ids.long()
    if memory == "answer":
        return task.answers.cpu()
    at = task.role(subject_role(task) if memory == "subject" else memory).cpu()
    ids = task.clean.ids.cpu().gather(1, at.clamp(min=0)[:, None])
    return ids.masked_fill(at[:, None] < 0, -1)


def _remembered(model: Model, task: PromptTask, memory: str | Tensor) -> tuple[Int[Tensor, "some k"], PromptTask]:
    """Tokens injected, and the prompts that have any."""
    ids = memory_ids(task, memory)
    if int(ids.max()) >= model.info.d_vocab:
        raise TaskError(f"memory: id {int(ids.max())} is none of the {model.info.d_vocab} tokens of {model.info.name}")
    rows = (ids >= 0).any(1)
    if not bool(rows.any()):
        raise TaskError(f"{task.name}: no prompt has a memory to inject; name another role or pass ids as `memory`")
    return ids[rows], task.select(rows.nonzero()[:, 0])


@dataclass(frozen=True, eq=False)
class _Injection:
    """Prompts into which tokens are written, and what is measured on them without.

    Attributes:
        case: model and task. corrupt: whether the corrupt prompts are written into. end: at END alone.
        rows: of the unembedding or embedding, by token. layers: where. clean: logits at END without an injection.
    """

    case: Case
    corrupt: bool
    end: bool
    rows: Callable[[Tensor], Tensor]
    layers: tuple[int, ...]
    clean: Float[Tensor, "batch d_vocab"]

    @classmethod
    def of(cls, case: Case, *, space: str, end: bool, corrupt: bool, layers: Sequence[int] | None) -> _Injection:
        model, weights = case.model, case.model.weights()
        able = tuple(i for i in model.info.attention_layers if "attn_out" not in model.writes(i).missing)
        wanted = able if layers is None else tuple(layers)
        if layers is not None and not wanted:
            raise SchemaError("layers: name one at least, or leave it out for all")
        if not wanted:
            raise NotApplicable(f"{model.info.name}: no layer whose attention is told apart")
        if set(wanted) - set(able):
            strange = sorted(set(wanted) - set(able))
            raise SiteError(f"layers {strange}: attention is told apart in {', '.join(map(str, able))}")
        rows = weights.source.columns if space == "unembed" else lambda ids: weights.w_e[ids]
        if rows(torch.zeros(1, dtype=torch.long)).shape[1] != model.info.d_model:
            raise NotApplicable(f"{model.info.name}: tokens are embedded in another width than the stream's")
        unmeasured = cls(case, corrupt, end, rows, wanted, torch.zeros(0, 0))
        return cls(case, corrupt, end, rows, wanted, unmeasured.logits(()))

    @torch.no_grad()
    def logits(self, edits: Sequence[Edit]) -> Float[Tensor, "batch d_vocab"]:
        """At END, under edits."""
        task = self.case.task
        logits = self.case.model.run(task.corrupt if self.corrupt else task.clean, edits=edits).logits
        assert logits is not None  # the run has no `stop`
        return metrics.answer_logits(logits, task).float()

    def gain(self, ids: Int[Tensor, "batch k"], layer: int, tau: float) -> dict[str, Float[ndarray, " batch"]]:
        """What every prompt gains from these tokens at a layer and strength."""
        vectors = self.rows(ids.clamp(min=0).flatten()).unflatten(0, ids.shape).float()
        value = tau * (vectors * (ids >= 0).to(vectors)[..., None]).sum(1, keepdim=True)
        edit = Add(Site("attn_out", layer), value[:, 0] if self.end else value, positions=self._end)
        after, before = self.logits([edit]), self.clean
        task = self.case.task
        found = {"injected": self.case.value(after) - self.case.value(before)}
        found["log_prob"] = _log_prob(after, task) - _log_prob(before, task)
        own = (after - before).cpu().gather(1, ids.clamp(min=0)).masked_fill(ids < 0, 0.0)
        found["token"] = own.sum(1) / (ids >= 0).sum(1).clamp(min=1)
        return {name: x.double().cpu().numpy() for name, x in found.items()}

    @property
    def _end(self) -> Tensor | None:
        return self.case.task.end if self.end else None


def _log_prob(logits: Float[Tensor, "batch d_vocab"], task: PromptTask) -> Float[Tensor, " batch"]:
    """log of the right answers' probability."""
    ids = task.answers.to(logits.device)
    return logits.log_softmax(-1).gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf).logsumexp(1)


def _random_like(
    ids: Int[Tensor, "batch k"], pool: Int[Tensor, " token"], generator: torch.Generator
) -> Int[Tensor, "batch k"]:
    """Random tokens in the place of those that there are."""
    random = pool[torch.randint(len(pool), ids.shape, generator=generator)]
    return torch.where(ids >= 0, random, ids)


def _choices(**options: tuple[str, tuple[str, ...]]) -> None:
    for name, (value, valid) in options.items():
        if value not in valid:
            raise SchemaError(f"{name}={value!r}: expected {' or '.join(valid)}; {nearest(value, valid)}")


def _strengths(strengths: Sequence[float]) -> list[float]:
    taus = [float(x) for x in strengths]
    if not taus or not np.isfinite(taus).all():
        raise SchemaError(f"strengths: expected finite numbers; got {taus}")
    return taus
