"""Which named parts of a prompt a head attends to."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import tasks
from interp.attention import KeyMass
from interp.batch import Batch, Prompts
from interp.errors import TaskError
from interp.measurement.declaration import CAUSAL, Stage
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, THRESHOLD, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.tasks import needles

ASKING = 16
"""Last tokens of a prompt that ask where no span of queries is named."""
QUERIES = "question"


@analysis(
    name="span_attention",
    presumes=(CAUSAL,),
    family="attention",
    title="Heads that attend to a part of the prompt",
    headline="strongest",
    order=212,
    default=False,
    stage=Stage("span"),
    quick={"n_prompts": 8},
    exemptions={"planted": "which part it is, and why, is the prompt's: heads of many mechanisms attend to one"},
    columns={"label": "boolean", "span": "str"},
    means="From the tokens that ask, more attention goes to this named part of the prompt (`span`) than its length "
    "says: document, needle, system, whatever was named.",
    misleads="The first token is a sink and is counted in no span, but a sink within a span counts as attention to it. "
    "Near parts get more than far ones from heads that look at what is near: beside other orders of the same "
    "parts it is a finding, alone it may be a place.",
    reference="Hsieh et al. 2024, arXiv 2406.16008 (attention to documents)",
)
def span_attention(
    model: Model,
    *,
    prompts: Prompts | None = None,
    queries: str = QUERIES,
    n_prompts: int = 32,
    length: int = 256,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Mass on a span, mean over asking queries i of sum_{j in span} p_ij, for each span that a prompt has names for.

    Variants, one row per head each:
      strongest  the span with the largest excess over uniform attention (`span`), with null, p, q and label;
      NAME       for every span; the null is the share of it among the keys that a query sees, its mean.

    Asking are the tokens of the span `queries` ("question" unless said otherwise), or the last 16 where no span has
    that name; queries that see no key of a span count 0 for it. The first token of a prompt belongs to no span. p tests
    over prompts that the excess is at most 0.05 (Student's t, at least 3 prompts), times the number of spans it was
    chosen from; q is Benjamini-Hochberg over all heads. A head is labelled at q < 0.01 and an excess of 0.3.

    Args:
        model: any loaded model.
        prompts: a batch whose spans have names (`Batch.of(..., spans=...)`); needles in haystacks without.
        queries: name of the span whose tokens ask.
        n_prompts: prompts with needles, the unit of the interval.
        length: tokens of each.
        bos: "default", "forced" or "none", for these.
        method: attention method, "fused" or "naive".
        seed: of prompts and bootstrap.

    Raises:
        NotApplicable: no room for needles.
        TaskError: prompts whose parts have no names.

    Reference: Hsieh et al. 2024 (arXiv 2406.16008), section 2: attention to documents. The test is ours.
    """
    if prompts is None:
        hidden = needles.hide(model, n=n_prompts, length=length, bos=bos, seed=seed)
        batch, data = hidden.batch, hidden.describe()
    else:
        batch = model.batch(prompts).to("cpu")
        data = {"task": "prompts given", "n": len(batch.ids), "sha256": tasks.fingerprint([batch])}
    names = [name for name in batch.spans if name != queries]
    if not names:
        raise TaskError(
            f"no part of these prompts has a name{f' but {queries!r}, which asks' if batch.spans else ''}; name some "
            "with Batch.of(..., spans={'document': (0, 200)})"
        )
    asking = asking_rows(batch, queries)
    mass = span_masses(model, batch, names, asking, method=method)
    null = np.stack([uniform_mass(model, batch, inside_span(batch, name), asking) for name in names])
    excess = mass - null[..., None]  # span prompt layer head
    best = stats.nan_mean(excess, axis=1).argmax(0)
    chosen = np.take_along_axis(mass, best[None, None], 0)[0]
    chance = np.take_along_axis(np.broadcast_to(null[..., None], mass.shape), best[None, None], 0)[0]
    p = np.full(best.shape, np.nan)
    if len(batch.ids) >= 3:  # noqa: PLR2004
        p = np.minimum(1.0, stats.p_above(chosen - chance, margin=MARGIN) * len(names))
    q = stats.benjamini_hochberg(p)
    label = (q < LEVEL) & ((chosen - chance).mean(0) >= THRESHOLD)
    strongest = _rows(model, "strongest", chosen, chance, seed=seed, p=p, q=q, label=label, span=np.array(names)[best])
    each = [
        _rows(model, name, mass[i], np.broadcast_to(null[i][..., None], mass[i].shape), seed=seed, span=name)
        for i, name in enumerate(names)
    ]
    return Findings(pd.concat([strongest, *each], ignore_index=True), data | {"spans": names, "queries": queries})


def asking_rows(batch: Batch, queries: str) -> Bool[Tensor, "batch pos"]:
    """Rows of the span that asks; the last 16 of each prompt where it has none."""
    last = batch.mask & (batch.mask.flip(1).long().cumsum(1).flip(1) <= ASKING)
    if queries not in batch.spans:
        return last
    span = batch.span(queries)
    return torch.where(span.any(1, keepdim=True), span, last)


def inside_span(batch: Batch, name: str) -> Bool[Tensor, "batch pos"]:
    """Keys of a span, without the first token of the prompt."""
    return batch.span(name) & (batch.positions > 0)


def span_masses(
    model: Model, batch: Batch, names: list[str], asking: Bool[Tensor, "batch pos"], *, method: str = "auto"
) -> Float[np.ndarray, "span prompt layer head"]:
    """Mean over asking rows of the mass on each span; rows that see none of it count 0."""
    questions = {name: KeyMass(inside_span(batch, name)) for name in names}
    answers = model.attention(batch, questions, method=method)
    weight = asking.double() / asking.sum(1, keepdim=True)
    mass = [torch.einsum("lbhi,bi->blh", answers[name].double().nan_to_num(0.0), weight) for name in names]
    return torch.stack(mass).numpy()


def uniform_mass(
    model: Model, batch: Batch, inside: Bool[Tensor, "batch pos"], asking: Bool[Tensor, "batch pos"]
) -> Float[np.ndarray, "prompt layer"]:
    """The same where each query gives every key that it sees alike."""
    place, count = batch.positions, inside.long().cumsum(1)
    shares = []
    for window in model.info.windows:
        seen = place + 1 if window is None else (place + 1).clamp(max=window)
        hidden = torch.gather(count, 1, (_columns(batch) - seen).clamp(min=0))
        before = torch.where(place + 1 > seen, hidden, 0)
        share = (count - before).double() / seen
        shares.append((share * asking).sum(1) / asking.sum(1))
    return torch.stack(shares, 1).numpy()


def _columns(batch: Batch) -> Tensor:
    return torch.arange(batch.ids.shape[1]).expand(batch.ids.shape)


def _rows(
    model: Model,
    variant: str,
    mass: Float[np.ndarray, "prompt layer head"],
    null: Float[np.ndarray, "prompt layer head"],
    *,
    seed: int,
    **more: object,
) -> pd.DataFrame:
    columns = interval_columns(stats.bootstrap_mean(mass, seed=seed))
    return head_rows(model, variant, "probability", **columns, null=null.mean(0), **more)
