"""Attention sinks at any token: the first, delimiters, named spans, or elsewhere; and why they are sinks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp import tasks
from interp.attention import KeyMass, Mean
from interp.batch import Batch, Prompts
from interp.measurement.declaration import Stage
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, THRESHOLD, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.figures import Draw
from probes.sinks.places import Shares, inputs, places, random_keys, shares, starts_with_bos
from probes.sinks.reasons import reason_rows
from probes.sinks.removal import removal_of_sinks

EPSILONS = (0.1, 0.2, 0.3, 0.5)
DRAWS = 24
"""Sets of random keys that a kind of key is compared with."""


def place_map(rows: pd.DataFrame) -> Any:
    """Share of the first token in every head, on the first kind of prompts of the table."""
    from interp.plots.heads import head_map

    chosen = rows[(rows["input"] == rows["input"].iloc[0]) & (rows["place"] == rows["place"].iloc[0])]
    return head_map(chosen)


PLACE_MAP: Draw = place_map


@analysis(
    name="sinks",
    presumes=(),
    family="sink",
    title="Attention sinks at any token",
    unit="head and kind of token",
    headline="share",
    order=41,
    stage=Stage("attention sink"),
    figure=PLACE_MAP,
    section="sinks",
    quick={"n_prompts": 12, "length": 40, "causal": False},
    exemptions={"planted": "it has several rows for a head, one for each kind of key, and a planted head rests on one"},
    columns={"label": "boolean", "input": "str", "place": "str", "bos": "boolean"},
    means="Much of the head's attention rests on this one key whatever the query. `value_norm_ratio` and "
    "`output_share` say how little comes of it, `gap_norm` and `gap_angle` whether the key's length or its direction "
    "draws the queries.",
    misleads="A head that rests on random tokens may work on text: inputs are told apart. Shares depend on the "
    "prompt's length, so that only equal lengths compare. A delimiter is the first in a prompt, `elsewhere` the best "
    "fixed position: a sink on other tokens, at places that differ, is not looked for unless a span names them.",
    reference="Gu et al. 2024, arXiv 2410.10781; Xiao et al. 2023, arXiv 2309.17453; Sun et al. 2024, arXiv 2402.17762",
)
def sinks(
    model: Model,
    *,
    prompts: Prompts | None = None,
    n_prompts: int = 32,
    length: int = 64,
    bos: str = "default",
    causal: bool = True,
    n_random: int = 4,
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Share of attention that a key receives: alpha_k = sum_i p(i, k) / n_k over the n_k queries that can see it.

    For each head, kind of prompts (column `input`: random, repeated, text, or given) and kind of key (`place`):
    "first", the first token, BOS or not (`bos`); "delimiter", the first of a prompt; each span of prompts of one's own,
    whose keys are taken together; "elsewhere", the best of all other positions up to half of the prompt. Variants:
      share               alpha, mean over prompts, with null, p, q and label;
      rate_0.1 ... 0.5    share of prompts with alpha above that;
      slot                mean share of a query that goes to no key: to the sink logits of a model that has them;
    and of the first token, the delimiter and each span, with h the head, i over the queries behind the key, j over the
    keys before i but it:
      value_norm_ratio    |v_k| over the median of the other |v_j|;
      key_norm_ratio      |k_k| over the median of the other |k_j|;
      cosine              cos(q_i, k_k); cosine_elsewhere: cos(q_i, mean of k_j);
      gap                 q_i . (k_k - mean of k_j), scaled, a logit: what draws the queries, and its two parts:
      gap_norm, gap_angle what is due to the key's length and to its direction (halves of the cross term each);
      gap_sd              standard deviation of the gap over queries: small beside it, the key acts as a bias;
      output_share        p_ik |v_k| over |z_i|: what resting there writes, of the head's output.

    The null is uniform attention over what each query can see, windows included: H_T / T for the first of T tokens. p
    tests that the excess over it is more than 0.05 above that of random other keys (the best of m positions: m p); q is
    over all rows. A label needs q < 0.01 and alpha >= 0.3. With `causal`, what removal of the labelled heads' sinks
    does to the loss: see `removal_of_sinks`.

    Args:
        model: any loaded model.
        prompts: text or ids of one's own, 16 tokens at least; their spans are places.
        n_prompts: of each kind; a prompt is the unit of intervals.
        length: T, tokens of a prompt with BOS.
        bos: "default", "forced" or "none", for prompts that are made.
        causal: measure what goes with the sinks, where the model has logits of tokens.
        n_random: keys that removal is compared with.
        method: attention method, "fused" or "naive".
        seed: of prompts, random keys and bootstrap.

    Raises:
        NotApplicable: no room for 16 distinct tokens; attention both ways within a window.
        TaskError: an unknown policy, or prompts that are too short.

    Reference: Gu et al. 2024 (arXiv 2410.10781), section 3, for alpha and epsilon; the test is ours.
    """
    batches, missing = inputs(model, prompts, n_prompts=n_prompts, length=length, bos=bos, seed=seed)
    scores, further = [], []
    for kind, batch in batches.items():
        found, kinds = shares(model, batch, method=method), places(model, batch)
        base: dict[str, object] = {"input": kind, "bos": starts_with_bos(model, batch)}
        parts = [_named(found, kinds, name, seed=seed) for name in kinds]
        parts.append(_elsewhere(found, kinds))
        scores += [_Scored(base | {"place": p.place}, p, seed) for p in parts]
        further.append(_slot(model, batch, base, method=method, seed=seed))
        for name, keys in kinds.items():
            further += reason_rows(model, batch, keys, base | {"place": name}, found, method=method, seed=seed)
    table = _tested(model, scores)
    labelled = table[table["label"].fillna(False).astype(bool)]
    outcome = removal_of_sinks(model, batches, labelled, n_random=n_random, seed=seed) if causal else []
    data = {
        "inputs": {name: tasks.fingerprint([batch]) for name, batch in batches.items()},
        "left_out": missing,
        "n": len(next(iter(batches.values())).ids),
        "length": int(next(iter(batches.values())).mask.sum(1).max()),
        "bos": "as given" if prompts is not None else bos,
        "sha256": tasks.fingerprint(list(batches.values())),
    }
    rates = [rows for s in scores for rows in _rates(model, s)]
    return Findings(pd.concat([table, *rates, *further], ignore_index=True), data, outcome)


