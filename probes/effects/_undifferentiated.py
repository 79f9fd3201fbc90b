"""What is lost when a head looks everywhere alike: the safety-head recipe, for any two sets of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy import stats as distributions
from torch import Tensor

from interp import tasks
from interp.batch import Batch, Prompts
from interp.edits import Ablate, Replace, apply_edits
from interp.errors import TaskError
from interp.measurement.declaration import Stage
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.sites import Site

LEAST = 0.1  # nats: below it neither way of removing a head changed the answer enough to name it
PERIOD = 20


@analysis(
    name="undifferentiated",
    family="importance",
    unit="head on given prompts",
    title="Heads behind these answers",
    headline="ships",
    order=250,
    stage=Stage("undifferentiated"),
    quick={"n_prompts": 4},
    exemptions={"planted": "too dear, a pass per head and way; tests/probes/attention/test_planted.py has it"},
    columns={"label": "boolean"},
    means="The answers to these prompts need the head's choice of where to look, more than answers to the control do. "
    "With refused requests against harmless ones this is the safety-head score; the default asks for repeats.",
    misleads="A head parked on a first token writes more when made to look everywhere: its score is high though it did "
    "nothing. `scaled`, where it writes nothing, is then near zero; the label asks for both. One head at a time: "
    "heads that stand in for each other all score low.",
    reference="Zhou et al. 2024, arXiv 2410.13708 (safety head importance score, Ships)",
)
def undifferentiated(
    model: Model,
    *,
    prompts: Prompts | None = None,
    control: Prompts | None = None,
    n_prompts: int = 8,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Ships: mean over prompts of KL(p || p'), p' the answer with the head's attention made uniform, at the last token.

    In nats. Variants, one row per head:
      ships    attention uniform over the keys each query may see, values kept; null, p, q and label;
      scaled   the head's output set to zero ("scaling contribution"), null and p alike;
      mates    mean of ships over the other heads of the layer: what removing a random head there does.

    The null is the same on the control prompts, where the head is not needed; p tests that the mean exceeds it by at
    most 0.05 nats (Welch's t over prompts, one-sided); q is Benjamini-Hochberg over all heads. A head is labelled at
    q < 0.01 with ships and scaled both at least 0.1 nats. A sink slot (sink logits) is not among the keys.

    Without `prompts`, random blocks given twice and cut short in the second copy, control random tokens of the same
    length. For safety heads: requests the model refuses, and harmless ones. Two forward passes per head, so `detect`
    does not run it; no pattern is formed, a uniform head writes the running mean of its values.

    Args:
        model: any loaded model.
        prompts: text or ids whose last token is answered.
        control: text or ids for the null; needed where `prompts` are given.
        n_prompts: prompts of the default sets.
        bos: "default", "forced" or "none", for the default sets.
        seed: of prompts and bootstrap.

    Raises:
        TaskError: prompts without control, or fewer than three of either.

    Reference: Zhou et al. 2024 (arXiv 2410.13708): they scale q by 1e-5 where we take the limit; the
    control and the test are ours. Their set search by subspace angles (Sahara) is not here.
    """
    if (prompts is None) != (control is None):
        raise TaskError("`prompts` and `control` come together: the score is a difference between them")
    main_prompts, control_prompts = _default(model, n_prompts, bos, seed) if prompts is None else (prompts, control)
    batch, other = (model.batch(x).to("cpu") for x in (main_prompts, control_prompts))
    if min(len(batch.ids), len(other.ids)) < 3:
        raise TaskError(f"{len(batch.ids)} prompts and {len(other.ids)} controls; at least 3 of each are needed")
    both = _joint_batch(batch, other)
    effects = {how: np.split(_effects(model, both, how), [len(batch.ids)]) for how in ("uniform", "zero")}
    p = {how: _p(*pair) for how, pair in effects.items()}
    q = stats.benjamini_hochberg(p["uniform"])
    mean = {how: pair[0].mean(0) for how, pair in effects.items()}
    label = (q < LEVEL) & (mean["uniform"] >= LEAST) & (mean["zero"] >= LEAST)
    total = mean["uniform"].sum(1, keepdims=True)
    mates = (total - mean["uniform"]) / max(1, model.info.n_heads - 1)

    def variant(name: str, how: str, **extra: object) -> pd.DataFrame:
        interval = interval_columns(stats.bootstrap_mean(effects[how][0], seed=seed))
        return head_rows(model, name, "nats", **interval, null=effects[how][1].mean(0), p=p[how], **extra)

    parts = [
        variant("ships", "uniform", q=q, label=label),
        variant("scaled", "zero", q=stats.benjamini_hochberg(p["zero"])),
        head_rows(model, "mates", "nats", value=mates, n=len(batch.ids)),
    ]
    task = "repeated random tokens, cut short; random tokens" if prompts is None else "prompts and control given"
    data = {"task": task, "n": len(batch.ids), "n_control": len(other.ids), "bos": bos}
    return Findings(pd.concat(parts, ignore_index=True), data | {"sha256": tasks.fingerprint([batch, other])})


