"""Which heads look at the same places: Jensen-Shannon divergence between the patterns of all pairs of heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.special import xlogy

from interp.attention import Rows
from interp.batch import Batch, Prompts
from interp.components import head_name
from interp.errors import SiteError, nearest
from interp.measurement.prompts import prompt_set
from interp.measurement.scoring import LEVEL, MARGIN, T0
from interp.model import Model
from interp.results import stats
from interp.results.stats import nan_mean, p_above
from interp.shapes import brief
from probes.relevance.caution import CAUTION

if TYPE_CHECKING:
    import plotly.graph_objects as go

ALIKE = 0.5  # share of the unrelated pairs' divergence below which two heads are called alike
BLOCK = 4  # prompts per pass: what is kept of their patterns is the chosen rows


@dataclass(frozen=True, eq=False)
class DivergenceMap:
    """Divergence of every pair of heads in nats: 0 for equal patterns, log 2 for patterns without a key in common.

    Attributes:
        components: names of the heads, in the order of the axes.
        value: mean over chosen rows and prompts. se: of that mean, over prompts.
        null: the same with the second head reading another prompt, at the same positions: what position alone makes
            alike. A head differs from itself there as far as it follows content.
        p, q: that the pair is closer than its null by at most 0.05 log 2 (Student's t over prompts, one-sided); q is
            Benjamini-Hochberg over pairs. 1 on the diagonal, where there is nothing to test.
        data: what was run on.
        caution: what the map does not say.
    """

    components: tuple[str, ...]
    value: Float[np.ndarray, "head head"]
    se: Float[np.ndarray, "head head"]
    null: Float[np.ndarray, "head head"]
    p: Float[np.ndarray, "head head"]
    q: Float[np.ndarray, "head head"]
    data: dict[str, Any] = field(default_factory=dict)
    caution: str = (
        "Heads that look at the same places may write different things, and heads that look elsewhere the same. "
        "Two sinks are alike: the null, which keeps positions and changes the tokens, tells that likeness apart. "
    ) + CAUTION

    __repr__ = brief

    def table(self) -> pd.DataFrame:
        """One row per pair, closest first: component, other, value, se, null, p, q, unit, label.

        `label`: q < 0.01 and less than half of the null, so alike because of what stands there.
        """
        a, b = np.triu_indices(len(self.components), k=1)
        names = np.array(self.components, dtype=object)
        columns = {name: getattr(self, name)[a, b] for name in ("value", "se", "null", "p", "q")}
        frame = pd.DataFrame({"component": names[a], "other": names[b], **columns, "unit": "nats"})
        frame["label"] = (frame["q"] < LEVEL) & (frame["value"] < ALIKE * frame["null"])
        return frame.sort_values("value", kind="stable", ignore_index=True)

    def plot(self) -> go.Figure:
        """Divergence less that of its null for every pair, a square map: orange is closer than position alone makes."""
        from interp.plots import pair_map
        from interp.plots.titles import titled

        figure = pair_map(self.value - self.null, self.components, unit="nats")
        figure.update_traces(colorbar_title_text="nats above null")
        n = self.data.get("n_prompts", self.data.get("n"))
        parts = [f"{n} prompts" if n else "", "null: the same positions of another prompt"]
        return titled(figure, ["divergence of patterns", *parts])

    def embedding(self, dimensions: int = 2) -> Float[np.ndarray, "head dimension"]:
        """Classical multidimensional scaling of the square roots, which are a metric: near points are alike.

        The map of the source; axes have no meaning beyond distance.
        """
        squared = self.value - self.value.mean(0) - self.value.mean(1)[:, None] + self.value.mean()
        values, vectors = np.linalg.eigh(-squared / 2)
        order = np.argsort(-values)[:dimensions]
        return vectors[:, order] * np.sqrt(np.maximum(values[order], 0.0))


def divergence_map(
    model: Model,
    *,
    prompts: Prompts | None = None,
    heads: Sequence[str] | None = None,
    n_prompts: int = 16,
    length: int = 64,
    n_rows: int = 8,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> DivergenceMap:
    """Jensen-Shannon map: JS(a, b) = H((p_a + p_b) / 2) - (H(p_a) + H(p_b)) / 2, mean over chosen rows and prompts.

    In nats, for every pair of heads. Only `n_rows` rows of each pattern are ever formed, the same positions in every
    prompt, four prompts at a time: memory is O(heads * rows * n), time O(heads^2 * rows * n). What a sink slot takes
    counts as an outcome of its own.

    Args:
        model: any loaded model.
        prompts: text or ids to measure on; distinct random tokens without.
        heads: names such as "L3H5"; all heads without. Time grows with their square.
        n_prompts: random prompts, the unit of the error and the test; at least 3.
        length: tokens per random prompt; shortened to context and vocabulary.
        n_rows: query rows per prompt, drawn among positions that every prompt has.
        bos: "default", "forced" or "none", for random prompts.
        method: attention method, "fused" or "naive".
        seed: of prompts and rows.

    Raises:
        TaskError: prompts of fewer than 16 tokens, or fewer than three of them.
        SiteError: a head that does not exist.

    Reference: Clark et al. 2019 (arXiv 1906.04341), section 6, who sum over all tokens; the null is ours.
    """
    data = prompt_set(model, prompts, n_prompts=n_prompts, length=length, bos=bos, seed=seed)
    names = [head_name(layer, head) for layer in model.info.attention_layers for head in range(model.info.n_heads)]
    head_list = names if heads is None else list(heads)
    for name in head_list:
        if name not in names:
            raise SiteError(f"no head {name!r} in this model; {nearest(name, names)}")
    index = [names.index(name) for name in head_list]
    rows = _rows(data.batch, data.start, n_rows, seed=seed)
    patterns = (p[index] for p in _patterns(model, data.batch, rows, method=method))
    first = before = next(patterns)
    same, other = [jensen_shannon(first, first)], []
    for now in patterns:
        same.append(jensen_shannon(now, now))
        other.append(jensen_shannon(before, now))
        before = now
    other.append(jensen_shannon(before, first))
    values, nulls = np.stack(same), np.stack(other)
    nulls = (nulls + nulls.transpose(0, 2, 1)) / 2
    p = p_above(nulls - values, margin=MARGIN * np.log(2))
    np.fill_diagonal(p, 1.0)
    pairs = np.triu_indices(len(head_list), k=1)
    q = np.ones_like(p)
    if len(pairs[0]):
        q[pairs] = stats.benjamini_hochberg(p[pairs])
        q.T[pairs] = q[pairs]
    se = values.std(0, ddof=1) / np.sqrt(len(values))
    record = data.data | {"rows": rows.tolist()}
    return DivergenceMap(tuple(head_list), values.mean(0), se, nulls.mean(0), p, q, record)


def jensen_shannon(
    a: Float[np.ndarray, "head row outcome"], b: Float[np.ndarray, "head row outcome"]
) -> Float[np.ndarray, "head head"]:
    """Divergence in nats between every head of `a` and every head of `b`, mean over rows."""
    own_a, own_b = _entropy(a), _entropy(b)
    mixture_entropy = np.stack([nan_mean(_entropy((pattern[None] + b) / 2), axis=-1) for pattern in a])
    return np.maximum(mixture_entropy - (own_a.mean(-1)[:, None] + own_b.mean(-1)[None]) / 2, 0.0)


def _entropy(p: np.ndarray) -> np.ndarray:
    return -xlogy(p, p).sum(-1)


def _rows(batch: Batch, start: int, n_rows: int, *, seed: int) -> Float[torch.Tensor, " row"] | torch.Tensor:
    """Positions within the prompt, drawn once and used in every prompt, lowest first."""
    shortest = int(batch.mask.sum(1).min())
    lowest = max(T0, start + 1)
    order = torch.randperm(shortest - lowest, generator=torch.Generator().manual_seed(seed))
    return (order[:n_rows] + lowest).sort().values


def _patterns(model: Model, batch: Batch, rows: torch.Tensor, *, method: str):
    """For each prompt in turn, [head row outcome]: chosen rows of all heads, aligned on the prompt's first token."""
    for block in torch.arange(len(batch.ids)).split(BLOCK):
        part = batch.select(block)
        queries = Rows(part.first[:, None] + rows)
        attention = model.attention(part, {"rows": queries}, method=method)["rows"].double().numpy()
        for i, first in enumerate(part.first.tolist()):
            own = attention[:, i].reshape(-1, len(rows), attention.shape[-1])[..., first : first + int(rows[-1]) + 1]
            slot = np.maximum(1 - own.sum(-1, keepdims=True), 0.0)
            yield np.concatenate([own, slot], axis=-1)
