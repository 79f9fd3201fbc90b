"""How focused the rows of a head are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.attention import Entropy, KeyMass
from interp.batch import Prompts
from interp.measurement.declaration import Stage
from interp.measurement.prompts import PromptSet, prompt_set, visible_keys
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.stats import nan_mean, p_above

FOCUSED = 0.5  # share of the largest possible entropy that must be missing for the label
LEFT = 1e-3  # mass that must be off the first token for the rest of the row to be spoken of


@analysis(
    name="entropy",
    presumes=(),
    family="attention",
    title="Focused heads",
    headline="focus",
    order=200,
    shares="random tokens",
    stage=Stage("focused"),
    exemptions={"planted": "where a head looks, whatever for: heads of many mechanisms do"},
    columns={"label": "boolean"},
    means="The rows of the head's pattern are far from uniform: it picks a few keys out of all it may see.",
    misleads="Focus says neither on what nor to what end. The commonest focus is a first-token sink, which does "
    "nothing: read focus_without_first beside it. Entropy grows with length, hence the division by its maximum.",
    reference="Clark et al. 2019, arXiv 1906.04341, section 3.3 (entropy of attention heads)",
)
def entropy(
    model: Model,
    *,
    prompts: Prompts | None = None,
    n_prompts: int = 64,
    length: int = 64,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Focus: mean over query rows i of 1 - H_i / log n_i, H_i = -sum_j p_ij log p_ij and n_i the keys that i may see.

    Variants, one row per head each:
      focus                0 for uniform attention (the null), 1 for one key per row; with p, q and label;
      normalised           H_i / log n_i, its complement: the null is 1;
      nats                 H_i itself, the null is the mean of log n_i;
      focus_without_first  focus of the row over the keys other than the first token, scaled to sum to one again; rows
                           with less than 0.001 left there have no say, and a head without any other has NaN.

    A sink slot (models with sink logits) counts as one key more. p tests over prompts that focus is at most 0.05
    (Student's t, one-sided: random weights are not quite uniform either); q is Benjamini-Hochberg over all heads. A
    head is labelled at q < 0.01 and focus >= 0.5. The first queries (two, and a BOS) are left out.

    Args:
        model: any loaded model.
        prompts: text or ids to measure on; distinct random tokens without.
        n_prompts: random prompts, the unit of the interval.
        length: tokens per random prompt; shortened to context and vocabulary.
        bos: "default", "forced" or "none", for random prompts.
        method: attention method, "fused" or "naive".
        seed: of prompts and bootstrap.

    Raises:
        NotApplicable: no room for 16 tokens.
        TaskError: prompts of fewer than 16 tokens, or fewer than three of them.

    Reference: Clark et al. 2019 (arXiv 1906.04341), section 3.3, who plot nats. Normalisation and test are ours.
    """
    data = prompt_set(model, prompts, n_prompts=n_prompts, length=length, bos=bos, seed=seed)
    stats.enough_units(len(data.batch.ids))
    nats, most, rest = row_entropies(model, data, method=method)
    rows = data.rows().numpy()[None, :, None]

    def by_prompt(x: np.ndarray) -> Float[np.ndarray, "prompt layer head"]:
        return np.moveaxis(nan_mean(np.where(rows, x, np.nan), axis=-1), 1, 0)

    focus = by_prompt(1 - nats / most)
    others = by_prompt(rest)
    # a prompt without an answer moves nothing
    rest_focus = np.where(np.isnan(others), nan_mean(others, axis=0), others)
    p = p_above(focus, margin=MARGIN)
    q = stats.benjamini_hochberg(p)
    interval = stats.bootstrap_mean(focus, seed=seed)
    label = (q < LEVEL) & (interval.mean >= FOCUSED)
    uniform = by_prompt(np.broadcast_to(most, nats.shape)).mean(0)

    def variant(name: str, unit: str, values: np.ndarray, **more: object) -> pd.DataFrame:
        columns = interval_columns(stats.bootstrap_mean(values, seed=seed))
        return head_rows(model, name, unit, **columns, **more)

    parts = [
        variant("focus", "fraction", focus, null=0.0, p=p, q=q, label=label),
        variant("normalised", "fraction", 1 - focus, null=1.0),
        variant("nats", "nats", by_prompt(nats), null=uniform),
        variant("focus_without_first", "fraction", rest_focus, null=0.0),
    ]
    return Findings(pd.concat(parts, ignore_index=True), data.data)


def row_entropies(
    model: Model, data: PromptSet, *, method: str = "auto"
) -> tuple[
    Float[np.ndarray, "layer batch head query"],
    Float[np.ndarray, "layer batch #head query"],
    Float[np.ndarray, "layer batch head query"],
]:
    """Entropy of every row in nats, the largest it could be, and the focus of what is not on the first token.

    Without the first key of mass f the row's entropy is (H + f log f) / (1 - f) + log(1 - f): no second pass.
    """
    first = torch.nn.functional.one_hot(data.batch.first, data.batch.ids.shape[1]).bool()
    questions = {"entropy": Entropy(), "first": KeyMass(first)}
    answers = model.attention(data.batch, questions, method=method)
    nats, mass = answers["entropy"].double().numpy(), answers["first"].double().numpy()
    outcomes = visible_keys(model, data.batch)[:, :, None] + model.info.sink_logits
    sees_first = ~np.isnan(mass)
    mass = np.clip(np.nan_to_num(mass), 0.0, 1.0)
    rest_mass = np.where(mass < 1 - LEFT, 1 - mass, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.where(outcomes > 1, np.log(np.maximum(outcomes, 1)), np.nan)
        spread = (nats + np.where(mass > 0, mass * np.log(mass), 0.0)) / rest_mass + np.log(rest_mass)
        others = outcomes - sees_first
        rest = 1 - spread / np.where(others > 1, np.log(np.maximum(others, 1)), np.nan)
    return nats, most, np.clip(rest, 0.0, 1.0)
