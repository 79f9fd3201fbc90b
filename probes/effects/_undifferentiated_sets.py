"""Sets of heads whose loss changes the answers most, found one head after another: Sahara, with random sets beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import tasks
from interp.batch import Batch, Prompts
from interp.components import head_names
from interp.edits import Edit, Uniform, ablate_heads
from interp.errors import SchemaError, TaskError, nearest
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.stats import Head
from interp.sites import Site
from probes.effects._undifferentiated import LEAST, _default

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

WAYS = ("uniform", "zero")
CRITERIA = ("kl", "angle")
CHANCE = 0.05
"""Of a random set to do as much: below it a set may be labelled."""
CHOOSE = 4
"""Prompts that choose, at least; as many judge."""


@dataclass(frozen=True, eq=False)
class Effect:
    """What a set of heads does: KL of the answers in nats, and degrees between main directions of the residuals."""

    each: Float[np.ndarray, " prompt"]
    angle: float

    @property
    def kl(self) -> float:
        """Mean over prompts."""
        return float(self.each.mean())


@dataclass(frozen=True, eq=False)
class _Judge:
    """Prompts with their answers before any head is taken."""

    model: Model
    batch: Batch
    clean: Float[Tensor, "prompt d_vocab"]
    direction: Float[Tensor, " d_model"]

    @classmethod
    def of(cls, model: Model, batch: Batch) -> _Judge:
        return cls(model, batch, *_ends(model, batch, ()))

    def __call__(self, heads: Sequence[Head], how: str) -> Effect:
        log_probs, direction = _ends(self.model, self.batch, _edits(heads, how))
        each = (self.clean.exp() * (self.clean - log_probs)).sum(-1).clamp(min=0)
        cosine = (self.direction @ direction).abs().clamp(max=1)
        return Effect(each.numpy(), float(torch.rad2deg(torch.arccos(cosine))))


def _by_size(rows: pd.DataFrame) -> go.Figure:
    """Effect of the best set of each size, beside random sets."""
    from interp.results.figures import over

    return over(rows, "k", title="heads in the set", name="best set", null="random sets")


@analysis(
    name="undifferentiated_sets",
    family="importance",
    unit="set of heads",
    title="Sets of heads behind these answers",
    headline="uniform",
    order=255,
    figure=_by_size,
    quick={"n_prompts": 8, "size": 1, "n_random": 4},
    exemptions={
        "planted": "sets of heads; tests/probes/effects/test_undifferentiated_sets.py plants some",
        "significance": "p is of each size by itself: sets of several sizes hold one another, so there is no q",
    },
    columns={"label": "boolean", "k": "Int64", "heads": "str", "matching": "str"},
    means="Together these heads hold the answers to these prompts: without their choice of where to look the answers "
    "change more than without any random set of as many heads. Heads that stand in for each other are found, too.",
    misleads="One head after another is not the best set: a pair that matters only together is missed where neither "
    "does anything alone. A head parked on a first token, made to look everywhere, writes what it never wrote, and the "
    "search for uniform sets picks it; the label asks that the set also counts when it is set to zero. Large sets "
    "break any answer: read `elsewhere`.",
    reference="Zhou et al. 2024, arXiv 2410.13708 (Sahara)",
)
def undifferentiated_sets(
    model: Model,
    *,
    prompts: Prompts | None = None,
    control: Prompts | None = None,
    size: int = 3,
    by: str = "kl",
    n_prompts: int = 12,
    n_random: int = 19,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Effect of a set S grown greedily, S <- S + argmax_h E(S + h): E = mean KL(p || p_S) at the last token, in nats.

    The first half of the prompts chooses, the second judges. One row per size k and variant; layer, head and component
    are of the head that came last, `heads` has the whole set:
      uniform    all heads of S attend uniformly to the keys each query may see: null, p and label;
      zero       a set of its own, whose outputs are set to zero ("scaling contribution"): null and p alike;
      *_other    the uniform set set to zero, the zero set made uniform;
      *_angle    degrees between the main direction (first right singular vector) of the last tokens' final residuals
                 [prompt d_model] with and without S: the paper's criterion; null and p alike;
      *_singles  the k heads that do most one at a time, in the place of S (`heads` has these);
      *_elsewhere  E of S on the control prompts, where there are any.

    The null is the mean over up to `n_random` random sets, as many heads in each layer, or in any layer where there are
    too few such sets (`matching` says which); p = (1 + random sets that do as much) / (1 + random sets). A set is
    labelled at p <= 0.05 with E and its `_other` at least 0.1 nats. p is of each k by itself.

    Without `prompts`: random blocks given twice and cut short, control random tokens. For safety heads: requests the
    model refuses, and harmless ones. Two passes per head and size, so `detect` does not run it.

    Args:
        model: any loaded model.
        prompts: text or ids whose last token is answered; at least eight.
        control: text or ids for `_elsewhere`.
        size: heads in the largest set.
        by: what the search maximises: "kl" or "angle" (the paper's).
        n_prompts: prompts of the default sets.
        n_random: random sets of each size; with fewer than 19, p cannot reach 0.05.
        bos: "default", "forced" or "none", for the default sets.
        seed: of prompts, bootstrap and random sets.

    Raises:
        TaskError: fewer than eight prompts, or a size of no set.
        SchemaError: an unknown criterion.

    Reference: Zhou et al. 2024 (arXiv 2410.13708): by angle, sets of up to five, q times 1e-5, the same
    prompts throughout. The halves, the random sets and the KL are ours.
    """
    if by not in CRITERIA:
        raise SchemaError(f"unknown criterion {by!r}; {nearest(by, CRITERIA)}")
    every = [(layer, head) for layer in model.info.attention_layers for head in range(model.info.n_heads)]
    if not 1 <= size <= len(every):
        raise TaskError(f"size={size} is no size of a set; it goes from 1 to {len(every)} heads")
    task = "prompts given"
    if prompts is None:
        task, (prompts, control) = "repeated random tokens, cut short", _default(model, n_prompts, bos, seed)
    batch = model.batch(prompts).to("cpu")
    half = len(batch.ids) // 2
    if half < CHOOSE:
        raise TaskError(f"{len(batch.ids)} prompts; at least {2 * CHOOSE} are needed: half choose heads, half judge")
    chooser, judge = (_Judge.of(model, batch.select(s)) for s in (slice(half), slice(half, None)))
    other = None if control is None else _Judge.of(model, model.batch(control).to("cpu"))
    rows: list[dict[str, object]] = []
    for how in WAYS:
        best_heads, singles = greedy(lambda s, how=how: getattr(chooser(s, how), by), every, size)
        for k in range(1, size + 1):
            random_sets = _random(best_heads[:k], every, n=n_random, seed=seed)
            set_rows = _rows_of_set(judge, how, best_heads[:k], singles[:k], random_sets, seed=seed)
            if other is not None:
                set_rows.append(_row(f"{how}_elsewhere", other(best_heads[:k], how), seed=seed))
            last = dict(zip(("layer", "head"), best_heads[k - 1], strict=True))
            rows += [{**last, "k": k, "heads": _names(best_heads[:k]), **row} for row in set_rows]
    data = {"task": task, "n": len(batch.ids), "by": by, "bos": bos, "sha256": tasks.fingerprint([batch])}
    return Findings(rows, data)


