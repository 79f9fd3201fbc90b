"""Retrieval heads: heads that look at a needle in long text while the model says it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from interp.measurement.declaration import IDENTIFY, PlantedTask, Stage
from interp.measurement.needle_answers import each_answer, needle_ability, needle_accuracy
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import removal_rows
from interp.measurement.rerun import Rerun
from interp.measurement.scoring import LEVEL, MARGIN, head_rows, interval_columns, ranked_heads
from interp.model import Model
from interp.results import stats
from interp.tasks import needles
from interp.tasks.haystacks import Format
from interp.tasks.needles import Needles
from probes.heads import needle_hits as _hits

WEAK = 0.1  # Wu et al. call a head a retrieval head from here on, and a strong one from 0.5
CAUSAL_PROMPTS = 8  # every set of heads costs a forward pass of so many prompts


@analysis(
    name="retrieval",
    family="retrieval",
    title="Retrieval heads",
    headline="teacher_forced",
    order=50,
    stage=Stage("retrieval", IDENTIFY),
    planted=PlantedTask("retrieval"),
    columns={"label": "boolean"},
    means="While the model says a fact that is hidden in the prompt, the head's strongest attention is on that very "
    "token of the fact, wherever it was hidden. Masking such heads is what breaks long-context recall.",
    misleads="The largest weight may be a small one: read the mass beside it. Where the model does not find the needle "
    "(see accuracy in the provenance) a head may look without the model using it. On key-value pairs of random tokens, "
    "which stand in for text where there is no tokenizer, every induction head retrieves.",
    reference="Wu et al. 2024, arXiv 2404.15574",
)
def retrieval(
    model: Model,
    *,
    n_prompts: int = 24,
    length: int = 256,
    n_needles: int = 3,
    value_words: int = 1,
    task: Format | None = None,
    decoding: bool = False,
    max_new_tokens: int = 0,
    bos: str = "default",
    causal: bool = True,
    n_random: int = 10,
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Retrieval score: share of the needle's distinct tokens t said by a row whose arg-max key is a t of the needle.

    Needles (a key and a value, `interp.tasks.needles`) are hidden at depths spread evenly over the prompt and asked for
    at its end; a row is the query that predicts a token of the answer. Variants, a row per head each, means over
    prompts:
      teacher_forced         right answers fed in: one forward for all rows, whatever the model would have said;
      teacher_forced_nosink  the same with the first token left out of the contest;
      mass                   attention on the whole needle (the value) at the answer's rows, a probability;
      decoding               the paper's: rows of greedy decoding, arg-max on a needle token equal to the one generated,
                             over needles the model says (more than half of their tokens); NaN where it says none;
      decoding_all           the same over all needles. Both only with `decoding`.

    The null is what uniform attention over the visible keys gives: a hit is c / (i + 1) at row i, with c needle tokens
    equal to the answer; mass is |needle| / (i + 1). p tests that hits on the needle exceed hits on 16 random places of
    the haystack, each as long as the needle, by at most 0.05; q is Benjamini-Hochberg over all heads. A label needs
    q < 0.01 and an interval that begins at 0.1 or above (0.5 is strong). In layers whose sliding window does not reach
    back to every needle values are missing, p is 1 and no head is labelled. With `causal` the set of labelled heads is
    zeroed, as are its best 1, 2, 4, ..., and needle accuracy compared with that under random sets of heads
    that do not retrieve, as many in each layer where there are so many: see `interventions`.

    Args:
        model: any loaded model; without a tokenizer needles are key-value pairs of random tokens.
        n_prompts: haystacks, the unit of the interval.
        length: tokens per prompt; shortened to the context and, for random tokens, the vocabulary.
        n_needles: needles per prompt, each with its question.
        value_words: words in a value.
        task: how a needle is told and asked for, instead of what suits the model.
        decoding: whether to decode as well, one pass over the prompt per token.
        max_new_tokens: tokens decoded per needle; 0: four more than the longest value has.
        bos: "default", "forced" or "none".
        causal: whether to mask the labelled set.
        n_random: random sets it is compared with.
        method: attention method, "fused" or "naive".
        seed: of prompts, bootstrap and random sets.

    Raises:
        NotApplicable: context or vocabulary leave no room for a haystack.

    Reference: Wu et al. 2024 (arXiv 2404.15574), section 2. There the needle is a sentence of which the answer repeats
    a part; here it is the value, all of which is asked for, so that 1 can be reached. A needle token counts once, as in
    the paper's formula (its code counts steps). Teacher forcing, the test and the null are ours.
    """
    sizes: dict[str, Any] = {"n_needles": n_needles, "value_words": value_words, "task": task, "length": length}
    haystacks = needles.hide(model, n=n_prompts, **sizes, bos=bos, seed=seed)
    scores = _hits.teacher_forced(model, haystacks, method=method, seed=seed)
    in_reach = _hits.reach_mask(model, haystacks)[:, None] & np.ones(model.info.n_heads, dtype=bool)  # layer head
    score = stats.bootstrap_mean(scores.hits, seed=seed)
    p = np.where(in_reach, stats.p_against_nulls(score.mean, scores.wrong, margin=MARGIN), np.nan)
    q = stats.benjamini_hochberg(p)
    null, label = _hits.chance(haystacks), in_reach & (q < LEVEL) & (score.low >= WEAK)
    nosink, mass = (stats.bootstrap_mean(x, seed=seed) for x in (scores.hits_nosink, scores.mass))
    parts = [
        _rows(model, "teacher_forced", "fraction", score, in_reach, null=null.hit, p=p, q=q, label=label),
        _rows(model, "teacher_forced_nosink", "fraction", nosink, in_reach, null=null.hit_nosink),
        _rows(model, "mass", "probability", mass, in_reach, null=null.mass),
    ]
    able = needle_ability(each_answer(Rerun(model), haystacks)[0], model)
    data = {**haystacks.describe(), "bos": bos, "accuracy": able["needles"].accuracy}
    if decoding:
        greedy = _hits.decode(model, haystacks, max_new_tokens=max_new_tokens, method=method)
        parts += _decoding_rows(model, greedy, in_reach, null=null.hit, seed=seed)
        data |= {"decoded_found": float(greedy.found.mean()), "decoded_tokens": greedy.steps}
    effects = _drop(model, haystacks, label, score.mean, n_random=n_random, seed=seed) if causal and label.any() else []
    return Findings(pd.concat(parts, ignore_index=True), data, effects, able)


