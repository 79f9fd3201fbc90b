"""How much each earlier token matters to chosen rows: the table that rollout, flow, gradients and occlusion share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats as distributions
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.errors import TaskError
from interp.model import Model
from interp.results.stats import spearman
from interp.shapes import brief
from probes.relevance.caution import CAUTION


@dataclass(frozen=True, eq=False)
class Relevance:
    """A number per prompt, chosen row and key.

    Attributes:
        method: how it was made.
        value: [prompt row key], NaN at padding and at keys after the row.
        null: the same under uniform attention, or zero where the method has a sign.
        rows: query positions in each prompt. tokens: ids of the prompts.
        unit: what a value is in.
        se: standard error where the method draws at random, else None.
        caution: what the numbers do not say.
    """

    method: str
    value: Float[np.ndarray, "prompt row key"]
    null: Float[np.ndarray, "prompt row key"]
    rows: Int[Tensor, "prompt row"]
    tokens: Int[Tensor, "prompt key"]
    unit: str = "fraction"
    se: Float[np.ndarray, "prompt row key"] | None = None
    caution: str = CAUTION

    __repr__ = brief

    def table(self) -> pd.DataFrame:
        """One row per prompt, query row and key that has a value, in that order."""
        at = np.argwhere(~np.isnan(self.value))
        prompt, row, key = at.T
        return pd.DataFrame(
            {
                "method": self.method,
                "prompt": prompt,
                "row": self.rows.numpy()[prompt, row],
                "key": key,
                "token": self.tokens.numpy()[prompt, key],
                "value": self.value[prompt, row, key],
                "se": np.nan if self.se is None else self.se[prompt, row, key],
                "null": self.null[prompt, row, key],
                "unit": self.unit,
            }
        )

    def blank(self) -> Float[np.ndarray, "prompt row key"]:
        """NaN where there is no value, zero elsewhere: added to another array, it says where the two compare."""
        return np.where(np.isnan(self.value), np.nan, 0.0)


def chosen_rows(batch: Batch, rows: Sequence[int] | None) -> Int[Tensor, "prompt row"]:
    """Positions counted from each prompt's own first token (negative: from its end), as positions in the batch.

    Raises:
        TaskError: a row outside a prompt.
    """
    length = batch.mask.sum(1, keepdim=True)
    offsets = torch.tensor([-1] if rows is None else list(rows))[None]
    own = torch.where(offsets < 0, offsets + length, offsets)
    if bool((own < 0).any() | (own >= length).any()):
        raise TaskError(f"row {list(rows or [])} is outside a prompt; the shortest has {int(length.min())} tokens")
    return own + batch.first[:, None]


def reachable(batch: Batch, rows: Int[Tensor, "prompt row"], *, causal: bool) -> np.ndarray:
    """[prompt row key]: real keys at or before the row, or all of the prompt's where attention goes both ways."""
    position = torch.arange(batch.ids.shape[1])
    return (batch.mask[:, None] & ((position <= rows[..., None]) | (not causal))).numpy()


