"""What a head writes for a token, about that token itself: its place among the logits of a sample, from the weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.stats import binom

from interp import tasks
from interp.batch import Batch
from interp.decompose.embeddings import effective_embedding
from interp.measurement.scoring import LEVEL, THRESHOLD, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.weights.factored import FactoredMatrix


@dataclass(frozen=True, eq=False)
class Own:
    """Per sampled token and head, whether attending to it raises (lowers) its own logit most of the sample.

    `ratio` is sum Re(lambda) / sum |lambda| of the map from sampled tokens to their logits; `data` says what these are.
    """

    top: Float[np.ndarray, "token layer head"]
    bottom: Float[np.ndarray, "token layer head"]
    ratio: Float[np.ndarray, "layer head"]
    data: dict[str, object]


def own(model: Model, *, n_tokens: int, variant: str, seed: int) -> Own:
    """Own logits behind an effective embedding (layer 0: W_E), for up to `n_tokens` random ordinary tokens."""
    pool = tasks.ordinary_tokens(model)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    ids = pool[order[:n_tokens]]
    w = model.weights()
    first = tasks.bos_id(model, "default")
    raw, deep = (effective_embedding(model, tokens=ids, variant=v, bos=first) for v in ("embed", variant))
    columns = w.source.columns(ids).T
    top, bottom, ratio = [], [], []
    for layer in w.layers:
        ov = w.ov(layer, fold_norm=True)
        right = (ov.right if w.final_norm is None else w.final_norm.linear(ov.right)) @ columns
        matrix = FactoredMatrix((raw if layer == 0 else deep) @ ov.left, right - right.mean(-1, keepdim=True))
        ratio.append(matrix.positivity().numpy())
        matrices = [matrix[h].dense() for h in range(model.info.n_heads)]
        place = torch.arange(len(ids))
        top.append(torch.stack([(m.argmax(-1) == place) & _some(m) for m in matrices]))
        bottom.append(torch.stack([(m.argmin(-1) == place) & _some(m) for m in matrices]))
    tops, bottoms = (torch.stack(x).permute(2, 0, 1).double().numpy() for x in (top, bottom))
    data: dict[str, object] = {
        "task": "single tokens",
        "n": n_tokens,
        "sha256": tasks.fingerprint([Batch.of(ids[None])]),
    }
    return Own(tops, bottoms, np.stack(ratio).astype(float), data)


def _some(matrix: torch.Tensor) -> torch.Tensor:
    """Rows in which anything is written at all: elsewhere an arg-max would be the first token, by convention."""
    return matrix.amax(-1) > matrix.amin(-1)


def share_rows(model: Model, hits: Float[np.ndarray, "token layer head"], variant: str, *, seed: int) -> pd.DataFrame:
    """Rows of a share with its chance 1 / tokens, binomial p, q over heads, and the label."""
    share = stats.bootstrap_mean(hits, seed=seed)
    n = len(hits)
    p = binom.sf(hits.sum(0) - 1, n, 1 / n)
    q = stats.benjamini_hochberg(p)
    label: Bool[np.ndarray, "layer head"] = (q < LEVEL) & (share.mean >= THRESHOLD)
    columns = interval_columns(share)
    return head_rows(model, variant, "fraction", **columns, null=1 / n, p=p, q=q, label=label)
