"""Copying heads: what they attend to, they say."""

from __future__ import annotations

import pandas as pd

from interp.measurement.declaration import PREPARE, TOKEN_LOGITS, PlantedTask, Stage
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import head_rows, interval_columns
from interp.measurement.weight_readings import copying_ratios
from interp.model import Model
from interp.results import stats
from probes.heads import own_token as _own
from probes.heads.token_raise import scores_or_reason

SEQUENCE = 25
"""Random tokens of a prompt on which what heads write is read, as in Olsson et al. 2022."""


@analysis(
    name="copying",
    presumes=(TOKEN_LOGITS,),
    family="roles",
    title="Copying heads",
    headline="own_top",
    order=42,
    stage=Stage("copying", PREPARE),
    planted=PlantedTask("copying"),
    columns={"label": "boolean"},
    means="Attending to a token, the head raises that token's logit more than any other's. Induction heads, name "
    "movers and retrieval heads do this with what they look at.",
    misleads="It says nothing about where the head looks: a head that copies whatever it attends to may attend to "
    "nothing but the first token. With tied embeddings every head that passes its input on in any way seems to "
    "copy. What later layers make of what it writes is not seen.",
    reference="Elhage et al. 2021, A Mathematical Framework for Transformer Circuits",
)
def copying(model: Model, *, n_tokens: int = 256, n_prompts: int = 16, seed: int = 0) -> Findings:
    """Copying score: share of tokens t with argmax_b (e(t) OV_h W_U)_b = t, over a sample of tokens b.

    e(t) is the token through layer 0, alone behind its BOS (heads of layer 0 read W_E). Variants, one row per head:
      own_top         the score, with null, p, q and label;
      own_top_mlp     the same behind MLP 0 without attention 0;
      effective_ratio sum Re(lambda) / sum |lambda| of the same map from sampled tokens to their logits, in [-1, 1];
      copying_ratio   the same over the whole vocabulary and raw embeddings, W_E W_V W_O W_U, as in the reference;
                      norms' gains and centring are folded in, here as above; NA where tokens are embedded in another
                      width than the stream's;
      activation      on random tokens, (S - R) / (S + R): S is the mean raise of the logits of tokens seen so far by
                      what the head writes there, R that of tokens which the prompt does not have, a raise being what
                      is above the mean of the sample; in [-1, 1], 0 for what raises any token alike. Its null is the
                      same about another prompt's tokens. Missing, with the reason in the provenance, where prompts
                      have no room.

    The null is 1 / tokens sampled, p the binomial tail, q Benjamini-Hochberg over heads. A label needs q < 0.01 and a
    score >= 0.3. The interval is a bootstrap over tokens.

    Args:
        model: any loaded model.
        n_tokens: ordinary tokens sampled; fewer where the vocabulary has fewer.
        n_prompts: prompts of 25 random tokens for `activation`.
        seed: of samples, prompts and bootstrap.

    Reference: Elhage et al. 2021 for the ratio; `activation` is our reading of the copying score of Olsson et al. 2022
    (arXiv 2209.11895), whose code is not published. The share is ours: eigenvalues weigh tokens by the size of what is
    written, so that a few large tokens decide; a share counts every token once and has an exact chance.
    """
    parts, data = [], {}
    for name, variant in (("own_top", "full"), ("own_top_mlp", "mlp")):
        own_hits = _own.own(model, n_tokens=n_tokens, variant=variant, seed=seed)
        parts.append(_own.share_rows(model, own_hits.top, name, seed=seed))
        data = own_hits.data
        if variant == "full":
            parts.append(head_rows(model, "effective_ratio", "fraction", value=own_hits.ratio, null=0.0))
    ratio, data["copying_ratio"] = copying_ratios(model)
    parts.append(head_rows(model, "copying_ratio", "fraction", value=ratio, null=0.0))
    raised, data["activation"] = scores_or_reason(
        model, n_prompts=n_prompts, length=SEQUENCE, n_tokens=n_tokens, seed=seed
    )
    if raised is not None:
        columns = interval_columns(stats.bootstrap_mean(raised.score, seed=seed))
        null = stats.nan_mean(raised.exchanged, axis=0)
        parts.append(head_rows(model, "activation", "fraction", **columns, null=null))
        data["activation"] = raised.data["random_tokens"]
    return Findings(pd.concat(parts, ignore_index=True), data)