def occlusion(
    model: Model,
    prompts: Prompts,
    *,
    rows: Sequence[int] | None = None,
    answers: Int[Tensor, "prompt row"] | None = None,
    n_draws: int = 4,
    block: int = 64,
    seed: int = 0,
) -> Relevance:
    """Occlusion: log p(answer | prompt) less its mean with token j replaced by random ordinary tokens, in nats.

    The intervention to hold against every map made of attention weights. It removes what a token says, not that there
    is a token, and sees no use of two tokens where one is enough. The null is zero. Memory is that of `block` prompts,
    time n * n_draws forward passes per prompt.

    Args:
        model: any loaded model.
        prompts: text or ids.
        rows: query positions, negative ones from the end; the last without.
        answers: ids whose probability counts; without, the model's own first choice at each row.
        n_draws: random tokens tried at each position; their spread is `se`.
        block: prompts per forward pass.
        seed: of the draws.

    Raises:
        TaskError: a row outside a prompt.
    """
    from interp.tasks import ordinary_tokens

    batch = model.batch(prompts).to("cpu")
    where = chosen_rows(batch, rows)
    clean = _log_probs(model, batch, where)
    answer_ids = clean.argmax(-1) if answers is None else answers
    clean = clean.gather(-1, answer_ids[..., None])[..., 0]
    pool = ordinary_tokens(model)
    generator = torch.Generator().manual_seed(seed)
    prompt, key = batch.mask.nonzero().repeat_interleave(n_draws, 0).T
    drop = torch.empty(len(prompt), where.shape[1])
    for part in torch.arange(len(prompt)).split(block):
        ids = batch.ids[prompt[part]].clone()
        ids[torch.arange(len(part)), key[part]] = pool[torch.randint(len(pool), (len(part),), generator=generator)]
        log_probs = _log_probs(model, Batch(ids, batch.mask[prompt[part]]), where[prompt[part]])
        drop[part] = clean[prompt[part]] - log_probs.gather(-1, answer_ids[prompt[part]][..., None])[..., 0]
    drops = drop.unflatten(0, (-1, n_draws)).double().numpy()  # place draw row
    value = np.full((*where.shape, batch.ids.shape[1]), np.nan)
    se = value.copy()
    at = batch.mask.nonzero().numpy().T
    value[at[0], :, at[1]] = drops.mean(1)
    se[at[0], :, at[1]] = drops.std(1, ddof=1) / np.sqrt(n_draws) if n_draws > 1 else np.nan
    mask = reachable(batch, where, causal=model.info.causal)
    return Relevance(
        "occlusion",
        np.where(mask, value, np.nan),
        np.where(mask, 0.0, np.nan),
        where,
        batch.ids,
        unit="nats",
        se=np.where(mask, se, np.nan),
        caution="Occlusion sees no use of two tokens where one is enough; random tokens may bring news of their own.",
    )


def agreement(a: Relevance, b: Relevance, *, n_permutations: int = 999, seed: int = 0) -> pd.DataFrame:
    """Spearman correlation over keys of two relevances of the same rows; p by permuting keys, one-sided.

    One row per prompt and query row: prompt, row, a, b, value, null (zero), p, n (keys compared). NaN where one of the
    two is constant.
    """
    if a.value.shape != b.value.shape or not torch.equal(a.rows, b.rows):
        raise TaskError(f"{a.method} and {b.method} are not of the same rows: compare relevances of one call's rows")
    rng = np.random.default_rng(seed)
    rows = []
    for prompt, row in np.ndindex(a.value.shape[:2]):
        x, y = a.value[prompt, row], b.value[prompt, row]
        both = ~np.isnan(x) & ~np.isnan(y)
        x, y = distributions.rankdata(x[both]), distributions.rankdata(y[both])
        rho = spearman(x, y).rho
        x, y = x - x.mean(), y - y.mean()
        null_products = np.array([rng.permutation(x) @ y for _ in range(n_permutations)])
        p = np.nan if np.isnan(rho) else (1 + (null_products >= x @ y - 1e-9).sum()) / (1 + n_permutations)
        rows.append(
            {
                "prompt": prompt,
                "row": int(a.rows[prompt, row]),
                "a": a.method,
                "b": b.method,
                "value": rho,
                "null": 0.0,
                "p": p,
                "n": int(both.sum()),
            }
        )
    return pd.DataFrame(rows)


def _log_probs(model: Model, batch: Batch, rows: Tensor) -> Float[Tensor, "prompt row d_vocab"]:
    logits = model.run(batch).logits
    if logits is None:
        raise RuntimeError("a run without early stop gave no logits")
    row_logits = logits.cpu().float()[torch.arange(len(rows))[:, None], rows]
    return row_logits.log_softmax(-1)
