"""Successor heads: what a head writes for an ordinal word is the word after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.signal import convolve
from torch import Tensor

from interp import tasks
from interp.attention import Mean, Offset
from interp.batch import Batch
from interp.components import head_names
from interp.decompose.embeddings import effective_embedding
from interp.edits import Ablate
from interp.measurement.ability import Ability
from interp.measurement.declaration import REASON, PlantedTask, Stage
from interp.measurement.offsets import offset_scores
from interp.measurement.prompts import repeat_groups
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import removal_rows
from interp.measurement.rerun import Rerun
from interp.measurement.scoring import LEVEL, THRESHOLD, head_rows, interval_columns, ranked_heads
from interp.model import Model
from interp.results import stats
from interp.results.stats import Head
from probes.heads import ordinals as _ordinals
from probes.heads.ordinals import AnswerPrompts, Ordinal

EMBEDDINGS = {"full": "full", "ov_mlp0": "mlp", "ov_embed": "embed"}
"""Variant -> what `effective_embedding` calls the embedding behind which the heads are read."""
WEAK = 0.1  # score below which no head is labelled; 0.5 is the paper's cut-off
OFFSETS = (-3, -2, -1, 0, 1, 2, 3)
BASE = 10

Ranks = dict[str, Int[np.ndarray, "layer head member"]]
"""Class -> rank of the member that each head writes most for each member."""


@analysis(
    name="successor",
    family="roles",
    title="Successor heads",
    headline="full",
    order=40,
    needs="text",
    stage=Stage("successor", REASON),
    planted=PlantedTask("successor"),
    exemptions={"sample": "every member of every class is read: the seed is of intervals and lists"},
    columns={"label": "boolean", "class_low": "float64", "class_high": "float64"},
    means="Attending to an ordinal word (3, Monday, March), the head raises the word after it more than any other "
    "of its class. This is read from the weights; no prompt is run but each word alone.",
    misleads="Weights say what a head would write where it looks, not that it looks there: read the lists beside "
    "it. A model may instead move the word and count on in its MLPs, which the score does not see, or move it "
    "and do both. A copying head has its peak at offset 0, a head that likes neighbours has two: read the "
    "profile.",
    reference="Gould et al. 2023, arXiv 2312.09230",
)
def successor(
    model: Model,
    *,
    classes: Mapping[str, Sequence[str]] | None = None,
    n_lists: int = 48,
    n_repeats: int = 24,
    bos: str = "default",
    causal: bool = True,
    n_random: int = 5,
    seed: int = 0,
) -> Findings:
    """Successor score: share of ordinal tokens t with argmax over t's class of W_U OV_h e(t) = t + 1.

    e(t) is what t is behind layer 0; heads of layer 0 itself read W_E. Variants, one row per head each:
      full          e = the token through all of layer 0, alone behind a BOS: the score, with null, p, q and label;
      ov_mlp0       e = W_E t + MLP_0(W_E t), attention 0 left out, as in the paper; with p, q and label too;
      ov_embed      e = W_E t, the same;
      offset -3..+3 share whose arg-max is that many places on: a copying head peaks at 0, a predecessor at -1;
      wrap          the same for Sunday -> Monday, December -> January, which the score leaves out;
      mod10         share of numbers whose arg-max has the next number's last digit.

    The null is chance, sum (|c| - 1) / |c| over sum (|c| - 1): labels drawn at random within each class c. p is the
    tail of the number of hits under it (Poisson-binomial, exact for independent labels); q is Benjamini-Hochberg over
    heads within the variant. A label needs q < 0.01, a score >= 0.1 and more arg-maxes at +1 than at any other offset.
    ci_low and ci_high resample tokens, as if they were independent, and speak of these classes; class_low and
    class_high, of the first three variants, resample whole classes: use these for what is claimed of others. Neither
    decides a label.

    With `causal`, where the model continues lists ("Monday, Tuesday,") in more than half of the cases: accuracy and
    loss on lists and on repeated random tokens with the labelled heads, and with the copying heads (mass >= 0.3 on the
    induction stripe), ablated: by the mean over lists at the last position alone ("at END"), to zero everywhere, beside
    `n_random` random sets. At END is the test of what they answer: elsewhere a head may have other work.

    Args:
        model: any loaded model with a tokenizer.
        classes: name -> members in order, in place of those of the tokenizer or of `datasets/ordinals`.
        n_lists: lists to continue.
        n_repeats: repeated random prompts.
        bos: "default", "forced" or "none", for lists and repeats. Words are read behind a BOS where there is one.
        causal: whether to ablate.
        n_random: random sets each set is compared with.
        seed: of prompts, bootstrap and random sets.

    Raises:
        NotApplicable: no tokenizer, or no class with five members of one token.

    Reference: Gould et al. 2023 (arXiv 2312.09230), section 2.1: their score is `ov_mlp0`, over 0.5. The embedding
    through attention 0, the test, the profile as a condition and the ablations at END are ours. Biases are left out:
    they do not depend on the token.
    """
    series, coverage = _ordinals.find(model, classes)
    parts, labels, scores = [], {}, {}
    by_variant: dict[str, Ranks] = {name: _ranks(model, series, name) for name in EMBEDDINGS}
    for name, ranks in by_variant.items():
        rows, labels[name], scores[name] = _score_rows(model, series, ranks, name, seed=seed)
        parts.append(rows)
    parts += _profile(model, series, by_variant["full"], seed=seed)
    data: dict[str, object] = {
        "task": "ordinal classes",
        "classes": {c.name: list(c.words) if len(c.words) <= 30 else len(c.words) for c in series},
        "coverage": coverage,
        "bos": bos,
        "sha256": tasks.fingerprint([Batch.of(c.ids[None]) for c in series]),
    }
    effects: list[dict[str, object]] = []
    ability: dict[str, Ability] = {}
    if causal and labels["full"].any():
        heads = ranked_heads(model, labels["full"], scores["full"])
        effects, more = _dissociation(model, series, heads, sizes=(n_lists, n_repeats), bos=bos, n=n_random, seed=seed)
        data |= more
        if "ordinal_accuracy" in more:
            n = int(more["n_lists"])
            ability["lists"] = Ability.of_counts(round(more["ordinal_accuracy"] * n), n, 1 / model.info.d_vocab)
    return Findings(pd.concat(parts, ignore_index=True), data, effects, ability)


def _ranks(model: Model, classes: Sequence[Ordinal], variant: str) -> Ranks:
    """Arg-max within its class of what each head writes for each member, as ranks."""
    w = model.weights()
    ids = torch.cat([c.ids for c in classes])
    first = tasks.bos_id(model, "default")
    if first is None and getattr(model.tokenizer, "bos_token_id", None) is not None:
        first = tasks.bos_id(model, "forced")
    raw, deep = (effective_embedding(model, tokens=ids, variant=v, bos=first) for v in ("embed", EMBEDDINGS[variant]))
    ranks: dict[str, list[np.ndarray]] = {c.name: [] for c in classes}
    for layer in w.layers:
        ov = w.ov(layer, fold_norm=True)
        start = 0
        for c in classes:
            e = (raw if layer == 0 else deep)[start : start + len(c.ids)]
            start += len(c.ids)
            right = ov.right if w.final_norm is None else w.final_norm.linear(ov.right)
            logits = (e @ ov.left) @ (right @ w.source.columns(c.ids).T)  # head member member
            ranks[c.name].append(c.rank[logits.argmax(-1).numpy()])
    return {name: np.stack(layers) for name, layers in ranks.items()}


def _hits(
    classes: Sequence[Ordinal], ranks: Ranks, offset: int
) -> tuple[Float[np.ndarray, "item layer head"], Float[np.ndarray, " item"]]:
    """Whether each member's arg-max is `offset` places on, where there is such a member; and the chance of that."""
    hits, chance = [], []
    for c in classes:
        own = c.has(offset)
        hits.append((ranks[c.name] == c.rank + offset)[..., own])
        chance += [1 / len(c.rank)] * int(own.sum())
    return np.moveaxis(np.concatenate(hits, -1), -1, 0).astype(float), np.array(chance)


