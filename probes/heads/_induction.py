"""Induction heads: prefix matching, what it is worth against a null, and what breaks when the heads are removed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from interp.attention import Mean, Offset, Statistic, TopKeys
from interp.batch import Prompts
from interp.components import head_names
from interp.edits import ablate_heads
from interp.errors import TaskError
from interp.measurement.declaration import CAUSAL, REASON, PlantedTask, Stage
from interp.measurement.offsets import (
    WRONG_OFFSETS,
    OffsetScores,
    offset_questions,
    offset_scores,
    permuted_scores,
    repeat_null,
    wrong_offsets,
)
from interp.measurement.pairs import NEAR_KEYS, copy_pairs, following, pair_scores
from interp.measurement.prompts import describe_repeats, own_prompts, repeat_groups
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import repeat_removal
from interp.measurement.scoring import (
    LEVEL,
    MARGIN,
    T0,
    THRESHOLD,
    head_rows,
    interval_columns,
    ranked_heads,
    score_rows,
)
from interp.measurement.weight_readings import copying_ratios
from interp.model import Model
from interp.results import stats
from interp.tasks import Repeats


@analysis(
    name="induction",
    presumes=(CAUSAL,),
    family="copy",
    title="Induction heads",
    headline="prefix_matching",
    order=10,
    shares="random blocks, repeated",
    stage=Stage("induction", REASON),
    planted=PlantedTask("induction"),
    section="attention",
    columns={"label": "boolean"},
    means="On a repeated sequence the head looks at the token that followed the current one last time, so that copying "
    "it continues the repeat. Labelled heads also copy by their weights, where these can be read.",
    misleads="Attention is not use: read the ablation of the set of labelled heads beside it. Heads are redundant, so "
    "removing one alone may change nothing. With a single repeat length a purely positional head passes for one, which "
    "is why lengths are varied here.",
    reference="Olsson et al. 2022, arXiv 2209.11895",
)
def induction(
    model: Model,
    *,
    prompts: Prompts | None = None,
    n_prompts: int = 64,
    lengths: tuple[int, int] = (16, 64),
    n_lengths: int = 8,
    bos: str = "default",
    causal: bool = True,
    n_random: int = 20,
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Induction score: mean over second-copy queries i of p(i, i - T + 1), on a random block of T tokens, twice.

    Variants, one row per head each:
      prefix_matching             the score, with null, p, q and label;
      prefix_matching_normalised  (score - null) / (1 - null), 0 at uniform attention;
      argmax_hit                  share of second-copy queries whose largest non-BOS probability is on the target;
      copying_ratio               sum Re(lambda) / sum |lambda| of W_E W_V W_O W_U, norms (gain and centring) folded in;
                                  in [-1, 1]; NA where the weights cannot be read;
      previous_token_dependence   drop of the score when the model's previous-token heads are zero-ablated; NA for heads
                                  before which none of those stands.

    The null is uniform causal attention, (H_{2T+1} - H_{T+1}) / T after a BOS. p tests that the stripe gets at most
    0.05 more than 16 stripes at wrong offsets T - 1 +- 2..9 of the same head, as far as the prompts have them; where
    fewer than three lengths or five such stripes fit the context, the nulls are the same stripe in 16 sets of prompts
    whose second copy is permuted (`null_draws` in the provenance). q is Benjamini-Hochberg over all heads. A head is
    labelled at q < 0.01, score >= 0.3, argmax_hit >= 0.3 and copying_ratio > 0; where that is NA (the provenance has
    the reason: weights that cannot be read, logits that are not of tokens) by attention alone. With `causal`, the set
    of labelled heads is ablated (zero and mean) and compared with up to `n_random` distinct random sets with as many
    heads in each layer: see `interventions`; not where logits are not of tokens.

    Args:
        model: any loaded model.
        prompts: text or ids of one's own: queries are then all tokens that stand earlier in their prompt, targets what
            followed those copies, and the nulls the keys 2 to 9 places around; the variants are prefix_matching and
            copying_ratio, the label is without argmax_hit, and nothing is ablated. Where more than 2**18 pairs of equal
            tokens make that dear, a random share of these queries stands for all (`queries_share` in the provenance).
        n_prompts: random prompts in all; a prompt is the unit of the interval.
        lengths: lowest and highest block length T.
        n_lengths: distinct lengths drawn, as far as they fit.
        bos: "default", "forced" or "none".
        causal: whether to ablate the labelled set.
        n_random: random sets it is compared with.
        method: attention method, "fused" or "naive".
        seed: of prompts, bootstrap and random sets.

    Raises:
        NotApplicable: the context or vocabulary leaves no room for three tokens, twice.
        TaskError: prompts of one's own in which no token comes twice.

    Reference: Olsson et al. 2022 (arXiv 2209.11895), prefix matching and copying. We repeat twice with varied T where
    they repeat four times at T = 25, and the wrong-offset test is ours.
    """
    if prompts is not None:
        return _on_own(model, prompts, method=method, seed=seed)
    groups = repeat_groups(
        model, n_prompts=n_prompts, lengths=lengths, n_lengths=n_lengths, bos=bos, seed=seed, least=1
    )
    null_kind = repeat_null(groups, _wrong)
    full = null_kind == WRONG_OFFSETS
    scores = offset_scores(model, [(g.batch, _questions(g, full=full)) for g in groups], method=method)
    nulls = scores.wrong if full else permuted_scores(model, groups, _stripe, method=method, seed=seed)
    hits = stats.bootstrap_mean(_argmax_hits(model, groups, method=method), seed=seed)
    null = np.array([stats.uniform_causal(g.second[0], g.second[-1]) for g in groups for _ in g.batch.ids])

    matching = stats.bootstrap_mean(scores.target, seed=seed)
    p = stats.p_against_nulls(matching.mean, nulls, margin=MARGIN)
    q = stats.benjamini_hochberg(p)
    ratio, reading = copying_ratios(model)
    label = (q < LEVEL) & (matching.mean >= THRESHOLD) & (hits.mean >= THRESHOLD) & ~(ratio <= 0)

    test = {"null": null.mean(), "p": p, "q": q, "label": label}
    further, previous_token_heads = _further(model, groups, scores, hits, ratio, null, method=method, seed=seed)
    parts = [head_rows(model, "prefix_matching", "probability", **interval_columns(matching), **test), *further]
    heads = ranked_heads(model, label, matching.mean)
    effects = _removal(model, groups, heads, n_random=n_random, seed=seed) if causal else []
    data = {**describe_repeats(groups, bos), "null_draws": null_kind, "previous_token_heads": previous_token_heads}
    return Findings(pd.concat(parts, ignore_index=True), data | {"copying_ratio": reading}, effects)