class _Place:
    """A kind of key: its share per prompt, the uniform one, the excess of other keys, and how many it was chosen of."""

    def __init__(self, place: str, share: Any, uniform: Any, others: Any, *, of: int = 1, position: Any = None) -> None:
        self.place, self.share, self.uniform, self.others = place, share, uniform, others
        self.of, self.position = of, position


class _Scored:
    """A place with its columns."""

    def __init__(self, base: dict[str, object], place: _Place, seed: int) -> None:
        known = ~np.isnan(place.share[:, 0, 0])
        self.base, self.place, self.share = base, place, place.share[known]
        self.score = stats.bootstrap_mean(self.share, seed=seed)
        self.null = np.broadcast_to(place.uniform[known], self.share.shape).mean(0)
        excess = self.score.mean - self.null
        self.p = np.full(excess.shape, np.nan)
        if len(place.others) >= stats.LEAST_NULLS:
            self.p = np.minimum(1, place.of * stats.p_against_nulls(excess, place.others, margin=MARGIN))


def _named(found: Shares, kinds: dict[str, Any], name: str, *, seed: int) -> _Place:
    """A kind of key of its own, beside as many random other keys."""
    keys = kinds[name]
    draws = random_keys(found, kinds, int(keys.sum(1).max()), draws=DRAWS, seed=seed)
    others = [_excess(found, x).mean(0) for x in draws]
    return _Place(name, found.of(keys), found.uniform_of(keys), np.array(others), position=found.where(keys))


def _elsewhere(found: Shares, kinds: dict[str, Any]) -> _Place:
    """The fixed position with the largest excess of all but the first and spans, of each head by itself."""
    spans = [keys for name, keys in kinds.items() if name not in ("first", "delimiter")]
    free = [p for p in range(1, found.reach) if not any((found.at(p) & keys).any() for keys in spans)]
    excess = np.stack([_excess(found, found.at(p)).mean(0) for p in free])  # position layer head
    best = excess.argmax(0)
    share = np.stack([found.of(found.at(p)) for p in free])  # position prompt layer head
    uniform = np.stack([np.broadcast_to(found.uniform_of(found.at(p)), share.shape[1:]) for p in free])
    chosen, null = (np.take_along_axis(x, best[None, None], 0)[0] for x in (share, uniform))
    others = np.where(np.arange(len(free))[:, None, None] == best, np.nan, excess)
    position = np.array(free)[best]
    return _Place("elsewhere", chosen, null, others, of=len(free), position=position)


def _excess(found: Shares, keys: Any) -> Float[np.ndarray, "prompt layer head"]:
    return found.of(keys) - found.uniform_of(keys)


def _tested(model: Model, scores: list[_Scored]) -> pd.DataFrame:
    """Rows of all places, q over all of them."""
    q = stats.benjamini_hochberg(np.stack([s.p for s in scores]))
    rows = []
    for s, own in zip(scores, q, strict=True):
        columns = {**interval_columns(s.score), "null": s.null, "position": s.place.position}
        label = (own < LEVEL) & (s.score.mean >= THRESHOLD)
        rows.append(head_rows(model, "share", "probability", **columns, p=s.p, q=own, label=label, **s.base))
    return pd.concat(rows, ignore_index=True)


def _rates(model: Model, scored: _Scored) -> list[pd.DataFrame]:
    return [
        head_rows(
            model,
            f"rate_{e}",
            "fraction",
            value=(scored.share > e).mean(0),
            n=len(scored.share),
            position=scored.place.position,
            **scored.base,
        )
        for e in EPSILONS
    ]


def _slot(model: Model, batch: Batch, base: dict[str, object], *, method: str, seed: int) -> pd.DataFrame:
    """What of a query goes to no key."""
    total = model.attention(batch, {"all": Mean(KeyMass(batch.mask))}, method=method)["all"]
    value = 1 - total.double().transpose(0, 1).cpu().numpy()
    return head_rows(model, "slot", "probability", **interval_columns(stats.bootstrap_mean(value, seed=seed)), **base)