def _score_rows(
    model: Model, classes: Sequence[Ordinal], ranks: Ranks, variant: str, *, seed: int
) -> tuple[pd.DataFrame, Bool[np.ndarray, "layer head"], Float[np.ndarray, "layer head"]]:
    hits, chance = _hits(classes, ranks, 1)
    score = stats.bootstrap_mean(hits, seed=seed)
    p = tail(chance)[hits.sum(0).astype(int)]
    q = stats.benjamini_hochberg(p)
    others = np.stack([_hits(classes, ranks, o)[0].mean(0) for o in OFFSETS if o != 1])
    label = (q < LEVEL) & (score.mean >= WEAK) & (score.mean > others.max(0))
    columns = interval_columns(score)
    columns["class_low"], columns["class_high"] = over_classes(hits, [int(c.has(1).sum()) for c in classes], seed=seed)
    rows = head_rows(model, variant, "fraction", **columns, null=chance.mean(), p=p, q=q, label=label)
    return rows, label, score.mean


def over_classes(
    hits: Float[np.ndarray, "item layer head"], sizes: Sequence[int], *, seed: int
) -> tuple[Float[np.ndarray, "layer head"], Float[np.ndarray, "layer head"]]:
    """95 % percentile bootstrap of the share of hits with whole classes drawn again, items listed class by class.

    With few classes it is coarse; NaN with one.
    """
    n = len(sizes)
    if n < 2:
        return np.full(hits.shape[1:], np.nan), np.full(hits.shape[1:], np.nan)
    total = np.add.reduceat(hits.reshape(len(hits), -1), np.cumsum([0, *sizes[:-1]]))  # class component
    low, high, _ = stats.bootstrap(lambda w: (w @ total) / (w @ np.array(sizes))[:, None], n, seed=seed)
    return low.reshape(hits.shape[1:]), high.reshape(hits.shape[1:])