def _rows(
    model: Model, variant: str, unit: str, value: stats.Interval, in_reach: np.ndarray, **more: object
) -> pd.DataFrame:
    """Rows of a variant; heads that cannot see the needles have no value."""
    columns = interval_columns(value)
    reached_columns = {k: np.where(in_reach, v, np.nan) if isinstance(v, np.ndarray) else v for k, v in columns.items()}
    return head_rows(model, variant, unit, **reached_columns, **more)


def _decoding_rows(
    model: Model, greedy: _hits.Decoded, in_reach: np.ndarray, *, null: float, seed: int
) -> list[pd.DataFrame]:
    """Rows of the paper's score over needles found, and over all of them."""
    hits_where_found = greedy.hits[greedy.found]
    none = stats.bootstrap_mean(np.full((1, *in_reach.shape), np.nan), seed=seed)._replace(n=0)
    conditional = stats.bootstrap_mean(hits_where_found, seed=seed) if len(hits_where_found) else none
    return [
        _rows(model, "decoding", "fraction", conditional, in_reach, null=null),
        _rows(model, "decoding_all", "fraction", stats.bootstrap_mean(greedy.hits, seed=seed), in_reach, null=null),
    ]


def _drop(
    model: Model, haystacks: Needles, label: np.ndarray, score: np.ndarray, *, n_random: int, seed: int
) -> list[dict[str, object]]:
    """Needle accuracy without the labelled heads, next to sets of heads that score below the weak threshold."""
    few = haystacks.first(CAUSAL_PROMPTS)
    heads = ranked_heads(model, label, score)
    run = Rerun.of_heads(model, heads)
    return removal_rows(
        lambda edits: needle_accuracy(run, few, edits),
        heads,
        ranked_heads(model, ~label & (score < WEAK), score),
        mean=model.mean(few.batch),
        n_random=n_random,
        seed=seed,
        how=("zero",),
        n_random_dose=4,
    )
