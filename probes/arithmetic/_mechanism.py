"""Which algorithm adds modulo p: clock, pizza, or neither, by distances that tell them apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from interp.batch import Batch
from interp.edits import Add
from interp.gradients import gradients
from interp.measurement.ability import Ability
from interp.measurement.fourier import fourier_basis
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL
from interp.model import Model
from interp.results import stats
from interp.results.figures import dots
from interp.results.stats import Bootstrap
from interp.sites import Site
from interp.tasks import Addition, addition, fingerprint
from probes.arithmetic._key_frequencies import strong_frequencies

N_COMPONENTS = 4
CLOCK, PIZZA, NEITHER = "clock", "pizza", "neither"
SYMMETRIC, ASYMMETRIC = 0.8, 0.6
"""Gradient symmetricity of a pizza at least, of a clock at most."""
DEPENDENT, INDEPENDENT = 0.4, 0.6
"""Distance irrelevance of a pizza at most, of a clock at least."""
RIGHT = 0.9
"""Accuracy below which a model follows no algorithm."""


@analysis(
    name="addition_mechanism",
    family="arithmetic",
    title="Algorithm of modular addition",
    headline="distance_irrelevance",
    unit="model",
    order=61,
    figure=dots,
    subject="zoo:modular-addition",
    columns={"algorithm": "str"},
    presumes=(),
    quick={"n_triples": 40, "n_shuffles": 10},
    exemptions={
        "planted": "a model that adds, of which planted models have none; tests make logits and embeddings of each"
    },
    means="Clock: angles of both operands are multiplied, so that the logits depend on a + b alone and the two "
    "gradients differ. Pizza: the embeddings are averaged, so that the right logit falls where a - b is near half a "
    "turn, and the gradients agree. The column `algorithm` is the verdict, the same in every row.",
    misleads="The thresholds lie between the two models of the paper; a model may be in between, or have both at "
    "different frequencies, and is then neither. Circularity is that of principal components: where two frequencies "
    "are as strong as each other they mix, and it is low although both are circles.",
    reference="Zhong et al. 2023, arXiv 2306.17844",
)
def addition_mechanism(
    model: Model,
    *,
    modulus: int | None = None,
    template: str | None = None,
    n_triples: int = 1000,
    n_shuffles: int = 20,
    seed: int = 0,
) -> Findings:
    """Distance irrelevance mean_d sd_a l(a, a + d) / sd l, l(a, b) the logit of a + b mod p; and what stands beside it.

    One row per variant, all without units from -1 or 0 to 1:
      distance_irrelevance    the above (population sd): 0 where the right logit depends on a - b; interval over d;
      gradient_symmetricity   mean over `n_triples` random (a, b, c) of cos(d l_c / d e_a, d l_c / d e_b), gradients of
                              a logit in the two operands' embeddings;
      circularity             mean over the first four principal components v of the numbers' embeddings of
                              max_k 2 / (p |v|^2) |sum_j v_j e^(2 pi i j k / p)|^2: 1 where each is a wave; over these;
      clock_fit, pizza_fit    share of the variance of logits (less their mean over c) that alpha cos(w (a + b - c)), or
                              beta |cos(w (a - b) / 2)| cos(w (a + b - c)), explains, w = 2 pi k / p, where nothing is
                              left of the operands' embeddings but their mean and frequency k: mean over the key
                              frequencies of the logits, and "clock_fit 17" for each; interval over a;
      accuracy                share of all pairs that are right; interval over a.

    `algorithm`, the verdict: "pizza" where symmetricity >= 0.8, irrelevance <= 0.4 and pizza_fit > clock_fit, by the
    ends of their intervals; "clock" where symmetricity <= 0.6, irrelevance >= 0.6 and clock_fit > pizza_fit; in both
    circularity with q < 0.01 and an accuracy of 0.9; else "neither". The provenance's data say which of these hold.

    Nulls are means over `n_shuffles`: pairs in random order, gradients of different triples, numbers in random order in
    embedding and in logits; p is Student's prediction interval of the draws, for a smaller irrelevance and a larger
    value of the others. The accuracy has null 1 / p.

    Args:
        model: any model of modular addition.
        modulus: p; found out by trying where it is not given (`interp.tasks.addition`).
        template: how a sum is asked for, likewise: "{a} {b} 113" in ids, "{a} + {b} =" in words.
        n_triples: of which gradients are taken.
        n_shuffles: draws of each null, 5 at least.
        seed: of triples, draws, bootstrap, and the pairs on which a layout is tried.

    Raises:
        NotApplicable: the model does not add in any layout that was tried.
        TaskError: a modulus or template that is none, or too few draws.

    Reference: Zhong et al. 2023 (arXiv 2306.17844); the fits and the thresholds are ours.
    """
    layout = addition(model, modulus=modulus, template=template, seed=seed)
    p, (a, b) = layout.modulus, layout.pairs()
    logits = layout.table(model)
    rng = np.random.default_rng(seed)
    circles = strong_frequencies(logits)
    right = logits.gather(2, ((a + b) % p).view(p, p, 1))[..., 0].double().numpy()
    hits = (logits.argmax(2) == ((a + b) % p).view(p, p)).double().mean(1).numpy()
    rows = [
        _irrelevance(right, rng, n_shuffles, seed),
        _symmetricity(model, layout, n_triples, n_shuffles, seed),
        _circularity(model.weights().w_e[layout.numbers].double().numpy(), rng, n_shuffles, seed),
        *_fits({k: isolated(model, layout, k) for k in circles}, rng, n_shuffles, seed),
        _row("accuracy", hits.mean(), stats.bootstrap(lambda w: w @ hits, p, seed=seed), np.full(5, 1 / p), p),
    ]
    table = pd.DataFrame(rows)
    table["q"] = stats.benjamini_hochberg(table["p"].to_numpy(dtype=float))
    verdict, reasons = algorithm(table)
    ability = {"modular addition": Ability.of_counts(round(hits.sum() * p), p * p, 1 / p, contrasted=True)}
    facts: dict[str, object] = {"task": "modular addition", **layout.facts(), "algorithm": verdict, "reasons": reasons}
    facts["circles"] = circles
    triples = {"gradients": {"sha256": fingerprint([Batch.of(layout.prompts(*_triples(p, n_triples, seed)[:2]))])}}
    facts |= {"sha256": fingerprint([Batch.of(layout.prompts(a, b))]), **triples}
    return Findings(table.assign(algorithm=verdict, component=table["variant"]), facts, ability=ability)


def algorithm(table: pd.DataFrame) -> tuple[str, dict[str, bool]]:
    """The verdict over rows of `addition_mechanism`, and which of its conditions hold."""
    row: Mapping[str, pd.Series] = {str(r["variant"]): r for _, r in table.iterrows()}
    symmetric, irrelevant = row["gradient_symmetricity"], row["distance_irrelevance"]
    clock, pizza = row["clock_fit"], row["pizza_fit"]
    reasons = {
        "adds": bool(row["accuracy"]["value"] >= RIGHT),
        "circular": bool(row["circularity"]["q"] < LEVEL),
        "gradients agree": bool(symmetric["ci_low"] >= SYMMETRIC),
        "gradients differ": bool(symmetric["ci_high"] <= ASYMMETRIC),
        "depends on distance": bool(irrelevant["ci_high"] <= DEPENDENT),
        "does not depend on distance": bool(irrelevant["ci_low"] >= INDEPENDENT),
        "pizza fits better": bool(pizza["ci_low"] > clock["ci_high"]),
        "clock fits better": bool(clock["ci_low"] > pizza["ci_high"]),
    }
    able = reasons["adds"] and reasons["circular"]
    if able and reasons["gradients agree"] and reasons["depends on distance"] and reasons["pizza fits better"]:
        return PIZZA, reasons
    if able and reasons["gradients differ"] and reasons["does not depend on distance"] and reasons["clock fits better"]:
        return CLOCK, reasons
    return NEITHER, reasons


def distance_irrelevance(right: Float[ndarray, "a b"]) -> tuple[Float[ndarray, " distance"], float]:
    """sd over a of l(a, a + d) for every d, and the sd of all; both of the population."""
    p = len(right)
    every = np.arange(p)
    by_distance = right[every[None, :], (every[None, :] + every[:, None]) % p]  # d a
    return by_distance.std(1), float(right.std())


def circularity(embedding: Float[ndarray, "residue d"]) -> Float[ndarray, " component"]:
    """max_k 2 / (p |v|^2) |sum_j v_j e^(2 pi i j k / p)|^2 of the first principal components v; at most 1.

    For even p the last frequency has a cosine alone, and no factor 2.
    """
    p = len(embedding)
    v = np.linalg.svd(embedding - embedding.mean(0), full_matrices=False)[0][:, :N_COMPONENTS]
    power = 2 / p * np.abs(np.fft.rfft(v, axis=0)[1:]) ** 2
    if p % 2 == 0:
        power[-1] /= 2
    return power.max(0)


def circle_fits(
    centred: Float[Tensor, "a b c"], k: int, w: Float[ndarray, "draw a"]
) -> tuple[Float[ndarray, " draw"], Float[ndarray, " draw"]]:
    """Shares of the variance of logits that alpha cos(w (a + b - c)) and beta |cos(w (a - b) / 2)| cos(w (a + b - c)).

    Under weights of a. Each pair has its own amplitude m(a, b) of cos(w (a + b - c)) over c; the clock fits these by a
    constant and the pizza by beta |cos(pi k (a - b) / p)|.
    """
    p = len(centred)
    every = np.arange(p)
    amplitude = _pair_amplitudes(centred, k)
    shape = np.abs(np.cos(np.pi * k * (every[:, None] - every[None, :]) / p))
    mean_square = 1.0 if 2 * k == p else 0.5
    variance = (w @ centred.square().mean((1, 2)).numpy()) / mean_square
    clock = (w @ amplitude.mean(1)) ** 2
    pizza = (w @ (amplitude * shape).mean(1)) ** 2 / (w @ (shape**2).mean(1))
    return clock / variance, pizza / variance


def _pair_amplitudes(centred: Float[Tensor, "a b c"], k: int) -> Float[ndarray, "a b"]:
    """Of cos(w (a + b - c)) over c, for every pair."""
    p = len(centred)
    every = torch.arange(p)
    distance = every[:, None, None] + every[None, :, None] - every[None, None, :]
    wave = torch.cos(2 * torch.pi * k * distance.double() / p)
    return ((centred * wave).mean(2) * (1.0 if 2 * k == p else 2.0)).numpy()


@torch.no_grad()
def isolated(model: Model, layout: Addition, k: int) -> Float[Tensor, "a b c"]:
    """Logits, less their mean over c, with nothing of the operands' embeddings but their mean and frequency k."""
    p, (a, b) = layout.modulus, layout.pairs()
    every, site = torch.arange(p), Site("embed")
    keep = fourier_basis(p)[2 * k - 1 : 2 * k + 1].double()
    edits = []
    acts = model.run(Batch.of(layout.prompts(every, every)), capture=[site], stop=0)[site].cpu().double()
    changes = {}
    for place in layout.places:
        x = acts[:, place] - acts[:, place].mean(0)
        changes[place] = keep.T @ (keep @ x) - x
    parts = []
    for rows in torch.arange(p * p).split(layout.n_at_once(model)):
        edits = [
            Add(site, changes[place][operand[rows]].float(), positions=place)
            for place, operand in zip(layout.places, (a, b), strict=True)
        ]
        parts.append(layout.logits(model, a[rows], b[rows], edits=edits))
    logits = torch.cat(parts).unflatten(0, (p, p)).double()
    return logits - logits.mean(2, keepdim=True)