def tail(chance: Float[np.ndarray, " item"]) -> Float[np.ndarray, " hits"]:
    """P(at least k hits) for k = 0, 1, ...: the Poisson-binomial tail of independent hits with these chances."""
    mass = np.ones(1)
    for value in chance:
        mass = convolve(mass, np.array([1 - value, value]), method="direct")
    return np.clip(mass[::-1].cumsum()[::-1], 0, 1)


def _profile(model: Model, classes: Sequence[Ordinal], ranks: Ranks, *, seed: int) -> list[pd.DataFrame]:
    """Rows of the offsets, of the pairs that wrap around, and of last digits."""
    parts = {f"offset {offset:+d}": _hits(classes, ranks, offset) for offset in OFFSETS}
    cycles = [c for c in classes if c.wraps.any()]
    if cycles:
        hits = np.concatenate([(ranks[c.name] == 0)[..., c.wraps] for c in cycles], -1)
        parts["wrap"] = np.moveaxis(hits, -1, 0).astype(float), np.array([1 / len(c.rank) for c in cycles])
    for c in classes:
        if c.name == "numbers" and len(c.rank) > 2 * BASE:
            own = c.has(1)
            digit = (ranks[c.name] - c.rank - 1)[..., own] % BASE == 0
            share = np.array([np.mean((c.rank - r - 1) % BASE == 0) for r in c.rank[own]])
            parts["mod10"] = np.moveaxis(digit, -1, 0).astype(float), share
    return [
        head_rows(
            model,
            name,
            "fraction",
            **interval_columns(stats.bootstrap_mean(hits, seed=seed)),
            null=chance.mean(),
        )
        for name, (hits, chance) in parts.items()
        if len(hits)
    ]


