"""How attention to a source, and what the source does, fades as more and more is written behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.attention import KeyMass
from interp.batch import Batch, Prompts
from interp.errors import NotApplicable, TaskError
from interp.measurement.declaration import CAUSAL, TOKEN_LOGITS, Stage
from interp.measurement.prompts import PromptSet, own_prompts, prompt_set, visible_keys
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.stats import p_above
from interp.sites import Site
from interp.tasks import fingerprint

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEAST = 8
"""Tokens of the shortest source."""
DECAY = 0.1
"""Fall beyond that of uniform attention from which a head is labelled."""


def _by_step(rows: pd.DataFrame) -> go.Figure:
    """Attention on the source against the step, for the heads with the most."""
    from interp.plots.attention import profile_lines

    return profile_lines(rows, axis="tokens behind the source")


@analysis(
    name="source_decay",
    presumes=(CAUSAL, TOKEN_LOGITS),
    family="attention",
    title="Source-losing heads",
    headline="decay",
    order=295,
    stage=Stage("source-losing"),
    figures={"source_mass": _by_step},
    quick={"n_prompts": 8, "n_steps": 8, "n_draws": 1},
    exemptions={
        "planted": "of what is written, which planted models do not; its tests plant heads that lose the source",
    },
    columns={"label": "boolean"},
    means="As the model writes, the head turns from the source to what was written, faster than a head that looks at "
    "everything alike. `sensitivity` says how much the stream at a step still depends on the source.",
    misleads="Turning away is no loss where the source has been read into the written tokens. Uniform attention falls "
    "as n / (n + t) as well, which is the null. What a model writes freely may be a loop, which is attended to for its "
    "own sake: give texts and `n_source` to look at text instead.",
    reference="Fu et al. 2023, arXiv 2304.04052 (attention degeneration of decoder-only models)",
)
def source_decay(
    model: Model,
    *,
    prompts: Prompts | None = None,
    n_source: int | None = None,
    n_steps: int = 16,
    n_draws: int = 2,
    n_prompts: int = 16,
    length: int = 32,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Decay: m_1 - m_T, m_t = mean over prompts of the mass that token t behind a source of n tokens pays to it.

    Variants, one row per head unless said otherwise:
      decay        with null, p, q and label; uniform attention, m_t = n / (n + t), is the null;
      source_mass  one row per head and step (`position` t = 1 .. T), with the null n / (n + t);
      sensitivity  one row per step, component "model": Frobenius norm of d o_t / d x over the root of n, o_t the
                   stream behind the last layer at step t, x the stream before the first at the source's n tokens; the
                   null is that of the first step times (n + 1) / (n + t), which plain averaging gives.

    In windows of attention the nulls count what each query sees. The norm is estimated without bias from `n_draws`
    random directions. p tests over prompts that the head falls at most 0.05 more than uniform attention (one-sided
    Student's t); q is over heads; a label needs q < 0.01 and 0.1 more.

    Args:
        model: any loaded model that runs with gradients.
        prompts: text or ids; the source, behind which the model writes, or with `n_source` source and what follows.
            Random tokens without.
        n_source: first tokens of the prompts that are the source; what stands behind them is read, not written.
        n_steps: T, tokens written (greedily), or as many as all prompts have.
        n_draws: random directions per step.
        n_prompts: random sources, the unit of the interval.
        length: tokens of a random source, BOS included; shortened to leave room for T.
        bos: "default", "forced" or "none", for random sources.
        method: attention method, "fused" or "naive".
        seed: of sources, directions and bootstrap.

    Raises:
        NotApplicable: the context has no room for a source of 8 tokens and T more.
        TaskError: shorter sources, fewer than two tokens behind them, or fewer than three prompts.

    Reference: Fu et al. 2023 (arXiv 2304.04052), who bound the sensitivity by attention; null and test are ours.
    """
    data, text, n_steps = _texts(
        model, prompts, n_source, n_steps=n_steps, n_prompts=n_prompts, length=length, bos=bos, seed=seed
    )
    sizes = data.batch.mask.sum(1)
    steps = sizes[:, None] + torch.arange(n_steps)  # columns of the tokens behind the source
    source = torch.arange(text.ids.shape[1]) < sizes[:, None]
    mass = model.attention(text, {"source": KeyMass(source)}, method=method)["source"].nan_to_num()
    index = steps[None, :, None].expand(*mass.shape[:3], -1)
    by_step = mass.gather(3, index).double().cpu().numpy().transpose(1, 3, 0, 2)  # prompt step layer head
    chance = _uniform(model, text, sizes.numpy(), steps.numpy())  # prompt step layer
    fall, uniform = by_step[:, 0] - by_step[:, -1], (chance[:, 0] - chance[:, -1])[..., None]
    p = p_above(fall - uniform, margin=MARGIN)
    q = stats.benjamini_hochberg(p)
    label = (q < LEVEL) & ((fall - uniform).mean(0) >= DECAY)

    def variant(name: str, values: np.ndarray, null: np.ndarray, **more: object) -> pd.DataFrame:
        columns = interval_columns(stats.bootstrap_mean(values, seed=seed))
        null = np.broadcast_to(null.mean(0), values.shape[1:])
        return head_rows(model, name, "probability", **columns, null=null, **more)

    parts = [
        variant("decay", fall, uniform, p=p, q=q, label=label),
        *(variant("source_mass", by_step[:, t], chance[:, t, :, None], position=t + 1) for t in range(n_steps)),
        _sensitivity_rows(model, text, source, steps, n_draws=n_draws, seed=seed),
    ]
    facts = {**data.data, "n_steps": n_steps, "sha256": fingerprint([data.batch, text])}
    return Findings(pd.concat(parts, ignore_index=True), facts)