def uniform_outputs(
    values: Float[Tensor, "batch pos kv_head d_head"], mask: Bool[Tensor, "batch pos"], window: int | None
) -> Float[Tensor, "batch pos kv_head d_head"]:
    """z of heads that attend uniformly: the mean of the values of the keys each query may see, in O(n) memory."""
    real = mask[:, :, None, None]
    total = torch.where(real, values, 0.0).double().cumsum(1)
    count = mask.cumsum(1)
    if window is not None and window < total.shape[1]:
        total[:, window:] = total[:, window:] - total[:, :-window]
        count = torch.cat([count[:, :window], count[:, window:] - count[:, :-window]], dim=1)
    return (total / count.clamp(min=1)[:, :, None, None]).to(values.dtype)


def _effects(model: Model, batch: Batch, how: str) -> Float[np.ndarray, "prompt layer head"]:
    """KL of the last token's prediction from that with one head changed, for each head in turn."""
    info = model.info
    run = model.run(batch, capture=["v"])
    clean = _last(run.logits, batch)
    effects = torch.zeros(len(batch.ids), len(info.attention_layers), info.n_heads, dtype=torch.float64)
    for row, (layer, window) in enumerate(zip(info.attention_layers, info.windows, strict=True)):
        spread = _uniform_z(model, run.acts[Site("v", layer)].cpu(), batch, layer, window) if how == "uniform" else None
        for head in range(info.n_heads):
            value = None if spread is None else spread[:, :, head]
            site = Site("z", layer, head=head)
            edit = Ablate(site) if value is None else Replace(site, value)
            log_probs = _last(model.run(batch, edits=[edit]).logits, batch)
            effects[:, row, head] = (clean.exp() * (clean - log_probs)).sum(-1)
    return effects.clamp(min=0).numpy()


def _uniform_z(
    model: Model, values: Float[Tensor, "batch pos kv_head d_head"], batch: Batch, layer: int, window: int | None
) -> Float[Tensor, "batch pos head d_head"]:
    """z of every head if it attended uniformly, behind the edits in force there: an ablated head stays ablated."""
    z = uniform_outputs(values, batch.mask, window).repeat_interleave(model.info.n_heads // values.shape[2], 2)
    edits = [e for e in model.edits if e.site.kind == "z" and layer in model.info.layers_of(e.site)]
    return apply_edits(z, edits, layer=layer, mask=batch.mask.to(z.device))


def _joint_batch(a: Batch, b: Batch) -> Batch:
    """Both sets as one batch: a pass per head then does for both."""
    return Batch.of([ids[mask].tolist() for batch in (a, b) for ids, mask in zip(batch.ids, batch.mask, strict=True)])


def _last(logits: Tensor | None, batch: Batch) -> Float[Tensor, "prompt d_vocab"]:
    """Log probabilities at the last real token of each prompt."""
    if logits is None:
        raise RuntimeError("a run without early stop gave no logits")
    last = batch.first + batch.mask.sum(1) - 1
    return logits.cpu()[torch.arange(len(last)), last].double().log_softmax(-1)


def _p(
    here: Float[np.ndarray, "prompt layer head"], there: Float[np.ndarray, "other layer head"]
) -> Float[np.ndarray, "layer head"]:
    """Welch's t: that the mean here is at most 0.05 above the mean there; 1 where neither ever changes."""
    test = distributions.ttest_ind_from_stats(
        here.mean(0) - MARGIN,
        here.std(0, ddof=1) + 1e-12,  # prompts that agree exactly
        len(here),
        there.mean(0),
        there.std(0, ddof=1) + 1e-12,
        len(there),
        equal_var=False,
        alternative="greater",
    )
    return np.asarray(test.pvalue)


def _default(model: Model, n: int, bos: str, seed: int) -> tuple[Sequence[list[int]], Sequence[list[int]]]:
    """Repeats cut two thirds through the second copy, and random prompts of the same length."""
    start = int(tasks.bos_id(model, bos) is not None)
    room = (model.info.context or 2 * PERIOD + start) - start
    period = min(PERIOD, room // 2, len(tasks.ordinary_tokens(model)))
    (group,) = tasks.repeated_random(model, lengths=[period], n_each=n, bos=bos, seed=seed)
    length = min(start + period + 2 * period // 3, len(tasks.ordinary_tokens(model)) + start)
    plain = tasks.random_prompts(model, n=n, length=length, bos=bos, seed=seed + 1)
    return group.batch.ids[:, : start + period + 2 * period // 3].tolist(), plain.ids.tolist()
