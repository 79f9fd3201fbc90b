"""Whether a head's attention can be found chunk by chunk: chunks chosen by the query against one key for each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.attention import Rows
from interp.batch import Batch, Prompts
from interp.errors import NotApplicable
from interp.measurement.declaration import CAUSAL, PlantedTask, Stage
from interp.measurement.planted import planted_prompts
from interp.measurement.prompts import prompt_set
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.stats import p_above
from interp.sites import Site

LEAST = 24
"""Tokens of the shortest prompt: four chunks of four, and what is always kept."""


@analysis(
    name="chunk_selection",
    presumes=(CAUSAL,),
    family="attention",
    title="Heads served by chunks",
    headline="gain",
    order=280,
    default=False,
    stage=Stage("long-range"),
    planted=PlantedTask(
        "retrieval",
        lambda model, seed: {"prompts": planted_prompts(model, "retrieval", seed=seed).clean, "chunk": 4, "kept": 1},
    ),
    columns={"label": "boolean"},
    means="The chunks whose mean key fits the query best hold more of the head's attention than chunks drawn at "
    "random: a cache that fetches a few chunks per head finds what the head looks at.",
    misleads="The mean of a chunk's keys may hide the one that counts; `oracle` says what chunks chosen by the mass "
    "itself would hold. A head that looks at everything alike gains nothing and loses nothing. Only the last row is "
    "asked. Attention is not effect.",
    reference="Lu et al. 2024, arXiv 2402.10685 (LongHeads)",
)
def chunk_selection(
    model: Model,
    *,
    prompts: Prompts | None = None,
    chunk: int = 8,
    kept: int = 2,
    n_prompts: int = 48,
    length: int = 96,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Gain of chunk selection: the last query's mass in the `kept` chunks with the highest q . mean(k), less chance.

    The keys between the first token and the last `chunk`, which every such cache keeps, are cut into chunks of `chunk`;
    mass is p(END, j), over all keys. Variants, one row per head each:
      gain      mass in the chosen chunks less that in as many random ones (exactly kept / n of all that the chunks
                hold); null 0, p, q and label;
      selected  mass in the chosen chunks; the null column holds that of random ones;
      oracle    mass in the chunks that hold most, with the same null;
      hit       share of prompts in which the chunk that holds most is among the chosen; the null is kept / n.

    p tests over prompts that the gain is at most 0.05 (one-sided Student's t); q is over heads; a label needs q < 0.01
    and a gain of 0.3 or more.

    Args:
        model: any loaded model.
        prompts: text or ids, 24 tokens at least; distinct random tokens without.
        chunk: keys in a chunk; shortened so that there are four chunks.
        kept: chunks chosen, fewer than there are.
        n_prompts: random prompts, the unit of the interval.
        length: tokens per random prompt, BOS included.
        bos: "default", "forced" or "none", for random prompts.
        method: attention method, "fused" or "naive".
        seed: of prompts and bootstrap.

    Raises:
        NotApplicable: no room for 24 tokens, or as many chunks kept as there are.
        TaskError: prompts of fewer than 24 tokens, or fewer than three.

    Reference: Lu et al. 2024 (arXiv 2402.10685), who weight a chunk's keys by attention within it; the plain mean, null
    and test are ours.
    """
    data = prompt_set(model, prompts, n_prompts=n_prompts, length=length, bos=bos, seed=seed, least=LEAST)
    stats.enough_units(len(data.batch.ids))
    batch = data.batch.padded_on("right")
    shortest = int(batch.mask.sum(1).min())
    chunk = max(1, min(chunk, (shortest - 1) // 5))
    places = chunk_masks(batch, chunk)
    n_chunks = places.any(2).sum(1).numpy()  # prompt
    if kept >= n_chunks.min():
        raise NotApplicable(f"{kept} chunks kept of {n_chunks.min()}: nothing is left out; ask for fewer")
    mass, fit = chunk_scores(model, batch, places, method=method)
    chosen, best = (_top(np.where(places.any(2).numpy()[:, None, None], x, -np.inf), kept) for x in (fit, mass))
    selected, oracle = ((mass * s).sum(-1) for s in (chosen, best))
    chance = mass.sum(-1) * (kept / n_chunks)[:, None, None]
    first = _top(np.where(places.any(2).numpy()[:, None, None], mass, -np.inf), 1)
    hit = (chosen & first).any(-1).astype(float)
    gain = selected - chance
    p = p_above(gain, margin=MARGIN)
    q = stats.benjamini_hochberg(p)
    label = (q < LEVEL) & (gain.mean(0) >= GAIN)

    def variant(name: str, unit: str, values: np.ndarray, **more: object) -> pd.DataFrame:
        return head_rows(model, name, unit, **interval_columns(stats.bootstrap_mean(values, seed=seed)), **more)

    parts = [
        variant("gain", "probability", gain, null=0.0, p=p, q=q, label=label),
        variant("selected", "probability", selected, null=chance.mean(0)),
        variant("oracle", "probability", oracle, null=chance.mean(0)),
        variant("hit", "fraction", hit, null=float((kept / n_chunks).mean())),
    ]
    return Findings(pd.concat(parts, ignore_index=True), data.data | {"chunk": chunk, "kept": kept})


GAIN = 0.3
"""Mass gained from which a head is labelled."""


def chunk_masks(batch: Batch, chunk: int) -> Bool[Tensor, "prompt chunk pos"]:
    """Columns of each chunk of each prompt (padded on the right): behind the first token, before the last `chunk`.

    Chunks count back from the end; what is left over at the front is no chunk.
    """
    lengths = batch.mask.sum(1)
    counts = (lengths - 1 - chunk) // chunk
    column, number = torch.arange(batch.ids.shape[1]), torch.arange(int(counts.max()))
    from_end = lengths[:, None] - 1 - column  # 0 at the last token
    at = from_end // chunk - 1
    return (at[:, None] == number[:, None]) & (number < counts[:, None])[..., None] & batch.mask[:, None]


def chunk_scores(
    model: Model, batch: Batch, places: Bool[Tensor, "prompt chunk pos"], *, method: str = "auto"
) -> tuple[Float[np.ndarray, "prompt layer head chunk"], Float[np.ndarray, "prompt layer head chunk"]]:
    """Mass that the last query pays to each chunk, and its product with the mean of the chunk's keys."""
    end = batch.mask.sum(1) - 1
    pattern = model.attention(batch, {"end": Rows(end[:, None])}, method=method)["end"][:, :, :, 0].nan_to_num()
    mass = torch.einsum("lbhk,bck->blhc", pattern.double().cpu(), places.double())
    mean = places.double() / places.double().sum(2, keepdim=True).clamp(min=1)
    rows, fits = torch.arange(len(end)), []
    for layer in model.info.attention_layers:
        q, k = Site("q", layer), Site("k", layer)
        acts = model.run(batch, capture=[q, k], stop=layer).acts
        query = acts[q].double().cpu()[rows, end]
        keys = torch.einsum("bkhd,bck->bchd", acts[k].double().cpu(), mean)
        keys = keys.repeat_interleave(query.shape[1] // keys.shape[2], dim=2)
        fits.append(torch.einsum("bhd,bchd->bhc", query, keys))
    return mass.numpy(), torch.stack(fits, 1).numpy()


def _top(values: Float[np.ndarray, "*rest chunk"], n: int) -> Bool[np.ndarray, "*rest chunk"]:
    """Whether each chunk is among the n largest; the first of equals."""
    order = np.argsort(-values, axis=-1, kind="stable")[..., :n]
    chosen = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, -1)
    return chosen
