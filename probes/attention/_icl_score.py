"""Does the model predict later tokens better because of what it read before?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from interp.batch import Batch
from interp.components import parse_head
from interp.edits import ablate_heads
from interp.measurement.prompts import PromptSet, text_prompts
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import intervention_rows, set_name
from interp.model import Model
from interp.results import stats
from interp.results.figures import dots
from interp.results.stats import Head, p_above

SPAN = 16  # tokens averaged at either place: one token per text is too noisy for a few dozen texts
BLOCK = 8  # texts per forward pass


@analysis(
    name="icl_score",
    family="copy",
    title="In-context learning",
    unit="model",
    headline="icl_score",
    order=240,
    needs="text",
    figure=dots,
    quick={"n_prompts": 8, "early": 30, "late": 120},
    exemptions={"planted": "text, of which planted models know none"},
    means="Loss falls along a text (negative score): what came before helps. `context_gain` says how much of that is "
    "the context and not that later tokens are easier.",
    misleads="Late tokens may be easier by themselves, and positions beyond training make late loss rise: compare with "
    "context_gain. A smaller score is not a worse model: one that predicts early tokens well has less to gain.",
    reference="Olsson et al. 2022, arXiv 2209.11895 (in-context learning score)",
)
def icl_score(
    model: Model,
    *,
    texts: Sequence[str] | None = None,
    n_prompts: int = 32,
    early: int = 50,
    late: int = 500,
    heads: Sequence[str] = (),
    n_random: int = 5,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """In-context learning score: mean loss of the tokens from position `late` on less that from `early` on, in nats.

    Sixteen tokens at each place, mean over texts; negative where later tokens are predicted better. Variants:
      icl_score     with null 0 and one-sided p over texts (that it is not negative; a single hypothesis, so q = p);
      context_gain  loss of the same late tokens with the text before them cut so that they stand where the early ones
                    do (BOS kept), less their loss with all of it: positive where far context helps. Null 0, p alike;
      early_loss, late_loss  the two losses themselves.

    With `heads` the set is mean-ablated (mean of z over the same texts), beside random sets of as many heads from the
    same layers: rows of the intervention table with the metrics icl_score and late_loss_nats.

    Args:
        model: a model with a tokenizer.
        texts: natural text; without, held-out modules of the standard library, where the tokenizer can read them.
        n_prompts: stretches of text, the unit of the interval.
        early: position of the first early token.
        late: position of the first late one; shortened to the context and the texts.
        heads: names such as "L3H5", to ablate as a set.
        n_random: random sets it is compared with.
        bos: "default", "forced" or "none".
        seed: of stretches, bootstrap and random sets.

    Raises:
        NotApplicable: no tokenizer, or one that cannot read the default texts.
        TaskError: texts too short for `early`.

    Reference: Olsson et al. 2022 (arXiv 2209.11895): token 500 less token 50 of a text, one token each; context_gain
    is ours.
    """
    data = text_prompts(model, texts, n=n_prompts, length=late + SPAN, bos=bos, seed=seed)
    late = data.batch.ids.shape[1] - SPAN
    early = min(early, late // 2)
    targets: list[Head] = [parse_head(name) for name in heads]
    losses = _losses(model, data, early, late)
    gain = _cut_loss(model, data, early, late) - losses[:, 1]
    rows = []
    for name, values, sign in (
        ("icl_score", losses[:, 1] - losses[:, 0], -1),
        ("context_gain", gain, 1),
        ("early_loss", losses[:, 0], 0),
        ("late_loss", losses[:, 1], 0),
    ):
        interval = stats.bootstrap_mean(values, seed=seed)
        row = {"variant": name, "unit": "nats", "component": "model", "value": float(interval.mean), "n": interval.n}
        row |= {"se": float(interval.se), "ci_low": float(interval.low), "ci_high": float(interval.high)}
        p = float(p_above(sign * values)) if sign else None
        rows.append(row | ({"null": 0.0, "p": p, "q": p} if sign else {}))
    effects = _effects(model, data, targets, losses, early, late, n_random=n_random, seed=seed) if targets else []
    return Findings(rows, data.data | {"early": early, "late": late}, effects)


def _losses(
    model: Model, data: PromptSet, early: int, late: int, heads: Sequence[Head] = (), mean: torch.Tensor | None = None
) -> Float[np.ndarray, "prompt place"]:
    """Mean loss of each text over the early and over the late span."""
    edits = ablate_heads(heads, how="mean", mean=mean) if heads else []
    loss = _loss(model, data.batch, edits)
    return np.stack([loss[:, at - 1 : at - 1 + SPAN].mean(1) for at in (early, late)], axis=1)


def _cut_loss(model: Model, data: PromptSet, early: int, late: int) -> Float[np.ndarray, " prompt"]:
    """Mean loss of the late span, moved to where the early one is by leaving out what came long before."""
    ids, start = data.batch.ids, data.start
    cut = torch.cat([ids[:, :start], ids[:, late - early + start : late + SPAN]], dim=1)
    return _loss(model, Batch.of(cut), [])[:, early - 1 : early - 1 + SPAN].mean(1)


def _loss(model: Model, batch: Batch, edits: Sequence) -> Float[np.ndarray, "prompt token"]:
    """Loss in nats of every token but the first."""
    parts = []
    for part in torch.arange(len(batch.ids)).split(BLOCK):
        ids = batch.ids[part]
        logits = model.run(Batch(ids, batch.mask[part]), edits=edits).logits
        if logits is None:
            raise RuntimeError("a run without early stop gave no logits")
        flat = logits[:, :-1].float().cpu().flatten(0, 1)
        parts.append(torch.nn.functional.cross_entropy(flat, ids[:, 1:].flatten(), reduction="none").view(len(ids), -1))
    return torch.cat(parts).double().numpy()


def _effects(
    model: Model,
    data: PromptSet,
    heads: Sequence[Head],
    clean: Float[np.ndarray, "prompt place"],
    early: int,
    late: int,
    *,
    n_random: int,
    seed: int,
) -> list[dict[str, object]]:
    """Rows of the intervention table for the set and its matched random sets."""
    mean = model.mean(data.batch)
    pool = [(layer, head) for layer in model.info.attention_layers for head in range(model.info.n_heads)]
    edited = _summary(_losses(model, data, early, late, heads, mean))
    rows: list[dict[str, object]] = []
    for control, sets in (stats.matched_sets(heads, pool, n_sets=n_random, seed=seed) or {"none": []}).items():
        controls = [_summary(_losses(model, data, early, late, s, mean)) for s in sets]
        rows += intervention_rows(set_name("mean", heads), len(heads), control, _summary(clean), edited, controls)
    return rows


def _summary(losses: Float[np.ndarray, "prompt place"]) -> dict[str, float]:
    return {"icl_score": float((losses[:, 1] - losses[:, 0]).mean()), "late_loss_nats": float(losses[:, 1].mean())}
