"""Shared by the analyses of attention: prompts, row masks, a paired test over prompts, what a row may see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats as distributions
from torch import Tensor

from interp import tasks
from interp.batch import Batch, Prompts
from interp.errors import TaskError
from interp.measurement.scoring import T0
from interp.model import Model

CAUTION = (
    "Attention mass is not importance: a model can be trained to hide what it uses from its attention at hardly any "
    "cost (arXiv 1909.07913), and mass on a token whose value is small does nothing. Check with an intervention."
)
"""Stands beside every map drawn from attention weights."""


@dataclass(frozen=True, eq=False)
class Read:
    """Prompts, where their own text starts (behind a BOS), and what to say of them in provenance."""

    batch: Batch
    start: int
    told: dict[str, object]

    def rows(self, *, lowest: int = 0) -> Bool[Tensor, "batch pos"]:
        """Real query rows at position `lowest` or later of their own prompt, the first T0 left out."""
        return self.batch.mask & (self.batch.positions >= max(lowest, T0, self.start + 1))


def read(
    model: Model, prompts: Prompts | None, *, n_prompts: int, length: int, bos: str, seed: int, least: int = 16
) -> Read:
    """The prompts given, as a batch; without any, distinct random tokens (shortened to context and vocabulary).

    Raises:
        TaskError: prompts shorter than `least` tokens.
    """
    start = 0 if tasks.bos_id(model, bos) is None else 1
    if prompts is None:
        length = min(length, model.info.context or length, len(tasks.ordinary_tokens(model)) + start)
        _long_enough(length, least)
        batch = tasks.random_prompts(model, n=n_prompts, length=length, bos=bos, seed=seed)
        task = "random tokens"
    else:
        batch, task = model.batch(prompts).to("cpu"), "prompts given"
        first = tasks.bos_id(model, "default")
        start = int(first is not None and bool((batch.ids[range(len(batch.ids)), batch.first] == first).all()))
        _long_enough(int(batch.mask.sum(1).min()), least)
    told: dict[str, object] = {"task": task, "n": len(batch.ids), "length": batch.ids.shape[1], "bos": bos}
    return Read(batch, start, told | {"sha256": tasks.fingerprint([batch])})


def _long_enough(length: int, least: int) -> None:
    if length < least:
        raise TaskError(f"prompts of {length} tokens are too short for this question; at least {least} are needed")


def visible_keys(model: Model, batch: Batch) -> Float[np.ndarray, "layer batch query"]:
    """Keys each query of each attention layer may see: its position + 1, or the sliding window where that is less."""
    seen = (batch.positions + 1).double().numpy()
    return np.stack([seen if w is None else np.minimum(seen, w) for w in model.info.windows])


def p_above(
    difference: Float[np.ndarray, "unit *component"], *, margin: float = 0.0
) -> Float[np.ndarray, "*component"]:
    """One-sided p that the mean over units (prompts) is at most `margin`: Student's t, n - 1 degrees of freedom.

    Where all units agree exactly the answer is certain: 0 above the margin, 1 otherwise. NaN components get 1.
    """
    n = len(difference)
    if n < 3:
        raise TaskError(f"{n} prompts are too few for a test over prompts; at least 3 are needed")
    mean, se = difference.mean(0), difference.std(0, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (mean - margin) / se
    certain = np.where(mean > margin, np.inf, -np.inf)
    t = np.where(np.isnan(mean), -np.inf, np.where(se > 0, t, certain))
    return np.asarray(distributions.t.sf(t, df=n - 1))


def nan_mean(values: Float[np.ndarray, "*all"], *, axis: int) -> Float[np.ndarray, "*rest"]:
    """Mean over an axis of what has an answer; NaN, without a warning, where nothing has."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis), known.sum(axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
