"""Heads that rest on the first token, and those of them that rest on one kind of text and work on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped

from interp.attention import KeyMass
from interp.batch import Prompts
from interp.components import head_name
from interp.edits import ablate_heads
from interp.measurement.declaration import PlantedTask, Stage
from interp.measurement.prompt_losses import mean_loss
from interp.measurement.prompts import PromptSet, visible_keys
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import intervention_rows, set_name
from interp.measurement.scoring import LEVEL, head_rows, interval_columns, ranked_heads
from interp.model import Model
from interp.results import stats
from interp.results.stats import Head
from probes.sinks.domains import domain_prompts

if TYPE_CHECKING:
    import plotly.graph_objects as go

DORMANT, SWITCH = 0.8, 0.3
"""Mean mass on the first token above which a head is dormant, and difference between domains from which it switches."""
CHUNK = 1000
"""Permutations held in memory at once."""


def _by_domain(rows: pd.DataFrame) -> go.Figure:
    """Mean mass on the first token, one line per domain, heads in the order of the table."""
    from interp.plots.attention import domain_lines

    return domain_lines(rows)


@analysis(
    name="dormant_heads",
    family="sink",
    title="Dormant heads",
    headline="sink_mass",
    order=45,
    default=False,
    stage=Stage("dormant", kinds={"active-dormant": Stage("active-dormant")}),
    planted=PlantedTask("sink"),
    figures={"by_domain": _by_domain},
    quick={"n_permutations": 2000, "n_random": 1},
    columns={"label": "boolean", "domain": "str", "role": "str"},
    means="On prompts of this domain (the one on which it rests most) nearly all of the head's attention goes to the "
    "first token. `switch` says whether it rests on all domains alike: an active-dormant head works on one of them.",
    misleads="Rest is judged by where a head looks; what it takes from there is in the loss under its removal. Mass "
    "on the first token falls with length, so compare domains of one length. A head that rests elsewhere (a delimiter, "
    "a sink logit) is not found. A domain on which it would work may be missing.",
    reference="Guo et al. 2024, arXiv 2410.13835 (active-dormant attention heads)",
)
def dormant_heads(
    model: Model,
    *,
    domains: Mapping[str, Prompts] | None = None,
    n_prompts: int = 32,
    length: int = 64,
    n_permutations: int = 10_000,
    n_random: int = 3,
    most: int = 4,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Sink mass of a domain: mean over prompts and query rows i of p(i, 1), the share of the first token.

    Variants, one row per head each unless said otherwise:
      sink_mass   the largest of the domains' means, `domain` says of which, with null, p, q and label;
      switch      largest less smallest domain mean (`domain`: "text > random"), with null, p and q;
      by_domain   one row per head and domain, with null and interval;
      rest_share  one row per head and domain: share of prompts with a mass above 0.8.

    The null of sink_mass is uniform attention. Its p tests that the mean is at most 0.8 (one-sided Student's t over
    prompts), times the number of domains it was chosen from; a label needs q < 0.01. p of switch is the share of
    `n_permutations` random exchanges of prompts between domains with a difference as large, (1 + hits) / (1 + all);
    its null is their mean. q is Benjamini-Hochberg over heads. The column `role` calls a labelled head "active-dormant"
    where switch has q < 0.01 and is 0.3 or more, else "dormant".

    The interventions: mean next-token loss of each domain (nats) with one labelled head's output set to zero, of the
    `most` with the largest mass, beside `n_random` other heads of the same layer.

    Args:
        model: any loaded model.
        domains: name -> text (a string, or several) or ids; random tokens, a repeated block and text without.
        n_prompts: stretches of text, or prompts, of each domain, the unit of interval and permutation.
        length: tokens of each, BOS included; shortened to context and vocabulary.
        n_permutations: of prompts between domains; p is no less than one over their number.
        n_random: other heads that removal is compared with.
        most: labelled heads that are removed, one at a time.
        bos: "default", "forced" or "none", for prompts that are drawn.
        method: attention method, "fused" or "naive".
        seed: of prompts, permutations, other heads and bootstrap.

    Raises:
        NotApplicable: no room for prompts of 16 tokens.
        TaskError: fewer than two domains, prompts of fewer than 8 tokens, or fewer than three in a domain.

    Reference: Guo et al. 2024 (arXiv 2410.13835), who compare text and code by eye; tests and controls are ours.
    """
    sets = domain_prompts(model, domains, n=n_prompts, length=length, bos=bos, seed=seed)
    masses = {name: first_token_mass(model, data, method=method) for name, data in sets.items()}
    names, means = list(masses), np.stack([m.mean(0) for m in masses.values()])  # domain layer head
    best = means.argmax(0)
    p_rest = np.stack([stats.p_above(m, margin=DORMANT) for m in masses.values()])
    p = np.minimum(1.0, len(names) * _of(p_rest, best))
    q = stats.benjamini_hochberg(p)
    difference, chance, p_switch = switching(list(masses.values()), n_permutations, seed=seed)
    q_switch = stats.benjamini_hochberg(p_switch)
    label = (q < LEVEL) & (means.max(0) > DORMANT)
    switches = (q_switch < LEVEL) & (difference >= SWITCH)
    role = np.where(label, np.where(switches, "active-dormant", "dormant").astype(object), np.array(None))
    intervals = {n: interval_columns(stats.bootstrap_mean(m, seed=seed)) for n, m in masses.items()}
    nulls = np.stack([uniform_first(model, data) for data in sets.values()])
    top = {key: _of(_stacked([intervals[n][key] for n in names], best), best) for key in intervals[names[0]]}
    pair = np.array([[f"{a} > {b}" for b in names] for a in names], dtype=object)[best, means.argmin(0)]
    tested = {"p": p, "q": q, "label": label, "role": role, "domain": np.array(names, dtype=object)[best]}
    switch = {"value": difference, "null": chance, "p": p_switch, "q": q_switch, "domain": pair}
    n = sum(map(len, masses.values()))
    parts = [
        head_rows(model, "sink_mass", "probability", **top, null=_of(nulls, best), **tested),
        head_rows(model, "switch", "probability", **switch, n=n, role=role),
    ]
    for null, name in zip(nulls, names, strict=True):
        parts.append(head_rows(model, "by_domain", "probability", **intervals[name], null=null, domain=name))
    parts += [_rest_share(model, m, name, seed=seed) for name, m in masses.items()]
    heads = ranked_heads(model, label, means.max(0))[:most]
    effects = _removed(model, sets, heads, n_random=n_random, seed=seed)
    facts = {"domains": {name: data.data for name, data in sets.items()}}
    return Findings(pd.concat(parts, ignore_index=True), facts, effects)


