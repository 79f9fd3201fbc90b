"""Whether a sink follows the position or the token: the same prompts behind different beginnings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp import tasks
from interp.batch import Batch
from interp.errors import InterpError, NotApplicable
from interp.measurement.declaration import Stage
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, THRESHOLD, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.tokens.texts import single_id
from probes.sinks.places import SHORTEST, Shares, shares

SEVERAL = 4
"""Tokens of the beginning that repeats one."""


@analysis(
    name="sink_prefixes",
    presumes=(),
    family="sink",
    title="Sinks that follow the token",
    unit="head and what its sink follows",
    headline="token",
    order=43,
    stage=Stage("attention sink"),
    quick={"n_prompts": 12, "length": 40},
    exemptions={"planted": "its score is a difference of two shares, and what is planted says one; its tests find it"},
    columns={"label": "boolean", "follows": "str"},
    means="The head rests on this token and not on whatever stands first: behind another first token it does so no "
    "more, and it finds the token inside a prompt.",
    misleads="A head may rest on either: `follows` says position where the first token draws it whatever it is. "
    "Prompts that begin with a random token are unlike those of training where a BOS is always there.",
    reference="Gu et al. 2024, arXiv 2410.10781 (section 3); the contrast and its test are ours",
)
def sink_prefixes(
    model: Model,
    *,
    token: int | None = None,
    n_prompts: int = 32,
    length: int = 64,
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Share of a first BOS over that of a first random token: alpha_1(BOS x) - alpha_1(r x), the same x behind each.

    x are random tokens, so that no text makes up for what is missing; alpha_k as in `sinks`, T tokens in all. Variants:
      token            as above, paired by prompt, with null 0, p, q, label, and `follows`: "token", or "position" where
                       alpha_1 >= 0.3 behind the random token as well, or neither;
      start_none       alpha_1 where x itself begins the prompt;
      start_bos, start_random, start_newline, start_several
                       alpha_1 behind a BOS, a random token, a line end (where it is one token), four BOS;
      second_...       alpha_2 behind each: what the key behind the first gets;
      several_first    the first of four BOS over all four: 1 for a sink that keeps to the position, 1/4 for none;
      inside           alpha of a BOS that stands at a quarter of a prompt that begins with a random token.

    Nulls are uniform attention. p (Student's t over prompts) tests that the difference is more than 0.05; q is over all
    heads; a label needs q < 0.01 and 0.3.

    Args:
        model: any loaded model.
        token: stands for BOS, in a model without one.
        n_prompts: a prompt is the unit of intervals; at least three.
        length: T.
        method: attention method, "fused" or "naive".
        seed: of prompts and bootstrap.

    Raises:
        NotApplicable: no BOS and no `token`; no room for 16 distinct tokens; attention both ways within a window.
        TaskError: fewer than three prompts.
    """
    bos = _token(model, token)
    batches, at = prefixed(model, bos, n=n_prompts, length=length, seed=seed)
    found = {name: shares(model, batch, method=method) for name, batch in batches.items()}
    first = {name: x.of(x.at(0)) for name, x in found.items()}
    uniform = float(found["bos"].uniform_of(found["bos"].at(0)).mean())
    difference = first["bos"] - first["random"]
    score = stats.bootstrap_mean(difference, seed=seed)
    p = stats.p_above(difference, margin=MARGIN)
    q = stats.benjamini_hochberg(p)
    label = (q < LEVEL) & (score.mean >= THRESHOLD)
    anywhere = stats.bootstrap_mean(first["random"], seed=seed).mean >= THRESHOLD
    follows = np.where(label, "token", np.where(anywhere, "position", "neither"))
    columns = {**interval_columns(score), "null": 0.0, "p": p, "q": q, "label": label, "follows": follows}
    rows = [head_rows(model, "token", "probability", **columns)]
    for name, x in found.items():
        if name == "inside":
            continue
        for position, variant in ((0, "start"), (1, "second")):
            rows.append(_at(model, x, position, f"{variant}_{name}", seed=seed))
    rows.append(_several(model, found["several"], seed=seed))
    rows.append(_at(model, found["inside"], at, "inside", seed=seed))
    data = {
        "task": "random tokens behind different beginnings",
        "token": bos,
        "n": n_prompts,
        "length": found["bos"].position.shape[1],
        "uniform_first": uniform,
        "beginnings": list(batches),
        "sha256": tasks.fingerprint(list(batches.values())),
    }
    return Findings(pd.concat(rows, ignore_index=True), data)


def _token(model: Model, token: int | None) -> int:
    if token is not None:
        return int(token)
    try:
        bos = tasks.bos_id(model, "forced")
    except InterpError:
        bos = None
    if bos is None:
        raise NotApplicable("this model has no BOS token whose place could be changed; give one as `token`")
    return bos


def prefixed(model: Model, token: int, *, n: int, length: int, seed: int) -> tuple[dict[str, Batch], int]:
    """The same random tokens behind each beginning, all `length` tokens long; and where the token stands "inside".

    Raises:
        NotApplicable: no room for 16 distinct tokens.
    """
    pool = len(tasks.ordinary_tokens(model)) - 1
    length = min(length, model.info.context or length, pool)
    if length < SHORTEST:
        raise NotApplicable(f"prompts of {length} tokens are too short to speak of a sink; {SHORTEST} are needed")
    block = tasks.random_prompts(model, n=n, length=length + 1, bos="none", seed=seed).ids
    first, rest = block[:, :1], block[:, 1:]
    start, inside = torch.full_like(first, token), length // 4
    ids: dict[str, Tensor] = {
        "none": rest,
        "bos": torch.cat([start, rest[:, :-1]], 1),
        "random": torch.cat([first, rest[:, :-1]], 1),
        "several": torch.cat([start.expand(-1, SEVERAL), rest[:, :-SEVERAL]], 1),
        "inside": torch.cat([first, rest[:, : inside - 1], start, rest[:, inside:]], 1),
    }
    try:
        line = single_id("\n", model.tokenizer)
        ids["newline"] = torch.cat([torch.full_like(first, line), rest[:, :-1]], 1)
    except InterpError:
        pass  # no tokenizer, or a line end that is no token of its own
    return {name: Batch.of(x) for name, x in ids.items()}, inside


def _at(model: Model, found: Shares, position: int, variant: str, *, seed: int) -> pd.DataFrame:
    keys = found.at(position)
    columns = interval_columns(stats.bootstrap_mean(found.of(keys), seed=seed))
    null = np.broadcast_to(found.uniform_of(keys), found.of(keys).shape).mean(0)
    return head_rows(model, variant, "probability", **columns, null=null, position=position)


def _several(model: Model, found: Shares, *, seed: int) -> pd.DataFrame:
    """Mass on the first of the repeated tokens over that on all of them; a ratio of means over prompts."""
    each = np.stack([found.of(found.at(i)) for i in range(SEVERAL)])

    def ratio(weights: Float[np.ndarray, "draw prompt"]) -> Float[np.ndarray, "draw head"]:
        means = np.stack([weights @ x.reshape(len(x), -1) for x in each])
        return means[0] / means.sum(0)

    n, shape = each.shape[1], each.shape[2:]
    value = ratio(np.full((1, n), 1 / n))[0]
    drawn = stats.bootstrap(ratio, n, seed=seed, around=value)
    columns = {"value": value, "se": drawn.se, "ci_low": drawn.low, "ci_high": drawn.high}
    arrays = {name: x.reshape(shape) for name, x in columns.items()}
    return head_rows(model, "several_first", "fraction", **arrays, n=n, null=1 / SEVERAL, position=0)