def _row(
    variant: str, value: float, drawn: Bootstrap, null: Float[ndarray, " draw"], n: int, *, low: bool = False
) -> dict[str, object]:
    """One row; p for a larger value than the null's, or a lower one."""
    sign = -1 if low else 1
    p = float(stats.p_against_nulls(np.array([sign * value]), sign * null[:, None])[0])
    return {
        "variant": variant, "value": float(value), "se": float(drawn.se), "ci_low": min(float(drawn.low), value),
        "ci_high": max(float(drawn.high), value), "null": float(null.mean()), "p": p, "n": n, "unit": "none",
    }  # fmt: skip


def _irrelevance(right: Float[ndarray, "a b"], rng: np.random.Generator, n: int, seed: int) -> dict[str, object]:
    spread, whole = distance_irrelevance(right)
    null = np.array([np.divide(*_mean_first(rng.permutation(right.ravel()).reshape(right.shape))) for _ in range(n)])
    drawn = stats.bootstrap(lambda w: w @ spread / whole, len(spread), seed=seed)
    return _row("distance_irrelevance", spread.mean() / whole, drawn, null, len(spread), low=True)


def _mean_first(right: Float[ndarray, "a b"]) -> tuple[float, float]:
    spread, whole = distance_irrelevance(right)
    return float(spread.mean()), whole


