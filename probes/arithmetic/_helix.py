"""Numbers on a helix: activations fitted by waves of a few periods and a line, and what the fit does when patched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from interp.edits import Add
from interp.errors import NotApplicable, SchemaError
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL
from interp.model import Model
from interp.patching.case import Case
from interp.patching.effect_table import effects
from interp.results import stats
from interp.results.figures import dots
from interp.sites import Site
from interp.tasks import PromptTask, addition
from interp.tasks.modular import FAMILY
from probes.arithmetic._key_frequencies import strong_frequencies
from probes.arithmetic.numbers import default_task, number_values

PERIODS = (2.0, 5.0, 10.0, 100.0)
N_COMPONENTS = 100
FOLDS = 2


@dataclass(frozen=True)
class Place:
    """Where numbers are read and patched: a layer's stream at roles, each with the number that stands for it."""

    site: Site
    roles: tuple[str, ...]

    @property
    def name(self) -> str:
        """As a table says it."""
        return f"{self.site} at {' '.join(self.roles)}"


def helix_features(
    values: Int[ndarray, " prompt"], periods: Sequence[float], *, linear: bool
) -> Float[ndarray, "prompt feature"]:
    """cos(2 pi v / T) and sin(2 pi v / T) of every period T (the sine of T = 2 is zero and left out), and v itself.

    >>> helix_features(np.array([0, 1]), [2.0], linear=True).round(2).tolist()
    [[1.0, 0.0], [-1.0, 1.0]]
    """
    v = values.astype(float)
    columns = [f(2 * np.pi * v / t) for t in periods for f in ((np.cos,) if t == 2 else (np.cos, np.sin))]  # noqa: PLR2004
    return np.stack([*columns, v] if linear else columns, 1)


@dataclass(frozen=True, eq=False)
class Fit:
    """Least-squares fit of activations: mean + features' deviation times coefficients."""

    mean: Float[ndarray, " d"]
    centre: Float[ndarray, " feature"]
    coefficients: Float[ndarray, "feature d"]

    @classmethod
    def of(cls, x: Float[ndarray, "prompt d"], features: Float[ndarray, "prompt feature"], n_components: int) -> Fit:
        """Of the activations' first principal components on the features, with an intercept."""
        mean, centre = x.mean(0), features.mean(0)
        deviation = x - mean
        if n_components < min(x.shape):
            basis = np.linalg.svd(deviation, full_matrices=False)[2][:n_components]
            deviation = deviation @ basis.T @ basis
        return cls(mean, centre, np.linalg.lstsq(features - centre, deviation, rcond=None)[0])

    def __call__(self, features: Float[ndarray, "prompt feature"]) -> Float[ndarray, "prompt d"]:
        """Activations by the fit."""
        return self.mean + (features - self.centre) @ self.coefficients

    def r2(self, x: Float[ndarray, "prompt d"], features: Float[ndarray, "prompt feature"]) -> float:
        """1 - |x - fit|^2 / |x - mean|^2, the mean being that of what was fitted."""
        return 1 - float(((x - self(features)) ** 2).sum() / ((x - self.mean) ** 2).sum())