def _further(
    model: Model,
    groups: Sequence[Repeats],
    scores: OffsetScores,
    hits: stats.Interval,
    ratio: np.ndarray,
    null: np.ndarray,
    *,
    method: str,
    seed: int,
) -> tuple[list[pd.DataFrame], list[str]]:
    """Rows of the variants behind the first, and the model's previous-token heads."""
    spread = (1 - null)[:, None, None]
    normalised_score = stats.bootstrap_mean((scores.target - null[:, None, None]) / spread, seed=seed)
    dependence, previous_token_heads = _previous_token_dependence(model, groups, scores, method=method, seed=seed)
    columns = interval_columns
    parts = [
        head_rows(model, "prefix_matching_normalised", "fraction", **columns(normalised_score), null=0.0),
        head_rows(model, "argmax_hit", "fraction", **columns(hits), null=_hit_null(groups)),
        head_rows(model, "copying_ratio", "fraction", value=ratio, null=0.0),
        head_rows(model, "previous_token_dependence", "probability", **columns(dependence), null=0.0),
    ]
    return parts, previous_token_heads


def _on_own(model: Model, prompts: Prompts, *, method: str, seed: int) -> Findings:
    """Prefix matching wherever a token of the caller's prompts comes back."""
    own = own_prompts(model, prompts, least=4)
    copies, share = copy_pairs(own.batch, own.rows(), seed=seed)
    pairs = following(copies)
    if not len(pairs[0]):
        raise TaskError("no token comes twice in these prompts with another in between: there is nothing to continue")
    found = pair_scores(model, own.batch, pairs, start=own.start, method=method)
    table = score_rows(model, "prefix_matching", "probability", found.values, found.wrong, null=found.null, seed=seed)
    ratio, reading = copying_ratios(model)
    table.loc[ratio.reshape(-1) <= 0, "label"] = False
    parts = [table, head_rows(model, "copying_ratio", "fraction", value=ratio, null=0.0)]
    data = own.data | {"null_draws": NEAR_KEYS, "queries_share": share, "copying_ratio": reading}
    return Findings(pd.concat(parts, ignore_index=True), data)


