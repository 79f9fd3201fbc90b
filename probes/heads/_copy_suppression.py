"""Copy suppression: what they attend to, they make less likely."""

from __future__ import annotations

import pandas as pd

from interp.measurement.declaration import REASON, TOKEN_LOGITS, PlantedTask, Stage
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import head_rows
from interp.model import Model
from probes.heads import own_token as _own


@analysis(
    name="copy_suppression",
    presumes=(TOKEN_LOGITS,),
    family="roles",
    title="Copy suppression",
    headline="own_bottom",
    order=44,
    stage=Stage("copy suppression", REASON),
    planted=PlantedTask("anti_copy"),
    columns={"label": "boolean"},
    means="Attending to a token, the head lowers that token's logit more than any other's: it can take back what "
    "others would copy.",
    misleads="The other half of copy suppression is not measured here: that the head attends to tokens that are "
    "about to be predicted. A head that turns its input round for a later head to read looks the same. Removing "
    "such a head raises the right answer in prompts where copying is right: a negative effect is its work, not "
    "an error.",
    reference="McDougall et al. 2023, arXiv 2310.04625",
)
def copy_suppression(model: Model, *, n_tokens: int = 256, seed: int = 0) -> Findings:
    """Copy-suppression score: share of tokens t with argmin_b (e(t) OV_h W_U)_b = t, over a sample of tokens b.

    e(t) is the token through layer 0, alone behind its BOS (heads of layer 0 read W_E). Variants, one row per head:
      own_bottom      the score, with null, p, q and label;
      own_bottom_mlp  the same behind MLP 0 without attention 0, the paper's effective embedding;
      effective_ratio sum Re(lambda) / sum |lambda| of the map from sampled tokens to their logits: -1 for a pure one.

    The null is 1 / tokens sampled, p the binomial tail, q Benjamini-Hochberg over heads. A label needs q < 0.01 and a
    score >= 0.3. The interval is a bootstrap over tokens.

    Args:
        model: any loaded model.
        n_tokens: ordinary tokens sampled; fewer where the vocabulary has fewer.
        seed: of sample and bootstrap.

    Reference: McDougall et al. 2023 (arXiv 2310.04625), section 3.1: there, tokens among the ten most suppressed of the
    whole vocabulary count (84.7 % for L10H7 of GPT-2 small). We sample, and count the lowest alone.
    """
    parts, data = [], {}
    for name, variant in (("own_bottom", "full"), ("own_bottom_mlp", "mlp")):
        own_hits = _own.own(model, n_tokens=n_tokens, variant=variant, seed=seed)
        parts.append(_own.share_rows(model, own_hits.bottom, name, seed=seed))
        data = own_hits.data
        if variant == "full":
            parts.append(head_rows(model, "effective_ratio", "fraction", value=own_hits.ratio, null=0.0))
    return Findings(pd.concat(parts, ignore_index=True), data)