def _texts(
    model: Model,
    prompts: Prompts | None,
    n_source: int | None,
    *,
    n_steps: int,
    n_prompts: int,
    length: int,
    bos: str,
    seed: int,
) -> tuple[PromptSet, Batch, int]:
    """Sources, sources with what follows them (both padded on the right), and how many tokens that is at least."""
    if n_source is not None:
        if prompts is None:
            raise TaskError("n_source says where the source ends in prompts of one's own; give prompts as well")
        own = own_prompts(model, prompts, least=LEAST + 2)
        n_steps = min(n_steps, int(own.batch.mask.sum(1).min()) - n_source)
        if n_source < LEAST or n_steps < 2:  # noqa: PLR2004
            raise TaskError(f"a source of {n_source} tokens with {max(n_steps, 0)} behind it; 8 and 2 are needed")
        ids, mask = (x[:, :n_source] for x in (own.batch.ids, own.batch.mask))
        text = Batch(own.batch.ids[:, : n_source + n_steps], own.batch.mask[:, : n_source + n_steps])
        return PromptSet(Batch(ids, mask), own.start, own.data), text, n_steps
    room = None if model.info.context is None else model.info.context - n_steps
    if room is not None and room < LEAST:
        raise NotApplicable(f"a context of {model.info.context} tokens has no room for a source and {n_steps} more")
    length = length if room is None else min(length, room)
    data = (
        prompt_set(model, None, n_prompts=n_prompts, length=length, bos=bos, seed=seed, least=LEAST)
        if prompts is None
        else own_prompts(model, prompts, least=LEAST)
    )
    return data, written(model, data.batch, n_steps), n_steps


def written(model: Model, batch: Batch, n_steps: int) -> Batch:
    """Each prompt and the `n_steps` tokens that the model writes behind it, greedily, padded on the right."""
    rows = [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    options = {"do_sample": False, "max_new_tokens": n_steps, "min_new_tokens": n_steps}
    ids = model.generate(batch, **options)
    return Batch.of([row + new for row, new in zip(rows, ids[:, -n_steps:].tolist(), strict=True)])


def _uniform(model: Model, text: Batch, sizes: np.ndarray, steps: np.ndarray) -> Float[np.ndarray, "prompt step layer"]:
    """Share of the source in what each step sees."""
    seen = np.take_along_axis(visible_keys(model, text), steps[None], axis=2)  # layer prompt step
    hidden = steps + 1 - seen  # keys that a window hides, the first ones
    return np.moveaxis(np.maximum(sizes[:, None] - hidden, 0) / seen, 0, -1)


def sensitivity(
    model: Model,
    text: Batch,
    source: Bool[Tensor, "batch pos"],
    columns: Int[Tensor, "batch step"],
    *,
    n_draws: int,
    seed: int,
) -> Float[np.ndarray, "prompt step"]:
    """Root of the mean over directions u, normal, of ||d (u . o_t) / d x||^2, x at the source, over its tokens.

    E_u ||J^T u||^2 is the squared Frobenius norm of J.
    """
    generator = torch.Generator().manual_seed(seed)
    first, last = Site("resid_pre", 0), Site("resid_post", model.info.n_layers - 1)
    run = model.run(text, capture=[first, last], gradients=True)
    x, out = run.acts[first], run.acts[last]
    rows, keep = torch.arange(len(out), device=out.device), source.to(x.device)
    squares = []
    for at in columns.T.to(out.device):
        total = torch.zeros(len(out), dtype=torch.float64)
        for _ in range(n_draws):
            u = torch.randn(out.shape[0], out.shape[-1], generator=generator).to(out)
            slope = torch.autograd.grad((out[rows, at] * u).sum(), x, retain_graph=True)[0]
            total += (slope.double().square().sum(-1) * keep).sum(1).cpu()
        squares.append(total / n_draws / source.sum(1))
    return torch.stack(squares, 1).sqrt().numpy()


def _sensitivity_rows(
    model: Model, text: Batch, source: Bool[Tensor, "batch pos"], columns: Tensor, *, n_draws: int, seed: int
) -> pd.DataFrame:
    """One row per step."""
    values = sensitivity(model, text, source, columns, n_draws=n_draws, seed=seed)
    n = source.sum(1).double().mean()
    steps = np.arange(1, values.shape[1] + 1)
    null = values[:, 0].mean() * float(n + 1) / (float(n) + steps)
    base: Mapping[str, object] = {"variant": "sensitivity", "unit": "norm", "component": "model", "position": steps}
    return pd.DataFrame({**base, **interval_columns(stats.bootstrap_mean(values, seed=seed)), "null": null})
