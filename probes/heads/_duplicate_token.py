"""Duplicate-token heads."""

from __future__ import annotations

import numpy as np

from interp import tasks
from interp.attention import Mean, Pairs, Statistic
from interp.batch import Prompts
from interp.errors import TaskError
from interp.measurement.declaration import IDENTIFY, PlantedTask, Stage
from interp.measurement.offsets import (
    WRONG_OFFSETS,
    offset_questions,
    offset_scores,
    permuted_scores,
    repeat_null,
    wrong_offsets,
)
from interp.measurement.pairs import NEAR_KEYS, copy_pairs, pair_scores
from interp.measurement.prompts import describe_repeats, own_prompts, repeat_groups, uniform_mass
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import score_rows
from interp.model import Model
from interp.tasks import Repeats


@analysis(
    name="duplicate_token",
    presumes=(),
    family="copy",
    title="Duplicate-token heads",
    headline="score",
    order=30,
    shares="random blocks, repeated",
    stage=Stage("duplicate token", IDENTIFY),
    planted=PlantedTask("duplicate_token"),
    columns={"label": "boolean"},
    means="The head looks at earlier copies of the current token itself (echo), not at what followed them (induction).",
    misleads="A head that matches similar tokens scores too. On random tokens nothing says that the copy is used.",
    reference="Wang et al. 2022, arXiv 2211.00593 (duplicate-token heads)",
)
def duplicate_token(
    model: Model,
    *,
    prompts: Prompts | None = None,
    n_prompts: int = 64,
    lengths: tuple[int, int] = (16, 64),
    n_lengths: int = 8,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Duplicate-token score: mean over second-copy queries i of the sum of p(i, j) over j < i with the same token.

    Prompts are a random block of T distinct tokens, twice, T varied. The null is uniform attention; p tests that
    the stripe at offset T gets at most 0.05 more than 16 stripes at T +- 2..9 of the same head, as far as the prompts
    have them; where fewer than three lengths or five such stripes fit the context, the nulls are the same stripe in 16
    sets of prompts whose second copy is permuted (`null_draws` in the provenance). q is Benjamini-Hochberg over all
    heads. A head is labelled at q < 0.01 and score >= 0.3.

    Args:
        model: any loaded model.
        prompts: text or ids of one's own: queries are then all tokens that stand earlier in their prompt, and the nulls
            the keys 2 to 9 places around the copies. Where they have more than 2**18 such copies, a random share of the
            queries stands for all (`queries_share` in the provenance).
        n_prompts: random prompts in all; a prompt is the unit of the interval.
        lengths: lowest and highest block length T.
        n_lengths: distinct lengths drawn.
        bos: "default", "forced" or "none".
        method: attention method, "fused" or "naive".
        seed: of prompts and bootstrap.

    Raises:
        NotApplicable: the context or vocabulary leaves no room for three tokens, twice; attention both ways within a
            window.
        TaskError: prompts of one's own in which no token comes twice.

    Reference: Wang et al. 2022 (arXiv 2211.00593), section 3. The wrong-offset test is ours.
    """
    if prompts is not None:
        own = own_prompts(model, prompts, least=3)
        pairs, share = copy_pairs(own.batch, own.rows(), seed=seed)
        if not len(pairs[0]):
            raise TaskError("no token comes twice in these prompts: there are no copies to look at")
        found = pair_scores(model, own.batch, pairs, start=own.start, method=method)
        table = score_rows(model, "score", "probability", found.values, found.wrong, null=found.null, seed=seed)
        return Findings(table, own.data | {"null_draws": NEAR_KEYS, "queries_share": share})
    groups = repeat_groups(
        model, n_prompts=n_prompts, lengths=lengths, n_lengths=n_lengths, bos=bos, seed=seed, least=1
    )
    null_kind = repeat_null(groups, _wrong)
    batch_questions = []
    for g in groups:
        rows = g.rows(g.second)
        questions: dict[str, Statistic] = {"target": Mean(Pairs(*tasks.earlier_equal_pairs(g.batch)), rows)}
        if null_kind == WRONG_OFFSETS:
            questions |= offset_questions(g.batch, rows, _wrong(g), first_key=g.start)
        batch_questions.append((g.batch, questions))
    scores = offset_scores(model, batch_questions, method=method)
    nulls = scores.wrong
    if null_kind != WRONG_OFFSETS:
        nulls = permuted_scores(model, groups, lambda g: g.length, method=method, seed=seed)

    null = float(np.mean([_uniform(model, g) for g in groups]))
    table = score_rows(model, "score", "probability", scores.target, nulls, null=null, seed=seed)
    return Findings(table, describe_repeats(groups, bos) | {"null_draws": null_kind})


def _uniform(model: Model, group: Repeats) -> float:
    """What uniform attention gives the one earlier copy, mean over the second copy's queries."""
    return uniform_mass(model, group.second[0], group.second[-1], length=group.batch.ids.shape[1])


def _wrong(group: Repeats) -> list[int]:
    return wrong_offsets(group.length, lowest=3)