def _dissociation(
    model: Model,
    classes: Sequence[Ordinal],
    heads: Sequence[Head],
    *,
    sizes: tuple[int, int],
    bos: str,
    n: int,
    seed: int,
) -> tuple[list[dict[str, object]], dict[str, Any]]:
    """Lists and copying without the successor heads, and without the copying heads."""
    ordinal_lists = _ordinals.lists(model, classes, n=sizes[0], bos=bos, seed=seed)
    if ordinal_lists is None:
        return [], {"lists": "cannot be written with this tokenizer"}
    groups = repeat_groups(model, n_prompts=sizes[1], lengths=(8, 24), n_lengths=3, bos=bos, seed=seed)
    copy_prompts = [_middle(g) for g in groups]
    clean = _accuracy(Rerun(model), ordinal_lists, copy_prompts, ())
    data: dict[str, Any] = {"ordinal_accuracy": clean["ordinal_accuracy"], "copy_accuracy": clean["copy_accuracy"]}
    data["n_lists"] = len(ordinal_lists.answers)
    if clean["ordinal_accuracy"] <= 0.5:
        return [], data
    stripe = offset_scores(
        model, [(g.batch, {"target": Mean(Offset(g.length - 1), g.rows(g.second))}) for g in groups]
    ).target.mean(0)
    copying_heads = [h for h in ranked_heads(model, stripe >= THRESHOLD, stripe) if h not in heads]
    data["copying_heads"] = head_names(copying_heads)
    pool = [h for h in ranked_heads(model, stripe < THRESHOLD, stripe) if h not in heads]
    mean = model.mean(ordinal_lists.batch)
    rows: list[dict[str, object]] = []
    for head_set in (heads, copying_heads):
        run = Rerun.of_heads(model, head_set)
        for where, last in (("at END", True), ("everywhere", False)):
            if not head_set:
                continue

            def measure(edits: Sequence[Ablate], last: bool = last, run: Rerun = run) -> dict[str, float]:
                placed_edits = [replace(e, positions=-1) for e in edits] if last else edits
                return _accuracy(run, ordinal_lists, copy_prompts, placed_edits)

            how = ("mean",) if last else ("zero",)
            removals = removal_rows(measure, head_set, pool, mean=mean, n_random=n, seed=seed, how=how)
            rows += [{**r, "set_id": str(r["set_id"]).replace(":", f" {where}:", 1)} for r in removals]
    return rows, data


def _middle(group: tasks.Repeats) -> AnswerPrompts:
    """Repeats cut in the middle of the second copy, where one token is to be copied."""
    at = group.start + group.length + group.length // 2
    return AnswerPrompts(Batch.of(group.batch.ids[:, :at]), group.batch.ids[:, at])


def _accuracy(
    run: Rerun, ordinal_lists: AnswerPrompts, copy_prompts: Sequence[AnswerPrompts], edits: Sequence[Ablate]
) -> dict[str, float]:
    losses: dict[str, list[Tensor]] = {"ordinal": [], "copy": []}
    hits: dict[str, list[Tensor]] = {"ordinal": [], "copy": []}
    for name, prompts in (("ordinal", ordinal_lists), *(("copy", c) for c in copy_prompts)):
        logits = run(prompts.batch, edits)
        last = prompts.batch.mask.sum(1) - 1
        at = logits[torch.arange(len(last)), last.to(logits.device)].float().cpu()
        losses[name].append(torch.nn.functional.cross_entropy(at, prompts.answers, reduction="none"))
        hits[name].append((at.argmax(-1) == prompts.answers).float())
    return {f"{k}_accuracy": float(torch.cat(v).mean()) for k, v in hits.items()} | {
        f"{k}_loss_nats": float(torch.cat(v).mean()) for k, v in losses.items()
    }