@analysis(
    name="helix",
    family="arithmetic",
    title="Helix of numbers",
    headline="r2",
    unit="place",
    order=63,
    figure=dots,
    subject="zoo:modular-addition",
    columns={"site": "str", "role": "str", "chance": "float64", "label": "boolean"},
    presumes=(),
    quick={"n_prompts": 64, "n_shuffles": 6},
    exemptions={
        "planted": "numbers, of which planted models have none; tests plant a helix in an embedding",
        "scale": "R2 in the sample falls towards its own value as prompts are added",
    },
    means="The stream at a number is a sum of a few waves of it (and a line), and moving along the fit moves the "
    "answer: the model computes with these waves.",
    misleads="Any few numbers are fitted by as many features, and that much of the answer comes back by chance: about "
    "features / (numbers - 1), which the null shows. A good fit says that the number is there, not that it is used.",
    reference="Kantamneni & Tegmark 2025, arXiv 2502.00873",
)
def helix(
    model: Model,
    *,
    task: PromptTask | None = None,
    periods: Sequence[float] | None = None,
    linear: bool = True,
    n_components: int = N_COMPONENTS,
    n_prompts: int = 256,
    n_shuffles: int = 8,
    seed: int = 0,
) -> Findings:
    """R2 of x ~ C B(v), B(v) = [v, cos(2 pi v / T), sin(2 pi v / T) for each period T], over prompts; a fraction.

    x is the stream entering a layer, at the two operands (v the number that stands there; the R2 is the mean of both)
    and at END (v the right answer), and the stream behind the last layer at END; C is fitted to its first
    `n_components` principal components. Variants, a row per place:
      r2        in the sample, with an interval over prompts; null: the numbers exchanged at random, all prompts of a
                number alike, which has the same number of features; p Student's prediction interval of these draws, q
                Benjamini-Hochberg; a label needs q < 0.01;
      held_out  on half of the prompts, fitted on the other half, and the other way round;
      restored  (m_patched - m_corrupt) / (m_clean - m_corrupt), m the task's metric, where the corrupted run has at
                the place x + f(v_clean) - f(v_corrupt), f the fit of the other half of prompts; interval over prompts;
                null, p, q and label by the exchanged numbers.
    `chance` is features / (numbers - 1), what as many features explain of that many numbers whatever they are.

    Args:
        model: any model to which numbers are one token each.
        task: prompts with roles x and y and numbers as answers; the model's own modular addition where it has one (or
            adds in ids), else `arithmetic`.
        periods: T; 2, 5, 10 and 100, or for modular addition p / k of the key frequencies of the logits.
        linear: whether v itself is a feature; not for modular addition by default periods.
        n_components: principal components that are kept.
        n_prompts: of the task, where it is not given.
        n_shuffles: exchanges of numbers, 5 at least.
        seed: of prompts, halves, exchanges and bootstrap.

    Raises:
        NotApplicable: no numbers of one token in the task, fewer than two prompts, or default periods of a model that
            does not add.
        SchemaError: a period that is not above 1, or nothing to fit.

    Reference: Kantamneni & Tegmark 2025 (arXiv 2502.00873); cross-fitting and nulls are ours.
    """
    if periods is not None and not all(t > 1 for t in periods):
        raise SchemaError(f"periods {list(periods)}: each above 1")
    if periods is not None and not len(periods) and not linear:
        raise SchemaError("no periods and not linear: nothing is left to fit; give one of them")
    task = default_task(model, n=n_prompts, seed=seed) if task is None else task
    if periods is None:
        periods, linear = _periods(model, task, linear)
    if len(task) < FOLDS:
        raise NotApplicable(f"{task.name} has {len(task)} prompts: {FOLDS} at least, one to fit and one to try it on")
    case = Case.of(model, task)
    values = {side: _values(model, task, side) for side in ("clean", "corrupt")}
    places = _places(model, task)
    acts = _activations(case, places)
    design = _Design(tuple(periods), linear, n_components, seed)
    rng = np.random.default_rng(seed)
    exchanges = [_exchange(rng, values) for _ in range(n_shuffles)]
    rows: list[dict[str, object]] = []
    for place in places:
        rows += _fit_rows(design, place, acts, values, exchanges)
    for place in places:
        rows.append(_patch_row(case, design, place, acts, values, exchanges))
    table = pd.DataFrame(rows)
    for variant in ("r2", "restored"):
        mask = table["variant"] == variant
        table.loc[mask, "q"] = stats.benjamini_hochberg(table.loc[mask, "p"].to_numpy(dtype=float))
        table.loc[mask, "label"] = table.loc[mask, "q"] < LEVEL
    table = table.assign(component=table["site"] + " at " + table["role"])
    table["chance"] = design.features(np.zeros(1, dtype=int)).shape[1] / (len(exchanges[0]) - 1)
    data = {**task.provenance(), "periods": [float(t) for t in periods], "linear": linear}
    return Findings(table, data, ability=case)


def _periods(model: Model, task: PromptTask, linear: bool) -> tuple[tuple[float, ...], bool]:
    """Periods of the key frequencies of a modular adder, or the paper's."""
    if task.name != FAMILY:
        return PERIODS, linear
    try:
        layout = addition(model)
    except NotApplicable as error:
        raise NotApplicable(f"no key frequencies to take periods from: give `periods`. {error}") from error
    return tuple(layout.modulus / k for k in strong_frequencies(layout.table(model))), False


@dataclass(frozen=True)
class _Design:
    periods: tuple[float, ...]
    linear: bool
    n_components: int
    seed: int

    def features(self, values: Int[ndarray, " prompt"]) -> Float[ndarray, "prompt feature"]:
        return helix_features(values, self.periods, linear=self.linear)

    def folds(self, n: int) -> Int[ndarray, " prompt"]:
        """Number of each prompt's half."""
        return np.random.default_rng(self.seed).permutation(np.arange(n) % FOLDS)


Values = dict[str, dict[str, ndarray]]
"""side -> role -> number of each prompt."""
Exchange = dict[int, int]


def _values(model: Model, task: PromptTask, side: str) -> dict[str, Int[ndarray, " prompt"]]:
    batch = task.clean if side == "clean" else task.corrupt
    rows = torch.arange(len(task))
    answers = task.answers if side == "clean" else task.wrong
    if not answers.shape[1] or bool((answers[:, 0] < 0).any()):
        raise NotApplicable(f"{task.name} has prompts without a right or a wrong answer")
    ids = {role: batch.ids.cpu()[rows, task.role(role).cpu()] for role in ("x", "y")}
    return {role: number_values(model, x) for role, x in {**ids, "END": answers[:, 0].cpu()}.items()}


def _places(model: Model, task: PromptTask) -> list[Place]:
    layers = [Site("resid_pre", i) for i in range(model.info.n_layers)]
    last = Site("resid_post", model.info.n_layers - 1)
    return [*(Place(s, ("x", "y")) for s in layers), *(Place(s, ("END",)) for s in (*layers[1:], last))]