def _rest_share(model: Model, mass: Float[np.ndarray, "prompt layer head"], domain: str, *, seed: int) -> pd.DataFrame:
    """Share of prompts of a domain on which each head rests."""
    share = interval_columns(stats.bootstrap_mean((mass > DORMANT).astype(float), seed=seed))
    return head_rows(model, "rest_share", "fraction", **share, null=0.0, domain=domain)


def first_token_mass(model: Model, data: PromptSet, *, method: str = "auto") -> Float[np.ndarray, "prompt layer head"]:
    """Mean over query rows of each prompt of what they pay to the prompt's first token."""
    first = torch.nn.functional.one_hot(data.batch.first, data.batch.ids.shape[1]).bool()
    mass = model.attention(data.batch, {"first": KeyMass(first)}, method=method)["first"]
    mass = mass.transpose(0, 1).double().nan_to_num().cpu()  # out of reach of a window: nothing is paid
    rows = data.rows()[:, None, None].double()
    return ((mass * rows).sum(-1) / rows.sum(-1)).numpy()


def uniform_first(model: Model, data: PromptSet) -> Float[np.ndarray, "layer head"]:
    """The same under uniform attention: mean over rows of 1 / n_i, 0 where a window hides the first token."""
    seen, rows = visible_keys(model, data.batch), data.rows().numpy()
    here = (data.batch.positions + 1).double().numpy()
    chance = [np.where(keys < here, 0.0, 1 / keys)[rows].mean() for keys in seen]
    return np.repeat(np.array(chance)[:, None], model.info.n_heads, axis=1)


def switching(
    masses: Sequence[Float[np.ndarray, "prompt layer head"]], n: int, *, seed: int
) -> tuple[Float[np.ndarray, "layer head"], Float[np.ndarray, "layer head"], Float[np.ndarray, "layer head"]]:
    """Largest less smallest domain mean, its mean over `n` exchanges of prompts between domains, and p of it."""
    pooled = np.concatenate(masses).reshape(sum(map(len, masses)), -1)
    domain = np.repeat(np.arange(len(masses)), [len(m) for m in masses])
    rng = np.random.default_rng(seed)
    value = _spread(pooled, domain[None])[0]
    hits, total = np.zeros_like(value), np.zeros_like(value)
    for size in [CHUNK] * (n // CHUNK) + [n % CHUNK] * (n % CHUNK > 0):
        spread = _spread(pooled, rng.permuted(np.tile(domain, (size, 1)), axis=1))
        hits += (spread >= value - 1e-12).sum(0)
        total += spread.sum(0)
    shape = masses[0].shape[1:]
    return value.reshape(shape), (total / n).reshape(shape), ((1 + hits) / (1 + n)).reshape(shape)


def _spread(
    pooled: Float[np.ndarray, "prompt component"], domain: Int[np.ndarray, "draw prompt"]
) -> Float[np.ndarray, "draw component"]:
    """Largest less smallest mean over domains, for each way of sharing the prompts out."""
    sides = [(domain == d) for d in range(int(domain.max()) + 1)]
    means = np.stack([side.astype(float) @ pooled / side.sum(1, keepdims=True) for side in sides])
    return means.max(0) - means.min(0)


def _stacked(columns: Sequence[object], like: Int[np.ndarray, "layer head"]) -> Shaped[np.ndarray, "domain layer head"]:
    """A column of each domain, one value for all heads where it is a number."""
    return np.stack([np.broadcast_to(np.asarray(x, dtype=float), like.shape) for x in columns])


def _of(by_domain: Shaped[np.ndarray, "domain layer head"], best: Int[np.ndarray, "layer head"]) -> np.ndarray:
    """The entry of each head's own domain."""
    return np.take_along_axis(by_domain, best[None], 0)[0]


def _removed(
    model: Model, sets: Mapping[str, PromptSet], heads: Sequence[Head], *, n_random: int, seed: int
) -> list[dict[str, object]]:
    """Rows of the intervention table, head by head."""

    def losses(chosen: Sequence[Head] = ()) -> dict[str, float]:
        edits = ablate_heads(chosen, how="zero") if chosen else []
        return {f"loss_nats: {name}": mean_loss(model, data.batch, edits) for name, data in sets.items()}

    rows: list[dict[str, object]] = []
    clean = losses() if heads else {}
    dormant = {head_name(*head) for head in heads}
    for head in heads:
        pool = [(head[0], h) for h in range(model.info.n_heads) if head_name(head[0], h) not in dormant]
        others = stats.matched_sets([head], pool, n_sets=n_random, seed=seed).get("same layers", [])
        controls = [losses(own) for own in others]
        kind = "same layers" if controls else "none"
        rows += intervention_rows(set_name("zero", [head]), 1, kind, clean, losses([head]), controls)
    return rows
