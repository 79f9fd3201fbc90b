"""Linear probes by layer, head and position, held against labels drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.decompose.stream_run import position_columns
from interp.edits import Edit
from interp.errors import SiteError, TaskError
from interp.model import Model
from interp.results.provenance import recorded
from interp.results.results import frame
from interp.results.stats import LEAST_NULLS, benjamini_hochberg, bootstrap, p_against_nulls
from interp.sites import PER_HEAD, Site
from interp.tasks import fingerprint
from probes.features.probe import Probe, Recipe, encoded, fit, split

if TYPE_CHECKING:
    import plotly.graph_objects as go

EXTRA = {
    "site": "str",
    "chance": "float64",
    "selectivity": "float64",
    "train": "float64",
    "features": "Int64",
    "converged": "boolean",
}


@dataclass(frozen=True, eq=False)
class LinearProbes:
    """A probe per site and position, and how well each does on held-out prompts.

    Attributes:
        rows: one row per probe, in the order of `probes`; what the columns are stands at `linear_probe`.
        probes: the maps themselves.
        provenance: of the call.
    """

    rows: pd.DataFrame
    probes: tuple[Probe, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line."""
        return f"<LinearProbes: {len(self.probes)}, best {self.best!r}>"

    @property
    def best(self) -> Probe:
        """The probe with the largest selectivity: its value less that of random labels."""
        return self.probes[int(self.rows["selectivity"].to_numpy().argmax())]

    def __getitem__(self, site: str | Site) -> Probe:
        """The probe of a site, `probes["L3.resid_post"]`; with several positions, of one: `"L3.resid_post@-1"`.

        Raises:
            SiteError: no probe there, or several.
        """
        key = Site.parse(site) if isinstance(site, str) else site
        here = [p for p in self.probes if key in (p.site, replace(p.site, position=p.position))]
        if len(here) != 1:
            names = ", ".join(str(replace(p.site, position=p.position)) for p in self.probes[:8])
            raise SiteError(f"{key}: {len(here)} probes; there are {names}{' ...' * (len(self.probes) > 8)}")
        return here[0]

    def table(self) -> pd.DataFrame:
        """One row per probe."""
        return self.rows.copy()

    def plot(self) -> go.Figure:
        """Held-out value by layer beside that of random labels, one line per position; a map where heads have each."""
        from interp.plots import curves, head_map
        from interp.plots.titles import heading, titled

        parts = heading(self.rows, self.provenance, of="linear probes")
        if self.rows["head"].notna().any():
            here = self.rows["position"].eq(self.rows["position"].iloc[0]).fillna(True)
            return titled(head_map(self.rows[here]), parts)
        layers = sorted(set(self.rows["layer"]))
        lines: dict[str, Any] = {}
        for position, part in self.rows.groupby("position", dropna=False):
            name = "every token" if pd.isna(position) else f"position {position}"
            by_layer = part.set_index("layer").reindex(layers)
            lines[name] = by_layer["value"].to_numpy(dtype=float)
            lines[f"random labels, {name}"] = by_layer["null"].to_numpy(dtype=float)
        unit = str(self.rows["unit"].iloc[0])
        controls = [name for name in lines if name.startswith("random labels")]
        figure = curves(layers, lines, x_title="layer", y_title=f"held-out {unit}", control=controls, unit=unit)
        return titled(figure, parts)


