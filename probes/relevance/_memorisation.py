"""Paragraphs known by heart: where their gradient is, what in the prefix they need, and what forgets them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from interp.batch import Prompts
from interp.errors import SchemaError
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.figures import dots
from interp.sites import Site
from interp.tasks import fingerprint
from interp.weights.changes import WeightMatrices
from probes.relevance.gradient_parts import (
    Part,
    exchange_p,
    output_gradients,
    output_parts,
    paragraph_gradients,
    pooled,
    shares,
    summed_gradient,
    weight_parts,
)
from probes.relevance.paragraphs import Paragraphs, collect, joined
from probes.relevance.unlearning import Unlearning

N_EXCHANGES = 999
"""Of labels, and of tokens: what a p of gradients and of attention is counted over."""


@analysis(
    name="memorisation",
    family="relevance",
    title="Paragraphs known by heart",
    headline="gradient",
    unit="matrix of a head or MLP",
    order=190,
    figure=dots,
    subject="zoo:paragraphs",
    columns={"matrix": "str", "label": "boolean"},
    quick={"n_paragraphs": 6, "n_draws": 5, "n_sets": 19, "n_steps": 1, "n_random": 1},
    exemptions={
        "planted": "paragraphs known by heart, of which planted models have none; tests write some into neurons",
        "scale": "the strongest share of a gradient falls as paragraphs that differ are added",
    },
    means="This matrix has more of the gradient when the model is asked for a paragraph that it knows by heart than "
    "for one that it does not: to change what it says there, change this. The intervention table says what becomes of "
    "the paragraphs, and of others, when a few of the weights with the largest gradient are moved.",
    misleads="A gradient says where a change would act, not where the text is stored; with another set of as many "
    "weights, trained instead of moved once, a model may forget as well: read the random sets beside. Exact match "
    "falls with one wrong word, so it falls fast. Paragraphs that differ from those known in more than that (topic, "
    "words) make a difference of their own.",
    reference="Stoehr et al. 2024, arXiv 2403.19851; exact match as in Carlini et al. 2021, arXiv 2012.07805",
)
def memorisation(
    model: Model,
    *,
    prompts: Prompts | None = None,
    others: Prompts | None = None,
    prefix: int | None = None,
    share: float = 0.001,
    n_paragraphs: int = 32,
    n_draws: int = 8,
    n_sets: int = 199,
    n_steps: int = 20,
    n_random: int = 3,
    seed: int = 0,
) -> Findings:
    """Share of a paragraph's gradient in a part: G_c / sum_c G_c, G_c = mean over entries w of c of |d NLL / d w|.

    A paragraph is known by heart when all tokens behind its prefix are the model's first choice. NLL is the mean loss
    of these tokens, nats. Parts are W_Q and W_O of each head, W_K and W_V of each key-value head, W_in, W_gate and
    W_out of each MLP, as `Weights` has them. Variants:
      gradient      mean over paragraphs known by heart; null: over those not known; p: exchanges of which is which;
                    q: Benjamini-Hochberg over parts; a label needs q < 0.01;
      gradient_max  the same with the largest |d NLL / d w|;
      layer         shares of `gradient` by layer together;
      contrast, contrast_max  mean and largest |d C / d w|, C = mean NLL(known) - mean NLL(not known); null: the same
                    with paragraphs exchanged (mean of `n_draws`), p Student's prediction interval of these;
      activation    share of mean |d NLL / d output|, of heads (z) and MLPs, beside null and p as for `gradient`;
      rarity        a row per head: rank correlation, over tokens of the prefix, of its attention from the last one
                    with -log of how often a token stands in the paragraphs not known; null: the tokens of a prefix
                    exchanged, and p (two-sided) over these;
      token         a row per position of the prefix: rise of NLL when that token is another one (of the paragraphs not
                    known); null: the rise for paragraphs not known; p, q as for `gradient`;
      breaks        share of the paragraphs known that are not any more with that token exchanged;
      localisation  one row: the `share` of all weights with the largest |d NLL(known) / d w| are moved by a step each,
                    up their gradient: rise of NLL of the paragraphs known less that of others (held out); null: as
                    many weights of each matrix at random (`n_sets` sets, moved likewise), p over these.

    Intervals are bootstraps over paragraphs. Interventions, each beside `n_random` random sets as above: the weights
    moved by one step, the smallest of those tried (powers of the root of two times the weights' root mean square) that
    leaves exact match below 0.1 (or the one that leaves it least), and the same weights trained for `n_steps` steps to
    forget:
      exact_match      share of the paragraphs that are known by heart;
      known_loss       their NLL; other_loss: that of the half of the others that was not used to choose or to train.

    Args:
        model: any model.
        prompts: paragraphs that it may know; the checkpoint's own if not given.
        others: paragraphs like these that it does not know; those of `prompts` that are not known if not given.
        prefix: tokens of the prefix, BOS included; half of each paragraph if not given.
        share: of the weights that are moved.
        n_paragraphs: of each kind at most.
        n_draws: exchanges for the contrast, 5 at least.
        n_sets: random sets of weights.
        n_steps: of training; 0 for none.
        n_random: random sets in the intervention table.
        seed: of the choice of paragraphs, exchanges, sets and bootstrap.

    Raises:
        NotApplicable: no paragraphs to try, or fewer than four that are known by heart, or that are not.
        SchemaError: a share that is none.

    Reference: Stoehr et al. 2024 (arXiv 2403.19851); nulls, tests, and edits of random weights beside are ours.
    """
    if not 0 < share <= 1:
        raise SchemaError(f"share {share}: above 0, and at most 1")
    known, rest, facts = collect(model, prompts, others, prefix, n=n_paragraphs, seed=seed)
    length = max(known.batch.ids.shape[1], rest.batch.ids.shape[1])
    matrices = WeightMatrices.of(model.weights(), length=length)
    rows = _gradient_rows(model, matrices, known, rest, seed)
    rows += _contrast_rows(model, matrices, known, rest, n_draws, seed)
    sizes = [output_gradients(model, part) for part in (known, rest)]
    rows.append(_share_rows("activation", output_parts(model), sizes[0], sizes[1], seed))
    rows += [_rarity_rows(model, known, rest, seed), *_token_rows(model, known, rest, seed)]
    edit = Unlearning.of(model, matrices, known, rest, share=share, seed=seed)
    rows.append(_localisation_row(edit, n_sets, seed))
    facts |= {"weights": edit.n_weights, "moved": len(edit.top), "step": edit.step, "task": "paragraphs"}
    facts["layers_without"] = {f"L{layer}.{name}": why for (layer, name), why in matrices.missing.items()}
    facts["sha256"] = fingerprint([known.batch, rest.batch])
    table = pd.concat(rows, ignore_index=True)
    return Findings(table, facts, edit.rows(n_steps=n_steps, n_random=n_random, seed=seed))


def _labels(parts: Sequence[Part]) -> dict[str, Any]:
    """Columns that say which part a row is of."""
    return {
        "component": [p.name for p in parts],
        "layer": [p.layer for p in parts],
        "head": [p.head for p in parts],
        "matrix": [p.matrix for p in parts],
    }


def _share_rows(variant: str, parts: Sequence[Part], known: ndarray, rest: ndarray, seed: int) -> pd.DataFrame:
    """Shares of paragraphs known, beside those of others."""
    return _beside_rows(variant, _labels(parts), shares(known), shares(rest), "fraction", seed)


def _beside_rows(
    variant: str,
    labels: dict[str, Any],
    known: Float[ndarray, "paragraph part"],
    rest: Float[ndarray, "other part"],
    unit: str,
    seed: int,
) -> pd.DataFrame:
    """Mean over paragraphs known; null, p, q and label by those of others."""
    p = exchange_p(known, rest, n=N_EXCHANGES, seed=seed)
    q = stats.benjamini_hochberg(p)
    own = {"null": rest.mean(0), "p": p, "q": q, "label": q < LEVEL}
    interval = interval_columns(stats.bootstrap_mean(known, seed=seed))
    return pd.DataFrame({"variant": variant, "unit": unit, **labels, **interval, **own})


def _gradient_rows(
    model: Model, matrices: WeightMatrices, known: Paragraphs, rest: Paragraphs, seed: int
) -> list[pd.DataFrame]:
    parts = weight_parts(matrices)
    sizes = [paragraph_gradients(model, matrices, part) for part in (known, rest)]
    rows = [
        _share_rows(variant, parts, sizes[0][how], sizes[1][how], seed)
        for variant, how in (("gradient", "mean"), ("gradient_max", "max"))
    ]
    layers = sorted({p.layer for p in parts})
    at = np.array([[p.layer == layer for layer in layers] for p in parts], dtype=float)
    labels = {"component": [f"layer {i}" for i in layers], "layer": layers, "matrix": None}
    known_layers, rest_layers = (shares(own["mean"]) @ at for own in sizes)
    return [*rows, _beside_rows("layer", labels, known_layers, rest_layers, "fraction", seed)]


def _contrast_rows(
    model: Model, matrices: WeightMatrices, known: Paragraphs, rest: Paragraphs, n_draws: int, seed: int
) -> list[pd.DataFrame]:
    """Pooled gradients of the contrast, beside those of exchanged paragraphs."""
    rng, whole = np.random.default_rng(seed), joined(known, rest)
    sign = np.where(np.arange(len(whole)) < len(known), 1 / len(known), -1 / len(rest))
    orders = [sign, *(rng.permutation(sign) for _ in range(n_draws))]
    values: dict[str, list[ndarray]] = {"mean": [], "max": []}
    for order in orders:
        grads = summed_gradient(model, matrices, whole, order)
        for how, own in values.items():
            own.append(pooled(grads, how))
    rows = []
    for variant, how in (("contrast", "mean"), ("contrast_max", "max")):
        value, null = values[how][0], np.stack(values[how][1:])
        p = stats.p_against_nulls(value, null)
        q = stats.benjamini_hochberg(p)
        own = {"value": value, "null": null.mean(0), "p": p, "q": q, "label": q < LEVEL, "n": len(whole)}
        labels = _labels(weight_parts(matrices))
        rows.append(pd.DataFrame({"variant": variant, "unit": "nats per unit of weight", **labels, **own}))
    return rows


def _rarity(known: Paragraphs, rest: Paragraphs, d_vocab: int) -> Float[Tensor, "paragraph pos"]:
    """-log of how often each token stands in the paragraphs not known, one added to every count."""
    counts = torch.bincount(rest.batch.ids[rest.batch.mask], minlength=d_vocab).double() + 1
    return -(counts / counts.sum()).log()[known.batch.ids]


@torch.no_grad()
def _rarity_rows(model: Model, known: Paragraphs, rest: Paragraphs, seed: int) -> pd.DataFrame:
    """Rank correlation of attention with rarity, a row per head."""
    rarity, index = _rarity(known, rest, model.info.d_vocab), torch.arange(len(known))
    special = torch.isin(known.batch.ids, torch.tensor(model.special_ids, dtype=torch.long))

    def last_row(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head key"]:
        return pattern[index, :, (known.start - 1).to(pattern.device)].double().cpu()

    layers = model.info.attention_layers
    run = model.run(known.batch, capture={Site("pattern", i): last_row for i in layers})
    attention = torch.stack([run.acts[Site("pattern", i)] for i in layers], 1).flatten(1, 2).numpy()
    rng, values, nulls = np.random.default_rng(seed), [], []
    for i in range(len(known)):
        keys = ((torch.arange(known.batch.ids.shape[1]) < known.start[i]) & ~special[i]).nonzero()[:, 0].numpy()
        x, own = _ranks(attention[i][:, keys]), rarity[i].numpy()[keys]
        orders = np.stack([own, *(rng.permutation(own) for _ in range(N_EXCHANGES))])
        both = _ranks(orders) @ x.T
        values.append(both[0])
        nulls.append(both[1:])
    value, null = np.stack(values), np.stack(nulls).mean(0)
    p = (1 + (np.abs(null) >= np.abs(value.mean(0))).sum(0)) / (1 + N_EXCHANGES)
    q = stats.benjamini_hochberg(p)
    layer, head = (x.ravel() for x in np.meshgrid(layers, np.arange(model.info.n_heads), indexing="ij"))
    own = {"layer": layer, "head": head, "null": null.mean(0), "p": p, "q": q, "label": q < LEVEL}
    names = output_parts(model)[: len(layer)]
    interval = interval_columns(stats.bootstrap_mean(value, seed=seed))
    return pd.DataFrame(
        {"variant": "rarity", "unit": "rank correlation", "component": [p.name for p in names], **interval, **own}
    )


def _ranks(x: Float[ndarray, "row key"]) -> Float[ndarray, "row key"]:
    """Ranks less their mean, of unit length; zeros where a row does not vary: products are rank correlations."""
    ranks = pd.DataFrame(x).rank(axis=1).to_numpy()
    ranks = ranks - ranks.mean(1, keepdims=True)
    size = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.divide(ranks, size, out=np.zeros_like(ranks), where=size > 0)


def _token_rows(model: Model, known: Paragraphs, rest: Paragraphs, seed: int) -> list[pd.DataFrame]:
    """What another token at each position of the prefix does."""
    pool, rng = rest.batch.ids[rest.batch.mask], np.random.default_rng(seed)
    special = torch.tensor(model.special_ids, dtype=torch.long)
    pool = pool[~torch.isin(pool, special)]
    first = int(torch.isin(known.batch.ids[:, 0], special).all())
    positions = range(first, int(min(known.start.min(), rest.start.min())))
    rises, breaks = {}, []
    for name, part in (("known", known), ("rest", rest)):
        before = part.measure(model)[1]
        columns = []
        for at in positions:
            new = pool[torch.from_numpy(rng.integers(len(pool), size=len(part)))]
            still, losses = part.swapped(at, _other(part.batch.ids[:, at], new, pool)).measure(model)
            columns.append(losses - before)
            if name == "known":
                breaks.append(1.0 - still)
        rises[name] = np.stack(columns, 1)
    labels = {"component": [f"token {i}" for i in positions], "position": list(positions)}
    broken = interval_columns(stats.bootstrap_mean(np.stack(breaks, 1), seed=seed))
    return [
        _beside_rows("token", labels, rises["known"], rises["rest"], "nats", seed),
        pd.DataFrame({"variant": "breaks", "unit": "fraction", **labels, **broken}),
    ]


def _other(old: Int[Tensor, " row"], new: Int[Tensor, " row"], pool: Int[Tensor, " token"]) -> Int[Tensor, " row"]:
    """The new tokens, and where one is the old one the pool's first that is not (itself where there is none)."""
    for i in (old == new).nonzero()[:, 0].tolist():
        others = pool[pool != old[i]]
        new[i] = others[0] if len(others) else new[i]
    return new


def _localisation_row(edit: Unlearning, n_sets: int, seed: int) -> pd.DataFrame:
    """What moving the weights of largest gradient does, beside random ones."""
    own, rng = edit.selective(edit.top), np.random.default_rng(seed)
    null = np.array([edit.selective(edit.random(rng)).mean() for _ in range(n_sets)])
    interval = interval_columns(stats.bootstrap_mean(own[:, None], seed=seed))
    p = (1 + float((null >= own.mean()).sum())) / (1 + n_sets)
    row = {"null": null.mean(), "p": p, "q": p, "label": p < LEVEL}
    name = f"{len(edit.top)} weights"
    return pd.DataFrame({"variant": "localisation", "unit": "nats", "component": [name], **interval, **row})
