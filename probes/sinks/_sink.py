"""First-token attention sinks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp import tasks
from interp.attention import Received
from interp.batch import Batch
from interp.errors import NotApplicable
from interp.measurement.declaration import CAUSAL, PlantedTask, Stage
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, THRESHOLD, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.sites import Site

EPSILONS = (0.1, 0.2, 0.3, 0.5)


@analysis(
    name="sink",
    presumes=(CAUSAL,),
    family="sink",
    title="First-token sinks",
    headline="first_token",
    order=40,
    stage=Stage("attention sink"),
    planted=PlantedTask("sink"),
    section="sinks",
    columns={"label": "boolean"},
    means="Much of the head's attention goes to the first token whatever it is asked: on these inputs the head is "
    "mostly parked. A small value norm there means that parking writes little.",
    misleads="A sink is not a failure, and a head that is parked on random tokens may work on text. The measure "
    "depends on the prompt length and on whether a BOS is there; both are stated.",
    reference="Gu et al. 2024, arXiv 2410.10781; Xiao et al. 2023, arXiv 2309.17453",
)
def sink(
    model: Model, *, n_prompts: int = 64, length: int = 64, bos: str = "default", method: str = "auto", seed: int = 0
) -> Findings:
    """Sink score alpha_1: mean over queries i of p(i, 1), the first token's share, on random tokens of stated length.

    Variants, one row per head each:
      first_token              alpha_1 with the model's own first token, with null, p, q and label;
      first_token_without_bos  alpha_1 when prompts start with a random token: does the sink follow position or token?
      rate_0.1 ... rate_0.5    share of prompts with alpha_1 above that;
      value_norm_ratio         ||v|| of the first token over the median of the others: below 1, parking writes little;
      strongest_elsewhere      largest alpha_k over k > 1, with its position.

    alpha_k = sum_{i >= k} p(i, k) / (T - k + 1), first token k = 1. The null is uniform causal attention, H_T / T;
    p tests that alpha_1 exceeds its uniform value by at most 0.05 more than alpha_2 .. alpha_{T/2} of the same head
    exceed theirs; q is Benjamini-Hochberg over all heads. A head is labelled at q < 0.01 and alpha_1 >= 0.3.

    Args:
        model: any loaded model.
        n_prompts: prompts, the unit of the interval.
        length: T, tokens per prompt with BOS; the score depends on it.
        bos: "default", "forced" or "none".
        method: attention method, "fused" or "naive".
        seed: of prompts and bootstrap.

    Raises:
        NotApplicable: no room for 16 distinct tokens.

    Reference: Gu et al. 2024 (arXiv 2410.10781), section 3; T = 64 and epsilon = 0.3 as there. The test is ours.
    """
    first = tasks.bos_id(model, bos)
    length = min(length, model.info.context or length, len(tasks.ordinary_tokens(model)))
    if length < 16:
        raise NotApplicable(f"prompts of {length} tokens are too short to speak of a sink; at least 16 are needed")
    with_bos = tasks.random_prompts(model, n=n_prompts, length=length, bos=bos, seed=seed)
    without = tasks.random_prompts(model, n=n_prompts, length=length, bos="none", seed=seed)
    alpha = received_share(model, with_bos, method=method)  # prompt layer head key
    bare = received_share(model, without, method=method)[..., 0] if first is not None else alpha[..., 0]

    uniform = uniform_share(length)
    score = stats.bootstrap_mean(alpha[..., 0], seed=seed)
    excess = (alpha.mean(0) - uniform)[..., : max(4, length // 2)]  # layer head key
    p = stats.p_against_nulls(excess[..., 0], np.moveaxis(excess[..., 1:], -1, 0), margin=MARGIN)
    q = stats.benjamini_hochberg(p)
    label = (q < LEVEL) & (score.mean >= THRESHOLD)

    ratio = stats.bootstrap_mean(_value_norm_ratio(model, with_bos), seed=seed)
    elsewhere = alpha[..., 1:].mean(0)
    columns = interval_columns
    parts = [
        head_rows(
            model, "first_token", "probability", **columns(score), null=uniform[0], p=p, q=q, label=label, position=0
        ),
        head_rows(
            model,
            "first_token_without_bos",
            "probability",
            **columns(stats.bootstrap_mean(bare, seed=seed)),
            null=uniform[0],
            position=0,
        ),
        *(
            head_rows(model, f"rate_{e}", "fraction", value=(alpha[..., 0] > e).mean(0), n=n_prompts, position=0)
            for e in EPSILONS
        ),
        head_rows(model, "value_norm_ratio", "fraction", **columns(ratio), position=0),
        head_rows(
            model, "strongest_elsewhere", "probability", value=elsewhere.max(-1), position=elsewhere.argmax(-1) + 1
        ),
    ]
    data = {
        "task": "random tokens",
        "n": n_prompts,
        "length": length,
        "bos": bos,
        "first_token": first,
        "sha256": tasks.fingerprint([with_bos, without]),
    }
    return Findings(pd.concat(parts, ignore_index=True), data)


def received_share(model: Model, batch: Batch, *, method: str = "auto") -> Float[np.ndarray, "prompt layer head key"]:
    """alpha_k of each prompt: mass received by key k over the number of queries that can see it."""
    mass = model.attention(batch, {"received": Received()}, method=method)["received"]
    length = batch.ids.shape[1]
    n_queries = torch.arange(length, 0, -1)
    return (mass.double() / n_queries).transpose(0, 1).numpy()


def uniform_share(length: int) -> Float[np.ndarray, " key"]:
    """alpha_k under uniform causal attention: (1 / (T - k + 1)) sum_{i >= k} 1 / i; H_T / T for the first."""
    weights = 1 / np.arange(1, length + 1)
    return weights[::-1].cumsum()[::-1] / np.arange(length, 0, -1)


def _value_norm_ratio(model: Model, batch: Batch) -> Float[np.ndarray, "prompt layer head"]:
    """||v_first|| over the median ||v|| of later tokens, of each query head's group; NaN where those are all zero."""
    acts = model.run(batch, capture=["v"]).acts
    group = model.info.n_heads // model.info.n_kv_heads
    norms = torch.stack([acts[Site("v", layer)].float().norm(dim=-1) for layer in model.info.attention_layers], dim=1)
    others = norms[:, :, 1:].median(dim=2).values  # prompt layer kv_head
    ratio = (norms[:, :, 0] / others).masked_fill(others == 0, torch.nan)
    return ratio.repeat_interleave(group, dim=-1).double().cpu().numpy()