@recorded
def linear_probe(
    model: Model,
    prompts: Prompts,
    labels: Any,
    *,
    site: str | Site = "resid_post",
    position: int | Sequence[int] | None = -1,
    penalty: str = "l2",
    strength: float = 1.0,
    features: int | None = None,
    types: Sequence[Any] | None = None,
    held_out: float = 0.3,
    n_controls: int = 5,
    batch_size: int = 32,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> LinearProbes:
    """Share of held-out prompts whose label a linear map of the activation gives; R^2 where labels are numbers.

    One probe per layer (and head) that `site` means and per position: logistic regression for names and integers, ridge
    regression for floats, on standardised activations. Selectivity is the value less that of the same probe on random
    labels (Hewitt & Liang 2019, arXiv 1909.03368): one label drawn per type, the same wherever the type stands. That a
    label can be read off says nothing of whether the model reads it: add the probe's direction, or ablate it
    (`Probe.add`, `Probe.ablate`), and see what changes.

    Args:
        model: any backend.
        prompts: as many as labels; leave doubles out: they may stand on both sides of the split.
        labels: one per prompt; with position=None one list per prompt, a label for each real token.
        site: of one or all layers and heads: "resid_post", "L3.mlp_post", "z" (each head alone), "L2H5.z".
        position: token of each prompt, counted from its start or (negative) its end; several, each with a probe of its
            own; None: every token is an example.
        penalty: "l2", or "l1" for a sparse probe.
        strength: of the penalty.
        features: a sparse probe on the k features whose variance the label explains most of (in training prompts).
        types: what random labels are drawn for, in the shape of `labels`; the word itself, say. Without, each prompt
            (or token) has one of its own: nothing that could be memorised.
        held_out: share of prompts that are not fitted on.
        n_controls: draws of random labels; five at least.
        batch_size: prompts of a forward.
        seed: of the split, the random labels and the bootstrap.
        edits: changes under which the model runs.

    Returns:
        Rows with value (held-out accuracy, or R^2) and its 95 % interval over prompts, null (mean over random labels),
        p and q (value against the draws of random labels), selectivity = value - null (null not below 0 for R^2),
        chance (share of the commonest training label among those held out; 0 for R^2), train (value on what was
        fitted), features (weights not zero).

    Raises:
        TaskError: another number of labels than of prompts, or one class alone in training.
        SiteError: attention patterns, or what stands outside the layers.
        SchemaError: fewer than five draws, or a share that leaves a side empty.

    >>> import interp, torch
    >>> from probes.features import linear_probe
    >>> model = interp.load("zoo:planted-induction")
    >>> ids = torch.randint(3, 40, (40, 6), generator=torch.Generator().manual_seed(0))
    >>> found = linear_probe(model, ids, ids[:, -1] > 20, site="L0.resid_pre")
    >>> bool(found.rows["selectivity"].iloc[0] > 0.2)
    True
    """
    if n_controls < LEAST_NULLS:
        raise TaskError(f"{n_controls} draws of random labels are too few for a test; take {LEAST_NULLS} at least")
    batch, sites, recipe = model.batch(prompts), _sites(model, site), Recipe(penalty, strength, features)
    y, groups, kinds = _examples(batch, labels, types, every=position is None)
    test = split(groups, held_out, seed=seed)
    sample = _Sample(y, groups, test, _random_labels(y, kinds, n_controls, seed=seed), recipe, seed)
    classes = sample.classes
    acts = _activations(model, batch, sites, _columns(batch, position), batch_size)
    positions = [None] if position is None else [position] if isinstance(position, int) else list(position)
    outcomes = [
        sample.probe((whole[batch.mask.cpu()] if at is None else whole[:, i]).double().numpy(), place, at)
        for place, whole in acts.items()
        for i, at in enumerate(positions)
    ]
    probes, rows, controls = zip(*outcomes, strict=True)
    data = {"task": "labels of the caller's", "n_prompts": len(batch.ids), "sha256": fingerprint([batch])}
    facts = {"data": data, "method": "linear-probe", "classes": list(map(str, classes))}
    return LinearProbes(_table(rows, np.array(controls).T, bool(classes)), probes, facts)


@dataclass(frozen=True, eq=False)
class _Sample:
    """Labels and prompts of the examples, which are held out, random labels, and how probes are fitted."""

    y: ndarray
    groups: ndarray
    test: ndarray
    draws: list[ndarray]
    recipe: Recipe
    seed: int

    @property
    def classes(self) -> tuple[Any, ...]:
        """Labels that there are; empty where they are numbers.

        Raises:
            TaskError: the examples fitted on have one alone.
        """
        found = encoded(self.y)[1]
        if found and len(np.unique(self.y[~self.test])) < 2:
            raise TaskError("the prompts fitted on have one label alone; give more prompts, of both kinds")
        return found

    def probe(self, x: ndarray, site: Site, position: int | None) -> tuple[Probe, dict[str, Any], list[float]]:
        """The probe of a place, its row, and the values of random labels there."""
        fits = [self._fit(x, labels, site, position) for labels in (self.y, *self.draws)]
        pairs = zip(fits[1:], self.draws, strict=True)
        control = [_score(f, x[self.test], c[self.test], _centre(c, self.test))[0] for f, c in pairs]
        row = _row(fits[0], x, self.y, self.test, self.groups, seed=self.seed)
        return fits[0], row | {"null": float(np.mean(control))}, control

    def _fit(self, x: ndarray, labels: ndarray, site: Site, position: int | None) -> Probe:
        own = {"site": site, "position": position, "seed": self.seed}
        return fit(x[~self.test], labels[~self.test], self.recipe, **own)


def _table(rows: Sequence[dict[str, Any]], controls: Float[ndarray, "draw probe"], classes: bool) -> pd.DataFrame:
    """The rows with their tests against random labels."""
    values = np.array([row["value"] for row in rows])
    p = p_against_nulls(values, controls)
    q = benjamini_hochberg(p)
    # R^2 of a map that fits nothing is below zero as often as it likes; to be less bad than that is no selectivity
    floor = np.array([row["null"] if classes else max(row["null"], 0.0) for row in rows])
    extra = [{"p": a, "q": b, "selectivity": s} for a, b, s in zip(p, q, values - floor, strict=True)]
    return frame([{**row, **more} for row, more in zip(rows, extra, strict=True)], extra=EXTRA)


def _sites(model: Model, site: str | Site) -> list[Site]:
    """One site per probe: each layer that is meant, each head alone where activations have heads."""
    place = Site.parse(site) if isinstance(site, str) else site
    if place.kind == "pattern" or place.position is not None:
        raise SiteError(f"{place}: a probe reads a vector per token; name a kind that has one, and `position` apart")
    info = model.info
    n = info.n_kv_heads if place.kind in ("k", "v") else info.n_heads
    heads = range(n) if place.kind in PER_HEAD and place.head is None else (place.head,)
    layers = info.layers_of(place)
    return [replace(place if i is None else place.at(i), head=h) for i in layers for h in heads]


def _columns(batch: Batch, position: int | Sequence[int] | None) -> Tensor:
    if position is None or isinstance(position, int):
        return position_columns(batch, position)
    return torch.cat([position_columns(batch, p) for p in position], dim=1)


def _examples(batch: Batch, labels: Any, types: Any, *, every: bool) -> tuple[ndarray, ndarray, ndarray]:
    """Label, prompt and type of each example: a prompt, or a real token of one."""
    n, lengths = len(batch.ids), batch.mask.sum(1).tolist()
    if len(labels) != n or (types is not None and len(types) != n):
        raise TaskError(f"{len(labels) if len(labels) != n else len(types)} labels or types for {n} prompts")
    prompt = np.unique(batch.ids.cpu().numpy(), axis=0, return_inverse=True)[1].ravel()
    if not every:
        kinds = prompt if types is None else np.unique(np.asarray(types), return_inverse=True)[1].ravel()
        return encoded(labels)[0], np.arange(n), kinds
    for what, values in (("labels", labels), ("types", types)):
        for b, length in enumerate(lengths):
            if values is not None and len(values[b]) < length:
                raise TaskError(f"{what} of prompt {b}: {len(values[b])} for {length} tokens")
    y, groups = encoded(_flat(labels, lengths))[0], np.repeat(np.arange(n), lengths)
    kinds = np.arange(len(y)) if types is None else np.unique(_flat(types, lengths), return_inverse=True)[1].ravel()
    return y, groups, kinds


def _flat(values: Any, lengths: Sequence[int]) -> ndarray:
    """What is said of each real token, prompt after prompt."""
    rows = values.tolist() if isinstance(values, Tensor | ndarray) else values
    return np.array([value for row, n in zip(rows, lengths, strict=True) for value in list(row)[:n]])


def _random_labels(y: ndarray, kinds: ndarray, n: int, *, seed: int) -> list[ndarray]:
    """n draws of one label per type, from the labels that there are."""
    rng = np.random.default_rng([seed, 1])
    return [rng.choice(y, size=int(kinds.max()) + 1)[kinds] for _ in range(n)]


@torch.no_grad()
def _activations(
    model: Model, batch: Batch, sites: Sequence[Site], columns: Tensor, batch_size: int
) -> dict[Site, Float[Tensor, "prompt pos d"]]:
    """Activations at the columns, on the CPU; the pass ends behind the last layer that is asked for."""
    layers = [s.first for s in sites]
    ends = [i for i in layers if i is not None]
    stop = max(ends) if len(ends) == len(layers) else None
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for rows in torch.arange(len(batch.ids)).split(batch_size):
        at = columns[rows]
        own = torch.arange(len(rows))[:, None]
        run = model.run(
            batch.select(rows),
            capture=dict.fromkeys(sites, lambda x: x[own.to(x.device), at.to(x.device)].float().cpu()),  # noqa: B023
            stop=stop,
        )
        for site in sites:
            parts[site].append(run.acts[site])
    return {site: torch.cat(part) for site, part in parts.items()}


def _score(probe: Probe, x: ndarray, y: ndarray, centre: float) -> tuple[float, ndarray, ndarray]:
    """Value, and its numerator and denominator by example: a ratio of their sums, 1 less it for R^2 about `centre`."""
    guess = probe.predict(torch.from_numpy(x))
    if probe.classes:
        right = (guess == y).astype(float)
        return float(right.mean()), right, np.ones(len(right))
    error, spread = (y - guess) ** 2, (y - centre) ** 2
    return 1 - float(error.sum() / max(spread.sum(), 1e-300)), error, spread


def _centre(y: ndarray, test: ndarray) -> float:
    """Mean of numbers that were fitted on: what a map that reads nothing would say."""
    return float(y[~test].mean()) if np.issubdtype(y.dtype, np.floating) else 0.0


def _row(probe: Probe, x: ndarray, y: ndarray, test: ndarray, groups: ndarray, *, seed: int) -> dict[str, Any]:
    value, above, below = _score(probe, x[test], y[test], _centre(y, test))
    prompts, index = np.unique(groups[test], return_inverse=True)
    up, down = (np.bincount(index, weights=part, minlength=len(prompts)) for part in (above, below))

    def statistic(w: Float[ndarray, "draw unit"]) -> ndarray:
        ratio = (w @ up) / np.maximum(w @ down, 1e-300)
        return (ratio if probe.classes else 1 - ratio)[:, None]

    interval = bootstrap(statistic, len(prompts), seed=seed, around=np.array([value]))
    names, counts = np.unique(y[~test], return_counts=True)
    chance = float((y[test] == names[counts.argmax()]).mean()) if probe.classes else 0.0
    train = _score(probe, x[~test], y[~test], _centre(y, test))[0]
    return {
        "analysis": "linear_probe",
        "variant": "accuracy" if probe.classes else "r2",
        "layer": probe.site.first,
        "head": probe.site.head,
        "component": str(probe.site),
        "site": str(probe.site),
        "position": probe.position,
        "value": value,
        "se": float(interval.se[0]),
        "ci_low": float(interval.low[0]),
        "ci_high": float(interval.high[0]),
        "n": len(prompts),
        "unit": "fraction",
        "chance": chance,
        "train": train,
        "features": len(probe.features),
        "converged": probe.converged,
    }
