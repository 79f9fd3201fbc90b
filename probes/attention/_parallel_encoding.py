"""What reading contexts side by side, none seeing the others, does to attention behind them and to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import tasks
from interp.batch import Batch, Prompts
from interp.edits import Edit, KnockOut
from interp.errors import NotApplicable, SchemaError, TaskError
from interp.measurement.declaration import CAUSAL, TOKEN_LOGITS, Stage
from interp.measurement.prompts import PromptSet, own_prompts, visible_keys
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.stats import nan_mean, p_above
from interp.sites import Site
from interp.tokens.losses import token_losses

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEAST = 18
"""Tokens of the shortest prompt: two blocks of four, eight to ask with, and the first tokens."""
RISE, SMALLEST = 0.03, 0.01
"""Rise of the normalised entropy from which a head is labelled, and up to which nothing is claimed."""
ROUNDING = 1e-6
"""Difference of normalised entropies that is none."""


def _by_blocks(rows: pd.DataFrame) -> go.Figure:
    """Normalised entropy against the number of blocks, for the heads with the highest."""
    from interp.plots.attention import profile_lines

    return profile_lines(rows, axis="blocks")


@analysis(
    name="parallel_encoding",
    presumes=(CAUSAL, TOKEN_LOGITS),
    family="attention",
    title="Heads scattered by parallel contexts",
    headline="rise",
    order=310,
    default=False,
    stage=Stage("scattered"),
    figures={"entropy": _by_blocks, "entropy_with_sinks": _by_blocks},
    quick={"n_prompts": 8, "n_blocks": (2, 4)},
    exemptions={
        "planted": "of contexts apart, which no planted mechanism is about; its tests make models that scatter"
    },
    columns={"label": "boolean"},
    means="Behind contexts that were read apart from each other the head spreads its attention over more keys than "
    "behind the same tokens read as one text. `correlation` says whether the loss goes along.",
    misleads="Blocks keep the positions of the whole text here, where some schemes count anew in each. A higher "
    "entropy may be right: more blocks hold what is asked for. The correlation is over numbers of blocks and prompts, "
    "not a cause. The tokens that ask see all blocks, so that only what the blocks hold differs.",
    reference="Zhang et al. 2024, arXiv 2412.16545 (attention entropy in parallel context encoding)",
)
def parallel_encoding(
    model: Model,
    *,
    prompts: Prompts | None = None,
    n_blocks: Sequence[int] = (2, 4, 8),
    n_ask: int = 16,
    sinks: int = 1,
    n_prompts: int = 24,
    length: int = 81,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Rise of entropy: mean over the rows asked of H_i / log n_i, with most blocks, less that of one text.

    The tokens between the first `sinks` and the last `n_ask` are cut into blocks; no token sees another block, and
    the last `n_ask` see everything. Variants, one row per head each unless said otherwise:
      rise                 without the first tokens (a block sees itself alone), with null 0, p, q and label;
      rise_with_sinks      every block sees the first `sinks` tokens as well: a prefix that all share;
      entropy, entropy_with_sinks  one row per head and number of blocks (`position`, 1 for one text); the null is 1;
      correlation          Spearman's, of the head's entropy with the loss over prompts and numbers of blocks, each less
                           its prompt's mean; null 0, p (over as many pairs as there are), q; none in the first layer;
      loss, loss_with_sinks  one row per number of blocks, component "model": loss of the rows asked, in nats;
                           the null is that of one text.

    p tests over prompts that the rise is at most 0.01 (one-sided Student's t); q is over heads; a label needs q < 0.01
    and a rise of 0.03 or more.

    Args:
        model: any loaded model.
        prompts: text or ids of one length, 18 tokens at least, of which all last tokens are asked what comes next;
            without, random tokens that end with pairs of neighbours from among them, of which each first is asked.
        n_blocks: numbers of blocks, each of two tokens at least.
        n_ask: last tokens, which see all blocks; a third of the prompt at most.
        sinks: first tokens, which belong to no block.
        n_prompts: random prompts, the unit of the interval.
        length: tokens per random prompt, BOS included; shortened to context and vocabulary.
        bos: "default", "forced" or "none", for random prompts.
        seed: of prompts and bootstrap.

    Raises:
        NotApplicable: no room for 18 tokens or for two blocks, or attention that is not all softmax.
        SchemaError: `n_ask` below 2. TaskError: prompts under 18 tokens or of several lengths, or fewer than three.

    Reference: Zhang et al. 2024 (arXiv 2412.16545), who count positions anew in each block; tests are ours.
    """
    if model.info.softmax_share != 1.0:
        raise NotApplicable(f"{model.info.name}: attention is not all softmax, and its rows have no entropy")
    data, n_ask, asked = _prompts(model, prompts, n_ask, n=n_prompts, length=length, bos=bos, seed=seed)
    room = (width := data.batch.ids.shape[1]) - n_ask - sinks
    counts = sorted({b for b in n_blocks if b > 1 and room // b >= 2})  # noqa: PLR2004
    if not counts:
        raise NotApplicable(f"{room} tokens of context cannot be cut into {tuple(n_blocks)} blocks of two at least")
    one = Readings.of(model, data.batch, asked, None)
    apart = {
        shared: [Readings.of(model, data.batch, asked, blocks(width, b, n_ask, sinks, shared=shared)) for b in counts]
        for shared in (False, True)
    }
    rise = {shared: readings[-1].entropy - one.entropy for shared, readings in apart.items()}
    p = p_above(rise[False], margin=SMALLEST)
    q = stats.benjamini_hochberg(p)
    label = (q < LEVEL) & (rise[False].mean(0) >= RISE)

    def variant(name: str, unit: str, values: np.ndarray, **more: object) -> pd.DataFrame:
        return head_rows(model, name, unit, **interval_columns(stats.bootstrap_mean(values, seed=seed)), **more)

    parts = [
        variant("rise", "fraction", rise[False], null=0.0, p=p, q=q, label=label, position=counts[-1]),
        variant("rise_with_sinks", "fraction", rise[True], null=0.0, position=counts[-1]),
    ]
    for shared, name in ((False, ""), (True, "_with_sinks")):
        for b, reading in zip([1, *counts], [one, *apart[shared]], strict=True):
            parts.append(variant(f"entropy{name}", "fraction", reading.entropy, null=1.0, position=b))
    parts.append(_correlation(model, [one, *apart[False]]))
    for shared, name in ((False, ""), (True, "_with_sinks")):
        for b, reading in zip([1, *counts], [one, *apart[shared]], strict=True):
            place = {"variant": f"loss{name}", "position": b, "null": float(one.loss.mean())}
            columns = interval_columns(stats.bootstrap_mean(reading.loss, seed=seed))
            parts.append(pd.DataFrame([{**place, "unit": "nats", "component": "model", **columns}]))
    return Findings(pd.concat(parts, ignore_index=True), data.data | {"n_ask": n_ask, "blocks": counts})


@dataclass(frozen=True, eq=False)
class Readings:
    """What is read behind contexts: normalised entropy of each head, and the loss."""

    entropy: Float[np.ndarray, "prompt layer head"]
    loss: Float[np.ndarray, " prompt"]

    @classmethod
    def of(
        cls, model: Model, batch: Batch, asked: Bool[Tensor, " query"], hidden: Bool[Tensor, "query key"] | None
    ) -> Readings:
        """Of the queries `asked`, with the pairs of query and key that are `hidden` from each other in every layer."""
        layers = model.info.attention_layers
        pairs = None if hidden is None else hidden.expand(len(batch.ids), -1, -1)
        edits: list[Edit] = (
            [] if pairs is None else [KnockOut(Site("pattern", i), pairs=pairs, renormalise=True) for i in layers]
        )

        def nats(pattern: Tensor) -> Tensor:
            return _nats(pattern[:, :, asked.to(pattern.device)], bool(model.info.sink_logits))

        with torch.no_grad():
            run = model.run(batch, capture={Site("pattern", i): nats for i in layers}, edits=edits)
        assert run.logits is not None  # the run has no `stop`
        entropy = torch.stack([run.acts[Site("pattern", i)].cpu() for i in layers], 1)  # prompt layer head row
        seen = visible_keys(model, batch)[:, :, asked.numpy()].transpose(1, 0, 2)[:, :, None] + model.info.sink_logits
        losses = token_losses(run.logits, batch.ids, batch.mask)[:, asked[:-1]].cpu()
        return cls(nan_mean(entropy.double().numpy() / np.log(seen), axis=3), losses.nanmean(1).double().numpy())


def blocks(width: int, n: int, n_ask: int, sinks: int, *, shared: bool) -> Bool[Tensor, "query key"]:
    """Pairs hidden from each other: context tokens of two blocks, and (unless `shared`) the first tokens."""
    room = width - n_ask - sinks
    column = torch.arange(width)
    block = ((column - sinks) * n // room).masked_fill(column < sinks, -1)
    inside = (column >= sinks) & (column < width - n_ask)
    hidden = block[:, None] != block
    keys = inside | (column < sinks) if not shared else inside
    return hidden & inside[:, None] & keys


def _nats(pattern: Float[Tensor, "batch head query key"], sink_logits: bool) -> Float[Tensor, "batch head query"]:
    """Entropy of rows; what a sink slot takes is an outcome like the others."""
    p = pattern.float()
    slot = torch.special.entr((1 - p.sum(-1)).clamp(min=0.0)) if sink_logits else 0.0
    return torch.special.entr(p).sum(-1) + slot


def _prompts(
    model: Model, prompts: Prompts | None, n_ask: int, *, n: int, length: int, bos: str, seed: int
) -> tuple[PromptSet, int, Bool[Tensor, " query"]]:
    """Prompts of one length, how many last tokens see all blocks, and which of them are asked what comes next.

    Random ones end with pairs of neighbours of their own, and each first of a pair is asked; all last tokens of others.
    """
    if n_ask < 2:  # noqa: PLR2004
        raise SchemaError(f"n_ask {n_ask}: two tokens at least, of which the first is asked what comes next")
    if prompts is not None:
        own = own_prompts(model, prompts, least=LEAST)
        stats.enough_units(len(own.batch.ids))
        if own.batch.padded:
            raise TaskError("prompts of several lengths cannot be cut into the same blocks; give them one by one")
        width = own.batch.ids.shape[1]
        n_ask = min(n_ask, width // 3)
        return own, n_ask, torch.arange(width) >= width - n_ask
    start = int(tasks.bos_id(model, bos) is not None)
    total = min(length, model.info.context or length) - start
    again = min(n_ask, total // 3)
    fresh = min(total - again, len(tasks.ordinary_tokens(model)))
    again = min(again, fresh // 2) // 2 * 2
    if start + fresh + again < LEAST:
        raise NotApplicable(f"no room for prompts of {LEAST} tokens, which can be cut into blocks")
    batch = tasks.random_prompts(model, n=n, length=start + fresh, bos=bos, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    first = 2 * torch.rand(n, fresh // 2, generator=generator).argsort(1)[:, : again // 2] + start
    pairs = (first[..., None] + torch.arange(2)).flatten(1)
    batch = Batch.of(torch.cat([batch.ids, batch.ids.gather(1, pairs)], 1))
    column = torch.arange(batch.ids.shape[1]) - start - fresh
    data = {"task": "random tokens, some pairs again", "n": n, "length": batch.ids.shape[1], "bos": bos}
    data |= {"sha256": tasks.fingerprint([batch])}
    return PromptSet(batch, start, data), again, (column >= 0) & (column % 2 == 0)


def _correlation(model: Model, readings: Sequence[Readings]) -> pd.DataFrame:
    """Spearman of entropy with loss over prompts and numbers of blocks, both less their prompt's mean."""
    entropy = np.stack([r.entropy for r in readings])  # blocks prompt layer head
    loss = np.stack([r.loss for r in readings])
    entropy, loss = (x - x.mean(0) for x in (entropy, loss))
    entropy = np.where(np.abs(entropy) < ROUNDING, 0.0, entropy)  # ranks of rounding errors are no ranks
    flat = entropy.reshape(*entropy.shape[:2], -1)
    found = [stats.spearman(flat[..., i], loss, least=4) for i in range(flat.shape[-1])]
    shape = entropy.shape[2:]
    rho, p = (np.array([getattr(f, key) for f in found]).reshape(shape) for key in ("rho", "p"))
    q = stats.benjamini_hochberg(p)
    return head_rows(model, "correlation", "correlation", value=rho, null=0.0, p=p, q=q, n=loss.size)
