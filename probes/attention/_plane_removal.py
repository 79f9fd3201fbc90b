"""What the fast and the slow rotary planes of a model are worth: the loss without them, beside random ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.batch import Prompts
from interp.edits import Edit, RotaryPlane
from interp.errors import TaskError
from interp.measurement.declaration import CAUSAL, TOKEN_LOGITS
from interp.measurement.registry import Findings, analysis
from interp.measurement.rotary import rotary_planes
from interp.measurement.scoring import LEVEL, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.figures import dots
from interp.sites import Site
from probes.attention._rotary_planes import plane_prompts, prompt_losses

KINDS = ("fastest", "slowest")
SMALLEST = 0.05
"""Difference in loss from random planes, in nats, up to which nothing is claimed."""


@analysis(
    name="plane_removal",
    presumes=(CAUSAL, TOKEN_LOGITS),
    family="attention",
    title="Rotary planes that the model needs",
    unit="set of rotary planes",
    headline="loss",
    order=214,
    two_sided=True,
    figure=dots,
    quick={"n_prompts": 8, "n_random": 6},
    exemptions={"planted": "planes are needed by whatever head uses them; its tests write a head of one plane"},
    columns={"label": "boolean", "kind": "str", "planes": "int64"},
    means="Without these planes of all heads the loss rises by so much more (below 0: less) than without as many "
    "random planes: it is their frequency that counts, not their number.",
    misleads="A model was never trained without them: a rise may be surprise, not use. Slow planes carry content "
    "beside position; what is lost with them is both. Random planes are drawn once for all layers.",
    reference="Chen et al. 2024, HoPE, arXiv 2410.21216 (which rotary frequencies matter)",
)
def plane_removal(
    model: Model,
    *,
    prompts: Prompts | None = None,
    shares: tuple[float, ...] = (0.25, 0.5),
    n_prompts: int = 16,
    block: int = 32,
    n_random: int = 16,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Loss without planes S in every layer less the mean loss without as many random planes, in nats a token.

    S are the fastest or the slowest k planes of each layer, k a share of them (1 at least), taken out of the scores of
    all heads (`RotaryPlane`, scale 0). Components are "fastest 0.25" and so on. Variants, one row for each:
      loss  the difference, with null 0, p, q and label;
      rise  loss without S less the loss of the whole model; the null is the mean of the random planes.

    p (two-sided) tests that the difference is at most 0.05 nats, against the spread of the random draws; q is
    Benjamini-Hochberg over sets. A set is labelled at q < 0.01 and a difference of 0.05.

    Args:
        model: any loaded model with rotary positions.
        prompts: text or ids, 16 tokens at least, cut to the shortest; without, random blocks said twice, of which the
            second counts.
        shares: of a layer's planes, above 0 and at most 1.
        n_prompts: random prompts, the unit of the interval.
        block: tokens of a block, shorter where the context is.
        n_random: random sets of planes for each share; 5 at least.
        bos: "default", "forced" or "none", for random prompts.
        seed: of prompts, sets and bootstrap.

    Raises:
        NotApplicable: no rotary positions, or such as cannot be read; no room for two blocks of 8.
        TaskError: a share above 1, shorter prompts, or fewer than 5 random sets.

    Reference: Chen et al. 2024 (arXiv 2410.21216), who change the embedding and train; here planes of a trained model
    are removed.
    """
    if max(shares) > 1:
        raise TaskError(f"shares {shares}: a share of a layer's planes is at most 1")
    n_planes = {layer: len(planes) for layer, planes in rotary_planes(model).items()}
    batch, counted, data = plane_prompts(model, prompts, n=n_prompts, block=block, bos=bos, seed=seed)
    clean = prompt_losses(model, batch, counted)
    rng, tables = np.random.default_rng(seed), []
    for share in shares:
        nulls = np.stack([
            prompt_losses(model, batch, counted, removal(n_planes, share, "random", rng)) for _ in range(n_random)
        ])  # fmt: skip
        for kind in KINDS:
            lost = prompt_losses(model, batch, counted, removal(n_planes, share, kind, rng))
            tables.append(_rows(f"{kind} {share:g}", kind, share, n_planes, clean, lost, nulls, seed=seed))
    table = pd.concat(tables, ignore_index=True)
    judged = table["variant"] == "loss"
    table.loc[judged, "q"] = stats.benjamini_hochberg(table.loc[judged, "p"].to_numpy(dtype=float))
    label = (table["q"] < LEVEL) & (table["value"].abs() >= SMALLEST)
    table["label"] = label.where(judged & table["q"].notna()).astype("boolean")
    return Findings(table, data | {"loss": float(clean.mean())})


def removal(n_planes: dict[int, int], share: float, kind: str, rng: np.random.Generator) -> list[Edit]:
    """Edits that take a share of planes, fastest, slowest or random ones, out of every layer's scores."""
    order = rng.permutation(max(n_planes.values()))
    edits: list[Edit] = []
    for layer, n in n_planes.items():
        k = max(1, round(share * n))
        by_kind = {"fastest": range(k), "slowest": range(n - k, n), "random": [int(p) for p in order if p < n][:k]}
        edits.append(RotaryPlane(Site("pattern", layer), planes=tuple(by_kind[kind])))
    return edits


def _rows(
    name: str,
    kind: str,
    share: float,
    n_planes: dict[int, int],
    clean: Float[np.ndarray, " prompt"],
    lost: Float[np.ndarray, " prompt"],
    nulls: Float[np.ndarray, "draw prompt"],
    *,
    seed: int,
) -> pd.DataFrame:
    planes = sum(max(1, round(share * n)) for n in n_planes.values())
    about = {"component": name, "unit": "nats", "kind": kind, "planes": planes}
    difference = stats.bootstrap_mean(lost - nulls.mean(0), seed=seed)
    draws = nulls.mean(1)
    sides = [
        stats.p_against_nulls(np.array([sign * lost.mean()]), sign * draws[:, None], margin=SMALLEST)[0]
        for sign in (1, -1)
    ]
    p = min(1.0, 2 * min(sides))
    rise = interval_columns(stats.bootstrap_mean(lost - clean, seed=seed))
    return pd.DataFrame([
        {"variant": "loss", **about, **interval_columns(difference), "null": 0.0, "p": p},
        {"variant": "rise", **about, **rise, "null": float(draws.mean() - clean.mean()), "p": np.nan},
    ])  # fmt: skip