def greedy(
    effect: Callable[[Sequence[Head]], float], heads: Sequence[Head], size: int
) -> tuple[list[Head], list[Head]]:
    """Heads in the order in which each adds most to those before it, and in the order of what they do alone.

    Of heads that add the same the first is taken.
    """
    head_order: list[Head] = []
    single_order: list[Head] = []
    while len(head_order) < size:
        rest = [h for h in heads if h not in head_order]
        effects = np.array([effect([*head_order, h]) for h in rest])
        single_order = single_order or [rest[i] for i in np.argsort(-effects, kind="stable")[:size]]
        head_order.append(rest[int(effects.argmax())])
    return head_order, single_order


def _random(
    heads: Sequence[Head], every: Sequence[Head], *, n: int, seed: int
) -> tuple[str, Sequence[tuple[Head, ...]]]:
    """Random sets to compare with, and how they are matched: in the way that gives the most of them."""
    sets = stats.matched_sets(heads, every, n_sets=n, seed=seed)
    return max(sets.items(), key=lambda item: len(item[1]), default=("none", []))


def _rows_of_set(
    judge: _Judge,
    how: str,
    heads: Sequence[Head],
    singles: Sequence[Head],
    random_sets: tuple[str, Sequence[tuple[Head, ...]]],
    *,
    seed: int,
) -> list[dict[str, object]]:
    """Rows of one set: its effect and angle beside random sets, done the other way, and the best single heads."""
    match_rule, sets = random_sets
    own, random = judge(heads, how), [judge(s, how) for s in sets]
    other = judge(heads, WAYS[1 - WAYS.index(how)])
    row = _row(how, own, random, seed=seed) | {"matching": match_rule}
    if how == "uniform":
        is_significant = bool(random) and _p(own.kl, np.array([r.kl for r in random])) <= CHANCE
        row["label"] = is_significant and min(own.kl, other.kl) >= LEAST
    angles = np.array([r.angle for r in random])
    angle: dict[str, object] = {
        "variant": f"{how}_angle",
        "unit": "degrees",
        "value": own.angle,
        "matching": match_rule,
    }
    if len(angles):
        angle |= {"null": angles.mean(), "p": _p(own.angle, angles), "n": len(judge.batch.ids)}
    single = _row(f"{how}_singles", judge(singles, how), seed=seed)
    layer, head = singles[-1]
    single |= {"layer": layer, "head": head, "heads": _names(singles)}
    return [row, _row(f"{how}_other", other, seed=seed), angle, single]


def _row(variant: str, effect: Effect, random: Sequence[Effect] = (), *, seed: int) -> dict[str, object]:
    interval = interval_columns(stats.bootstrap_mean(effect.each, seed=seed))
    row = {"variant": variant, "unit": "nats", **interval}
    if random:
        null = np.array([r.kl for r in random])
        row |= {"null": null.mean(), "p": _p(effect.kl, null)}
    return row


def _names(heads: Sequence[Head]) -> str:
    return " ".join(head_names(heads))


def _p(value: float, null: Float[np.ndarray, " set"]) -> float:
    return float((1 + (null >= value).sum()) / (1 + len(null)))


def _ends(
    model: Model, batch: Batch, edits: Sequence[Edit]
) -> tuple[Float[Tensor, "prompt d_vocab"], Float[Tensor, " d_model"]]:
    """Log probabilities behind each prompt's last token, and the main direction of the final residuals there."""
    site = Site("resid_post", model.info.n_layers - 1)
    run = model.run(batch, capture=[site], edits=edits)
    if run.logits is None:
        raise RuntimeError("a run without early stop gave no logits")
    at = torch.arange(len(batch.ids)), batch.first + batch.mask.sum(1) - 1
    states = run[site].cpu()[at].double()
    return run.logits.cpu()[at].double().log_softmax(-1), torch.linalg.svd(states, full_matrices=False).Vh[0]


def _edits(heads: Sequence[Head], how: str) -> Sequence[Edit]:
    if how == "zero":
        return ablate_heads(heads)
    return [Uniform(Site("pattern", layer, head=head)) for layer, head in heads]