def _removal(
    model: Model, groups: Sequence[Repeats], heads: Sequence[tuple[int, int]], *, n_random: int, seed: int
) -> list[dict[str, object]]:
    """Rows of ablating a set of heads; none without heads, or where logits are not of tokens."""
    if not heads or model.info.n_logits is not None:
        return []
    pool = [(layer, head) for layer in model.info.attention_layers for head in range(model.info.n_heads)]
    return repeat_removal(model, groups, heads, pool, n_random=n_random, seed=seed)


def _stripe(group: Repeats) -> int:
    """Offset from a token of the second copy to the one behind its first occurrence."""
    return group.length - 1


def _wrong(group: Repeats) -> list[int]:
    return wrong_offsets(_stripe(group), lowest=2)


def _questions(group: Repeats, *, full: bool) -> dict[str, Statistic]:
    """Target stripe and previous-token mass; when `full`, wrong stripes too."""
    rows = group.rows(group.second)
    once = group.rows(range(max(T0, group.start + 1), group.start + group.length))
    questions: dict[str, Statistic] = {"target": Mean(Offset(_stripe(group)), rows), "previous": Mean(Offset(1), once)}
    if full:
        questions |= offset_questions(group.batch, rows, _wrong(group), first_key=group.start)
    return questions


def _hit_null(groups: Sequence[Repeats]) -> float:
    """Chance that a random visible non-BOS key is the target."""
    return float(np.mean([stats.uniform_causal(g.second[0] - g.start, g.second[-1] - g.start) for g in groups]))


def _argmax_hits(model: Model, groups: Sequence[Repeats], *, method: str) -> np.ndarray:
    """[prompt layer head]: share of second-copy queries whose largest probability on a non-BOS key is the target."""
    hits = []
    for g in groups:
        queries = torch.tensor(g.second)
        bos = torch.zeros_like(g.batch.mask)
        bos[:, : g.start] = True
        top = TopKeys(queries.expand(len(g.batch.ids), -1), k=1, exclude=bos)
        keys = model.attention(g.batch, {"top": top}, method=method)["top"][..., 0, 1]  # layer prompt head query
        hits.append((keys == queries - g.length + 1).double().mean(-1).transpose(0, 1).numpy())
    return np.concatenate(hits)


def _previous_token_dependence(
    model: Model, groups: Sequence[Repeats], scores: OffsetScores, *, method: str, seed: int
) -> tuple[stats.Interval, list[str]]:
    """Drop of the score with every head of previous-token mass >= 0.3 (the best if none) zeroed, and their names.

    NaN for heads of layers before which none of them stands: nothing that they read was removed, and a drop of 0 would
    be no finding.
    """
    previous = stats.nan_mean(scores.extra["previous"], axis=0)  # layer head
    strong = previous >= np.fmin(THRESHOLD, np.fmax.reduce(previous, axis=None))
    previous_token_heads = ranked_heads(model, strong, previous)
    batch_questions = [(g.batch, _questions(g, full=False)) for g in groups]
    without = offset_scores(model, batch_questions, edits=ablate_heads(previous_token_heads), method=method)
    change = scores.target - without.target
    first = min((layer for layer, _ in previous_token_heads), default=model.info.n_layers)
    change[:, [layer <= first for layer in model.info.attention_layers]] = np.nan
    return stats.bootstrap_mean(change, seed=seed), head_names(previous_token_heads)
