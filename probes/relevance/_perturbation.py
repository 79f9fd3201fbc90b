"""Is a relevance map right? Tokens are removed in its order, and the answer is watched: area under the curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import tasks
from interp.batch import Batch
from interp.errors import SchemaError, TaskError, nearest
from interp.model import Model
from interp.results import stats
from interp.results.stats import p_above
from interp.shapes import brief
from probes.relevance._relevance import Relevance

METRICS = ("prob", "log_prob")
UNITS = {"prob": "probability", "log_prob": "nats"}
ORDERS = ("positive", "negative")
POSITIVE, NEGATIVE, RANDOM = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Perturbation:
    """The answer's metric as tokens are removed, by map, order and prompt.

    Attributes:
        methods: of the maps, in order.
        metric: "prob" or "log_prob".
        fraction: share of the tokens that are gone.
        ordered: most relevant first ("positive") and least relevant first ("negative").
        random: in random orders, the same for all maps.
        seed: of the intervals.
    """

    methods: tuple[str, ...]
    metric: str
    fraction: Float[np.ndarray, " step"]
    ordered: Float[np.ndarray, "method two prompt step"]
    random: Float[np.ndarray, "draw prompt step"]
    seed: int = 0

    __repr__ = brief

    def table(self) -> pd.DataFrame:
        """A row per map and variant: value (mean over prompts), se, ci_low, ci_high, null, p, n, unit.

        positive, negative: areas; the null is the mean area of random orders, p that the area is not below it (not
        above it), Student's t over prompts, one-sided. gap: negative less positive, null 0, p that it is not above.
        """
        areas, null = area(self.ordered, self.fraction), area(self.random, self.fraction).mean(0)
        rows = []
        for method, (low, high) in zip(self.methods, areas, strict=True):
            for variant, value, chance, gain in (
                ("positive", low, null, null - low),
                ("negative", high, null, high - null),
                ("gap", high - low, np.zeros_like(null), high - low),
            ):
                interval = stats.bootstrap_mean(value, seed=self.seed)
                row = {"method": method, "variant": variant, "value": float(interval.mean), "se": float(interval.se)}
                row |= {
                    "ci_low": float(min(interval.low, interval.mean)),
                    "ci_high": float(max(interval.high, interval.mean)),
                }
                row |= {"null": float(chance.mean()), "p": float(p_above(gain)), "n": interval.n}
                rows.append(row | {"unit": UNITS[self.metric]})
        return pd.DataFrame(rows)

    def curves(self) -> pd.DataFrame:
        """A row per map, order and share removed: mean over prompts; the method "random" last, over its draws too."""
        parts = [
            {"method": method, "order": order, "removed": self.fraction, "value": curve.mean(0)}
            for method, pair in zip(self.methods, self.ordered, strict=True)
            for order, curve in zip(ORDERS, pair, strict=True)
        ]
        parts.append(
            {"method": "random", "order": "random", "removed": self.fraction, "value": self.random.mean((0, 1))}
        )
        return pd.concat([pd.DataFrame(p) for p in parts], ignore_index=True).assign(unit=UNITS[self.metric])


def perturbation(
    model: Model,
    *maps: Relevance,
    answers: Int[Tensor, "prompt row"] | None = None,
    metric: str = "prob",
    n_steps: int = 10,
    n_random: int = 8,
    n_draws: int = 2,
    keep: int | None = None,
    block: int = 64,
    seed: int = 0,
) -> Perturbation:
    """Perturbation areas: area under the answer's metric as tokens go, most relevant first and least relevant first.

    Area = mean metric over the share removed, from none to all, by trapezoids: in the metric's own unit. A map that
    knows what the answer hangs on has a low positive area and a high negative one; random orders, drawn anew for each
    prompt and the same for all maps, say what is low. A removed token is replaced by a random ordinary one that is
    neither in the prompt nor the answer; which one is fixed for each place and draw, so that curves differ by their
    order alone. The row's own
    token, what follows it and the first `keep` tokens stay. Of equally relevant tokens a random one goes first. Rows of
    one prompt are averaged first: prompts are the units.

    A good area says that a map finds what can be broken, not that it is a true account: occlusion does much the same
    intervention and wins by being the judge. Random tokens are no text, and a model is asked about prompts it never
    saw; where one token breaks everything (a BOS that serves as sink, put under `keep` by default), whoever names it
    first looks good.

    Args:
        model: the model that the maps are of.
        maps: of the same prompts and rows: `rollout`, `flow`, `gradient_relevance`, `occlusion` or one's own.
        answers: ids whose probability counts; without, the model's own first choice at each row.
        metric: "prob", or "log_prob", in which the little that is left of an answer weighs more.
        n_steps: steps from nothing removed to all.
        n_random: random orders.
        n_draws: replacements of each token.
        keep: first tokens of each prompt that stay; without, 1 where prompts start with the model's BOS, else 0.
        block: prompts per forward pass.
        seed: of orders, ties and replacements.

    Raises:
        TaskError: no map, maps of different rows, fewer than three prompts, or a row with fewer than two tokens to go.
        SchemaError: an unknown metric.

    Reference: Chefer et al. 2021 (arXiv 2103.15679): positive and negative perturbation. They take image and text
    tokens out of bi-modal models; a decoder's positions stay here. The random orders and the test are ours.
    """
    if metric not in METRICS:
        raise SchemaError(f"unknown metric {metric!r}; {nearest(metric, METRICS)}")
    first = _first_map(maps)
    if keep is None:
        keep = _n_start_tokens(model, first)
    rng = np.random.default_rng(seed)
    pool = tasks.ordinary_tokens(model).numpy()
    fraction = np.linspace(0, 1, n_steps + 1)
    curves = np.zeros((2 * len(maps) + n_random, *first.value.shape[:2], n_steps + 1))
    for prompt, row in np.ndindex(*first.value.shape[:2]):
        real = np.flatnonzero(~np.isnan(first.value[prompt, row]))
        ids, removable = first.tokens[prompt].numpy()[real], np.arange(keep, len(real) - 1)
        if len(removable) < 2:
            raise TaskError(
                f"prompt {prompt}, row {int(first.rows[prompt, row])}: {len(removable)} tokens before it can go"
            )
        orders = _orders([m.value[prompt, row, real][removable] for m in maps], n_random, rng)
        answer = int(_last(model, ids[None]).argmax()) if answers is None else int(answers[prompt, row])
        candidates = np.setdiff1d(pool, [*ids, answer])
        fillers = rng.choice(candidates if len(candidates) else pool, (n_draws, len(ids)))
        curves[:, prompt, row] = _curves(model, ids, removable[orders], fillers, fraction, answer, metric, block)
    by_prompt = curves.mean(2)
    ordered = by_prompt[: 2 * len(maps)].reshape(len(maps), 2, *by_prompt.shape[1:])
    return Perturbation(tuple(m.method for m in maps), metric, fraction, ordered, by_prompt[2 * len(maps) :], seed)


def area(curve: Float[np.ndarray, "*any step"], fraction: Float[np.ndarray, " step"]) -> Float[np.ndarray, "*any"]:
    """Area under a curve over the share removed, 0 to 1, by trapezoids."""
    return np.trapezoid(curve, fraction, axis=-1)


def _first_map(maps: Sequence[Relevance]) -> Relevance:
    """The first map, when all are of the same rows of the same prompts."""
    if not maps:
        raise TaskError("no relevance map was given; `rollout`, `occlusion` and others make one")
    first = maps[0]
    for other in maps[1:]:
        same = torch.equal(first.tokens, other.tokens) and torch.equal(first.rows, other.rows)
        if not same or not np.array_equal(first.blank(), other.blank(), equal_nan=True):
            raise TaskError(f"{first.method} and {other.method} are not of the same rows of the same prompts")
    if len(first.value) < 3:
        raise TaskError(f"{len(first.value)} prompts are too few for a test over prompts; at least 3 are needed")
    return first


def _n_start_tokens(model: Model, relevance: Relevance) -> int:
    """1 where every prompt starts with the model's BOS."""
    bos = tasks.bos_id(model, "default")
    real = ~np.isnan(relevance.value[:, 0])
    first = relevance.tokens.numpy()[np.arange(len(real)), real.argmax(1)]
    return int(bos is not None and bool((first == bos).all()))


