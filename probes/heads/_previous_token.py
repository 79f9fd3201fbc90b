"""Previous-token heads."""

from __future__ import annotations

import numpy as np

from interp import tasks
from interp.attention import Mean, Offset
from interp.batch import Prompts
from interp.errors import NotApplicable
from interp.measurement.declaration import IDENTIFY, PlantedTask, Stage
from interp.measurement.offsets import offset_questions, offset_scores
from interp.measurement.prompts import PromptSet, own_prompts, uniform_mass
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import T0, score_rows
from interp.model import Model
from interp.results import stats

WRONG = range(2, 18)
"""Offsets whose masses are the null."""
FEWEST = 3  # ordinary tokens below which prompts say nothing, repeated or not


@analysis(
    name="previous_token",
    presumes=(),
    family="copy",
    title="Previous-token heads",
    headline="score",
    order=20,
    shares="random tokens",
    stage=Stage("previous token", IDENTIFY),
    planted=PlantedTask("previous_token"),
    columns={"label": "boolean"},
    means="The head looks one token back wherever it is. In layer 0 it often supplies what induction heads match on.",
    misleads="A head that spreads over the last few tokens scores in proportion to its share on the last one. "
    "Looking back is not use: only an ablation shows that the model relies on it.",
    reference="Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; Olsson et al. 2022, "
    "arXiv 2209.11895",
)
def previous_token(
    model: Model,
    *,
    prompts: Prompts | None = None,
    n_prompts: int = 64,
    length: int = 64,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Previous-token score: mean over queries i of p(i, i-1), on prompts of distinct random tokens.

    The null is uniform attention: mean of 1/(i+1) over the same rows, or 1/T where queries see later keys too. p tests
    that offset 1 gets at most 0.05 more than offsets 2 to 17 of the same head (over the same rows, where they exist; at
    least five of them have to); q is Benjamini-Hochberg over all heads. A head is labelled at q < 0.01 and score >=
    0.3. The first two queries and keys at a BOS are left out. With fewer than 7 ordinary tokens prompts repeat some,
    which the provenance says.

    Args:
        model: any loaded model.
        prompts: text or ids of one's own instead of random tokens, 8 tokens at least; what is repeated in them may draw
            attention to the token before for its content.
        n_prompts: independent random prompts; a prompt is the unit of the interval.
        length: tokens per random prompt, BOS included; shortened to the context, and to the vocabulary if that does.
        bos: "default", "forced" or "none"; see `interp.tasks.bos_id`.
        method: attention method, "fused" or "naive".
        seed: of prompts and bootstrap.

    Raises:
        NotApplicable: no room for 7 tokens, or fewer than 3 ordinary ones; attention both ways within a window.
        TaskError: prompts of one's own that are shorter than 8 tokens.

    Reference: Olsson et al. 2022 (arXiv 2209.11895). The wrong-offset test is ours.
    """
    if prompts is None:
        data = _random_prompts(model, n_prompts=n_prompts, length=length, bos=bos, seed=seed)
    else:
        data = own_prompts(model, prompts, least=1 + WRONG.start + stats.LEAST_NULLS)
    rows, lengths = data.rows(), data.batch.mask.sum(1).tolist()
    questions = {"target": Mean(Offset(1), rows)}
    wrong = offset_questions(data.batch, rows, WRONG, first_key=data.start)
    scores = offset_scores(model, [(data.batch, questions | wrong)], method=method)

    null = float(np.mean([uniform_mass(model, max(T0, data.start + 1), n - 1, length=n) for n in lengths]))
    table = score_rows(model, "score", "probability", scores.target, scores.wrong, null=null, seed=seed)
    return Findings(table, data.data)


def _random_prompts(model: Model, *, n_prompts: int, length: int, bos: str, seed: int) -> PromptSet:
    """Random tokens, distinct where the vocabulary has enough of them."""
    start = 0 if tasks.bos_id(model, bos) is None else 1
    length = min(length, model.info.context or length)
    least, n_tokens = start + WRONG.start + stats.LEAST_NULLS, len(tasks.ordinary_tokens(model))
    distinct = n_tokens + start >= least or n_tokens < FEWEST
    length = min(length, n_tokens + start) if distinct else length
    if length < least:
        raise NotApplicable(
            f"prompts of {length} tokens are too short to tell offsets apart; at least {least} are needed"
        )
    batch = tasks.random_prompts(model, n=n_prompts, length=length, bos=bos, seed=seed, distinct=distinct)
    task = "random tokens" if distinct else f"random tokens with repeats, of a vocabulary of {n_tokens}"
    data = {"task": task, "n": n_prompts, "length": length, "bos": bos, "sha256": tasks.fingerprint([batch])}
    return PromptSet(batch, start, data)