@torch.no_grad()
def _activations(case: Case, places: Sequence[Place]) -> dict[tuple[Site, str], Float[ndarray, "prompt d"]]:
    """The clean stream at each place's roles."""
    sites = list(dict.fromkeys(place.site for place in places))
    run = case.model.run(case.task.clean, capture=sites)
    rows = torch.arange(len(case))
    return {
        (place.site, role): run[place.site].float().cpu()[rows, case.task.role(role).cpu()].double().numpy()
        for place in places
        for role in place.roles
    }


def _exchange(rng: np.random.Generator, values: Values) -> Exchange:
    """Another number for each number, a random order of them."""
    every = np.unique(np.concatenate([v for roles in values.values() for v in roles.values()]))
    return dict(zip(every.tolist(), rng.permutation(every).tolist(), strict=True))


def _exchanged(values: Int[ndarray, " prompt"], exchange: Exchange | None) -> Int[ndarray, " prompt"]:
    return values if exchange is None else np.array([exchange[int(v)] for v in values])


def _fit_rows(
    design: _Design, place: Place, acts: dict, values: Values, exchanges: Sequence[Exchange]
) -> list[dict[str, object]]:
    """Rows of R2: in the sample with its null, and held out."""
    labels = {"site": str(place.site), "role": " ".join(place.roles), "layer": place.site.first, "unit": "fraction"}
    residual, spread, held_out = [], [], []
    null = np.zeros((len(exchanges), len(place.roles)))
    for column, role in enumerate(place.roles):
        x, v = acts[place.site, role], values["clean"][role]
        features = design.features(v)
        fit = Fit.of(x, features, design.n_components)
        residual.append(((x - fit(features)) ** 2).sum(1))
        spread.append(((x - x.mean(0)) ** 2).sum(1))
        for row, exchange in enumerate(exchanges):
            other = design.features(_exchanged(v, exchange))
            null[row, column] = Fit.of(x, other, design.n_components).r2(x, other)
        fold = design.folds(len(x))
        halves = [(Fit.of(x[fold != k], features[fold != k], design.n_components), fold == k) for k in range(FOLDS)]
        held_out += [half.r2(x[test], features[test]) for half, test in halves]
    a, b = np.stack(residual), np.stack(spread)
    value = float(np.mean(1 - a.sum(1) / b.sum(1)))
    drawn = stats.bootstrap(
        lambda w: (1 - (w @ a.T) / (w @ b.T)).mean(1), a.shape[1], seed=design.seed, around=np.array(value)
    )
    draws = null.mean(1)
    p = float(stats.p_against_nulls(np.array([value]), draws[:, None])[0])
    own = {"value": value, "se": float(drawn.se), "ci_low": float(drawn.low), "ci_high": float(drawn.high)}
    own |= {"null": float(draws.mean()), "p": p, "n": a.shape[1]}
    return [
        {"variant": "r2", **labels, **own},
        {"variant": "held_out", **labels, "value": float(np.mean(held_out)), "n": a.shape[1]},
    ]


def _patch_row(
    case: Case, design: _Design, place: Place, acts: dict, values: Values, exchanges: Sequence[Exchange]
) -> dict[str, object]:
    """Share of the metric that comes back with the fit of clean numbers in place of that of corrupted ones."""
    base, other = (x.double().cpu().numpy() for x in (case.corrupt, case.clean))
    patched = np.stack([_patched(case, design, place, acts, values, e) for e in (None, *exchanges)])
    own, *nulls = effects(patched, base, other, seed=design.seed)
    null = np.array([row["normalised"] for row in nulls], dtype=float)
    value = float(own["normalised"])
    return {
        "variant": "restored",
        "site": str(place.site),
        "role": " ".join(place.roles),
        "layer": place.site.first,
        "unit": "fraction",
        "value": value,
        "ci_low": own["normalised_low"],
        "ci_high": own["normalised_high"],
        "null": float(null.mean()),
        "p": float(stats.p_against_nulls(np.array([value]), null[:, None])[0]),
        "n": own["n"],
    }


@torch.no_grad()
def _patched(
    case: Case, design: _Design, place: Place, acts: dict, values: Values, exchange: Exchange | None
) -> Float[ndarray, " prompt"]:
    """The metric of the corrupted prompts with x + f(v_clean) - f(v_corrupt) at the place."""
    edits, task = [], case.task
    for role in place.roles:
        x, (clean, corrupt) = (
            acts[place.site, role],
            (design.features(_exchanged(values[side][role], exchange)) for side in ("clean", "corrupt")),
        )
        fold, change = design.folds(len(x)), np.zeros_like(x)
        for k in range(FOLDS):
            fit, test = Fit.of(x[fold != k], clean[fold != k], design.n_components), fold == k
            change[test] = fit(clean[test]) - fit(corrupt[test])
        edits.append(Add(place.site, torch.tensor(change, dtype=torch.float32), positions=task.role(role)))
    logits = case.model.run(task.corrupt, edits=edits).logits
    return case.value(logits).double().cpu().numpy()