def _orders(
    maps: Sequence[Float[np.ndarray, " token"]], n_random: int, rng: np.random.Generator
) -> Int[np.ndarray, "order token"]:
    """Places in the order they go: each map's most relevant first, its least relevant first, and random orders."""
    orders = []
    for value in maps:
        for sign in (-1, 1):
            ties = rng.permutation(len(value))
            orders.append(np.lexsort((ties, sign * value)))
    orders += [rng.permutation(len(maps[0])) for _ in range(n_random)]
    return np.stack(orders)


def _curves(
    model: Model,
    ids: Int[np.ndarray, " token"],
    orders: Int[np.ndarray, "order place"],
    fillers: Int[np.ndarray, "draw token"],
    fraction: Float[np.ndarray, " step"],
    answer: int,
    metric: str,
    block: int,
) -> Float[np.ndarray, "order step"]:
    """The metric at the last token of one prompt, mean over draws, for every order and share removed."""
    removed_mask = np.zeros((len(orders), len(fraction), len(ids)), dtype=bool)
    for step, count in enumerate(np.rint(fraction * orders.shape[1]).astype(int)):
        np.put_along_axis(removed_mask[:, step], orders[:, :count], True, axis=-1)
    prompts = np.where(removed_mask[:, :, None], fillers, ids).reshape(-1, len(ids))  # order step draw
    unique, inverse = np.unique(prompts, axis=0, return_inverse=True)
    log_probs = np.concatenate(
        [_last(model, unique[at : at + block])[:, answer] for at in range(0, len(unique), block)]
    )
    value = log_probs[inverse.ravel()].reshape(len(orders), len(fraction), -1)
    return (np.exp(value) if metric == "prob" else value).mean(-1)


def _last(model: Model, ids: Int[np.ndarray, "prompt token"]) -> Float[np.ndarray, "prompt d_vocab"]:
    """Log probabilities behind the last token."""
    logits = model.run(Batch.of(torch.from_numpy(ids))).logits
    if logits is None:
        raise RuntimeError("a run without early stop gave no logits")
    return logits[:, -1].double().log_softmax(-1).cpu().numpy()
