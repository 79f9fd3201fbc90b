"""First-token attention sinks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from interp import tasks
from interp.attention import Received
from interp.batch import Batch, Prompts
from interp.errors import NotApplicable, TaskError
from interp.measurement.declaration import PlantedTask, Stage
from interp.measurement.prompts import no_window_both_ways, own_prompts
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, THRESHOLD, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.sites import Site

EPSILONS = (0.1, 0.2, 0.3, 0.5)
LEAST_OWN = 12  # tokens: with fewer there are fewer than five other keys to compare the first one with


@analysis(
    name="sink",
    presumes=(),
    family="sink",
    title="First-token sinks",
    headline="first_token",
    order=40,
    shares="random tokens",
    stage=Stage("attention sink"),
    planted=PlantedTask("sink"),
    section="sinks",
    columns={"label": "boolean", "bos": "boolean"},
    means="Much of the head's attention goes to the first token whatever it is asked: on these inputs the head is "
    "mostly parked. A small value norm there means that parking writes little.",
    misleads="A sink is not a failure, and a head that is parked on random tokens may work on text. The measure "
    "depends on the prompt length and on whether a BOS is there: both starts are measured, and the stronger is judged.",
    reference="Gu et al. 2024, arXiv 2410.10781; Xiao et al. 2023, arXiv 2309.17453",
)
def sink(
    model: Model,
    *,
    prompts: Prompts | None = None,
    n_prompts: int = 64,
    length: int = 64,
    bos: str | None = None,
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Sink score alpha_1: mean over queries i of p(i, 1), the first token's share, on random tokens of stated length.

    Variants, one row per head each:
      first_token              alpha_1, with null, p, q and label; see below for what the first token is;
      first_token_with_bos     alpha_1 behind a BOS, where the model has one and it is not ruled out by `bos`;
      first_token_without_bos  alpha_1 when prompts start with a random token: does the sink follow position or token?
      rate_0.1 ... rate_0.5    share of prompts with alpha_1 above that;
      value_norm_ratio         ||v|| of the first token over the median of the others: below 1, parking writes little;
      strongest_elsewhere      largest alpha_k over k > 1, with its position.

    A tokenizer may have a BOS and not add it, which hides a sink that is trained on it. So where the model has a BOS
    both starts are measured, and each head is judged by the one with the larger alpha_1: the column `bos` says which,
    in every variant but the second and the third, and p is twice that of the start taken, at most 1, for the choice.
    With `bos` given only that start is judged.

    alpha_k = sum_{i >= k} p(i, k) / (T - k + 1), first token k = 1. The null is uniform causal attention, H_T / T
    (both ways all T queries see every key: then 1 / T). p tests that alpha_1 exceeds it by at most 0.05 more than
    alpha_2 .. alpha_{T/2} exceed theirs; q is over all heads. A head is labelled at q < 0.01 and alpha_1 >= 0.3.

    Args:
        model: any loaded model.
        prompts: text or ids of one's own, 12 tokens at least, as they start; longer ones are cut to the shortest, since
            alpha depends on the length. Without the variants of the two starts.
        n_prompts: random prompts of each start; a prompt is the unit of the interval.
        length: T, tokens per prompt with BOS; the score depends on it.
        bos: None: both starts; or "default" (what the tokenizer does), "forced" or "none".
        method: attention method, "fused" or "naive".
        seed: of prompts and bootstrap.

    Raises:
        NotApplicable: no room for 16 distinct tokens; attention both ways within a window.
        TaskError: an unknown policy, a BOS forced on a model that has none, or prompts of one's own that are too short.

    Reference: Gu et al. 2024 (arXiv 2410.10781), section 3; T = 64 and epsilon = 0.3 as there. The test is ours.
    """
    first, batches = _prompts(model, prompts, n_prompts=n_prompts, length=length, bos=bos, seed=seed)
    starts, both = list(batches), prompts is None and bos is None and first is not None
    length = next(iter(batches.values())).ids.shape[1]
    alphas = {s: received_share(model, batch, method=method) for s, batch in batches.items()}
    behind = np.full(alphas["none"].shape[1:3], first is not None)  # layer head: judged behind a BOS
    if both:
        behind = alphas["forced"][..., 0].mean(0) >= alphas["none"][..., 0].mean(0)
    alpha = np.where(behind[..., None], alphas[starts[0]], alphas["none"])  # prompt layer head key

    uniform = uniform_share(length, causal=model.info.causal)
    excess = (alpha.mean(0) - uniform)[..., : max(4, length // 2)]  # layer head key
    p = stats.p_against_nulls(excess[..., 0], np.moveaxis(excess[..., 1:], -1, 0), margin=MARGIN)
    p = np.minimum(1, p * (2 if both else 1))
    q = stats.benjamini_hochberg(p)
    score = stats.bootstrap_mean(alpha[..., 0], seed=seed)
    label = (q < LEVEL) & (score.mean >= THRESHOLD)
    ratios = {s: _value_norm_ratio(model, batch) for s, batch in batches.items()}
    ratio = np.where(behind, ratios[starts[0]], ratios["none"])
    columns = {**interval_columns(score), "null": uniform[0], "position": 0}
    firsts = {s: a[..., 0] for s, a in alphas.items()}
    parts = [
        head_rows(model, "first_token", "probability", **columns, p=p, q=q, label=label, bos=behind),
        *_starts(model, firsts if prompts is None else {}, null=float(uniform[0]), seed=seed),
        *_further(model, alpha, ratio, behind, seed=seed),
    ]
    data = {
        "task": "random tokens" if prompts is None else "prompts given",
        "n": len(next(iter(batches.values())).ids),
        "length": length,
        "bos": "as given" if prompts is not None else bos or "the stronger of forced and none, for each head",
        "heads_judged_behind_bos": int(behind.sum()),
        "first_token": first,
        "sha256": tasks.fingerprint(list(batches.values())),
    }
    return Findings(pd.concat(parts, ignore_index=True), data)


def _prompts(
    model: Model, prompts: Prompts | None, *, n_prompts: int, length: int, bos: str | None, seed: int
) -> tuple[int | None, dict[str, Batch]]:
    """The BOS, and random prompts behind it ("forced", where there is one) and without ("none"); or the caller's."""
    no_window_both_ways(model)
    if prompts is not None:
        return _own_start(model, prompts)
    first = token_before(model) if bos is None else tasks.bos_id(model, bos)
    length = min(length, model.info.context or length, len(tasks.ordinary_tokens(model)))
    if length < 16:
        raise NotApplicable(f"prompts of {length} tokens are too short to speak of a sink; at least 16 are needed")
    starts = ["none"] if first is None else ["forced", "none"]
    return first, {s: tasks.random_prompts(model, n=n_prompts, length=length, bos=s, seed=seed) for s in starts}


def _own_start(model: Model, prompts: Prompts) -> tuple[int | None, dict[str, Batch]]:
    """The BOS if the caller's prompts start with it, and the prompts, all cut to the shortest."""
    own = own_prompts(model, prompts, least=LEAST_OWN)
    length = int(own.batch.mask.sum(1).min())
    first = int(own.batch.ids[0, 0]) if own.start else None
    return first, {"none": Batch(own.batch.ids[:, :length], own.batch.mask[:, :length])}


def token_before(model: Model) -> int | None:
    """The model's BOS, whether or not its tokenizer adds it; None without one."""
    try:
        return tasks.bos_id(model, "forced")
    except TaskError:
        return None


def _starts(
    model: Model, first: dict[str, Float[np.ndarray, "prompt layer head"]], *, null: float, seed: int
) -> list[pd.DataFrame]:
    """alpha_1 of each start of a prompt."""
    names = {"forced": "first_token_with_bos", "none": "first_token_without_bos"}
    scores = {names[s]: interval_columns(stats.bootstrap_mean(a, seed=seed)) for s, a in first.items()}
    return [head_rows(model, name, "probability", **c, null=null, position=0) for name, c in scores.items()]


def _further(
    model: Model,
    alpha: Float[np.ndarray, "prompt layer head key"],
    ratio: Float[np.ndarray, "prompt layer head"],
    behind: Bool[np.ndarray, "layer head"],
    *,
    seed: int,
) -> list[pd.DataFrame]:
    """How often the first token is a sink, what it writes, and where else attention rests."""
    elsewhere = alpha[..., 1:].mean(0)
    n = len(alpha)
    norms = interval_columns(stats.bootstrap_mean(ratio, seed=seed))
    place = elsewhere.argmax(-1) + 1
    return [
        *(
            head_rows(model, f"rate_{e}", "fraction", value=(alpha[..., 0] > e).mean(0), n=n, position=0, bos=behind)
            for e in EPSILONS
        ),
        head_rows(model, "value_norm_ratio", "fraction", **norms, position=0, bos=behind),
        head_rows(model, "strongest_elsewhere", "probability", value=elsewhere.max(-1), position=place, bos=behind),
    ]


def received_share(model: Model, batch: Batch, *, method: str = "auto") -> Float[np.ndarray, "prompt layer head key"]:
    """alpha_k of each prompt: mass received by key k over the number of queries that can see it."""
    mass = model.attention(batch, {"received": Received()}, method=method)["received"]
    length = batch.ids.shape[1]
    n_queries = torch.arange(length, 0, -1) if model.info.causal else torch.full((length,), length)
    return (mass.double() / n_queries).transpose(0, 1).numpy()


def uniform_share(length: int, *, causal: bool = True) -> Float[np.ndarray, " key"]:
    """alpha_k under uniform attention: (1 / (T - k + 1)) sum_{i >= k} 1 / i, H_T / T for the first; 1 / T both ways."""
    if not causal:
        return np.full(length, 1 / length)
    weights = 1 / np.arange(1, length + 1)
    return weights[::-1].cumsum()[::-1] / np.arange(length, 0, -1)


def _value_norm_ratio(model: Model, batch: Batch) -> Float[np.ndarray, "prompt layer head"]:
    """||v_first|| over the median ||v|| of later tokens, of each query head's group; NaN where those are all zero."""
    acts = model.run(batch, capture=["v"], stop=max(model.info.attention_layers)).acts
    group = model.info.n_heads // model.info.n_kv_heads
    norms = torch.stack([acts[Site("v", layer)].float().norm(dim=-1) for layer in model.info.attention_layers], dim=1)
    others = norms[:, :, 1:].median(dim=2).values  # prompt layer kv_head
    ratio = (norms[:, :, 0] / others).masked_fill(others == 0, torch.nan)
    return ratio.repeat_interleave(group, dim=-1).double().cpu().numpy()
