"""What the loss does without the labelled heads' sinks: their column cut out, or their value alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.batch import Batch
from interp.components import head_name
from interp.edits import Edit, KnockOut
from interp.measurement.declaration import ABSENT, TOKEN_LOGITS
from interp.measurement.removal import intervention_rows
from interp.model import Model
from interp.sites import Site
from interp.tokens.losses import token_losses
from probes.sinks.places import places

WAYS = {"renormalised": True, "values alone": False}
"""The sink's column at -inf, so that other keys take its mass over; or its probability at 0 behind the softmax: the
head loses what the value of the sink brings, and nothing else."""


def removal_of_sinks(
    model: Model, batches: Mapping[str, Batch], labelled: pd.DataFrame, *, n_random: int, seed: int
) -> list[dict[str, object]]:
    """Loss in nats on the most natural prompts (given, text, random), of heads labelled on any, by kind of key.

    Attention of those heads to the key is cut for all queries but the key's own. Controls: the same heads and as many
    random other keys of each prompt. Nothing where the model has no logits of tokens or no head is labelled.
    """
    if ABSENT[TOKEN_LOGITS](model.info) or not model.info.causal:
        return []
    kind = next(name for name in ("given", "text", "random") if name in batches)
    batch, own = batches[kind], labelled.drop_duplicates(["layer", "head", "place"])
    kinds = places(model, batch)
    rows: list[dict[str, object]] = []
    clean = {"loss_nats": loss(model, batch)}
    for place in dict.fromkeys(own["place"]):
        heads = [(int(r.layer), int(r.head)) for r in own[own["place"] == place].itertuples()]
        if place in kinds:
            keys = torch.from_numpy(kinds[place])
        else:
            at = int(own.loc[own["place"] == place, "position"].iloc[0])  # of the first such head
            keys = (batch.positions.cpu() == at) & batch.mask.cpu()
        others = [random_other_keys(batch, keys, seed=seed + i) for i in range(n_random)]
        for way, renormalise in WAYS.items():
            edited = loss(model, batch, cut(model, batch, heads, keys, renormalise=renormalise))
            controls = [loss(model, batch, cut(model, batch, heads, x, renormalise=renormalise)) for x in others]
            name = f"{way}, {place} of {kind}: {' '.join(head_name(*h) for h in heads)}"
            found = [{"loss_nats": c} for c in controls]
            rows += intervention_rows(name, len(heads), "random keys", clean, {"loss_nats": edited}, found)
    return rows


def cut(
    model: Model,
    batch: Batch,
    heads: Sequence[tuple[int, int]],
    keys: Bool[Tensor, "prompt key"],
    *,
    renormalise: bool = True,
) -> list[Edit]:
    """Edits that keep heads from these keys, for every query that has another key to look at."""
    keys = keys.to(batch.ids.device)
    free = ~(keys.long().cumsum(1) == batch.mask.long().cumsum(1)) & batch.mask  # not those that see nothing else
    return [
        KnockOut(Site("pattern", layer, head=head), queries=free, keys=keys, renormalise=renormalise)
        for layer, head in heads
    ]


def random_other_keys(batch: Batch, keys: Bool[Tensor, "prompt key"], *, seed: int) -> Bool[Tensor, "prompt key"]:
    """As many random other real keys of each prompt, in its first half where it has so many."""
    rng = np.random.default_rng(seed)
    result = torch.zeros_like(keys)
    for row, mask, position in zip(range(len(keys)), batch.mask.cpu(), batch.positions.cpu(), strict=True):
        free = (mask & ~keys[row]).nonzero()[:, 0].numpy()
        early = free[position[free].numpy() < int(mask.sum()) / 2]
        size = min(int(keys[row].sum()), len(free))
        pool = early if len(early) >= size else free
        result[row, torch.from_numpy(rng.choice(pool, size=size, replace=False))] = True
    return result


@torch.no_grad()
def loss(model: Model, batch: Batch, edits: Sequence[Edit] = ()) -> float:
    """Mean loss of next tokens in nats under edits."""
    logits = model.run(batch, edits=edits).logits
    assert logits is not None  # the run has no `stop`
    return float(token_losses(logits, batch.ids, batch.mask).nanmean())