def _triples(p: int, n: int, seed: int) -> Int[Tensor, "part triple"]:
    return torch.randint(p, (3, n), generator=torch.Generator().manual_seed(seed))


def _symmetricity(model: Model, layout: Addition, n: int, n_shuffles: int, seed: int) -> dict[str, object]:
    """Cosine of the gradients at the two operands; null: at operands of different triples."""
    a, b, c = _triples(layout.modulus, n, seed)
    answers = layout.answers[c]

    def logit(logits: Tensor) -> Tensor:
        return logits[:, -1].gather(1, answers[:, None].to(logits.device))[:, 0]

    grads = gradients(model, layout.prompts(a, b), logit, [Site("embed")])["embed"].double().cpu()
    left, right = (torch.nn.functional.normalize(grads[:, place], dim=-1) for place in layout.places)
    values = (left * right).sum(-1).numpy()
    generator = torch.Generator().manual_seed(seed)
    null = np.array(
        [float((left * right[torch.randperm(n, generator=generator)]).sum(-1).mean()) for _ in range(n_shuffles)]
    )
    drawn = stats.bootstrap(lambda w: w @ values, n, seed=seed)
    return _row("gradient_symmetricity", values.mean(), drawn, null, n)


def _circularity(
    embedding: Float[ndarray, "residue d"], rng: np.random.Generator, n: int, seed: int
) -> dict[str, object]:
    values = circularity(embedding)
    null = np.array([circularity(rng.permutation(embedding)).mean() for _ in range(n)])
    drawn = stats.bootstrap(lambda w: w @ values, len(values), seed=seed)
    return _row("circularity", values.mean(), drawn, null, len(values))


def _fits(
    circles: Mapping[int, Float[Tensor, "a b c"]], rng: np.random.Generator, n: int, seed: int
) -> list[dict[str, object]]:
    """Rows of the clock's and the pizza's fit: means over circles, and each circle."""
    p = len(next(iter(circles.values())))
    whole = np.full((1, p), 1 / p)
    weights = stats.resample(p, seed=seed)
    orders = [torch.tensor(rng.permutation(p)) for _ in range(n)]
    values = {k: circle_fits(logits, k, whole) for k, logits in circles.items()}
    draws = {k: circle_fits(logits, k, weights) for k, logits in circles.items()}
    nulls = {k: [circle_fits(x[o][:, o][:, :, o], k, whole) for o in orders] for k, x in circles.items()}
    rows = []
    for i, name in enumerate(("clock_fit", "pizza_fit")):
        for label, members in ((name, list(circles)), *((f"{name} {k}", [k]) for k in circles)):
            value = float(np.mean([values[k][i][0] for k in members]))
            drawn = np.mean([draws[k][i] for k in members], axis=0)
            null = np.array([np.mean([nulls[k][j][i][0] for k in members]) for j in range(n)])
            ends = np.quantile(drawn, [0.025, 0.975])
            rows.append(_row(label, value, Bootstrap(ends[0], ends[1], drawn), null, p))
    return rows
