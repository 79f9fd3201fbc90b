"""Frequencies by which a model adds modulo p: in its embeddings, its neurons and its logits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Complex, Float, Int
from numpy import ndarray
from torch import Tensor

from interp.batch import Batch
from interp.components import mlp_name
from interp.measurement.ability import Ability
from interp.measurement.fourier import Spectrum, fourier_spectrum
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL
from interp.model import Model
from interp.results import stats
from interp.sites import Site
from interp.tasks import addition, fingerprint

LEAST_SHARE = 0.01
"""Of the logits' variance, which a key frequency explains."""
SPREAD = 1.5
"""Times an even spread over all frequencies, which a key frequency of vectors reaches."""
COLUMNS = {"frequency": "Int64", "label": "boolean"}


def spectrum_figure(rows: pd.DataFrame) -> go.Figure:
    """Share at each frequency, and in random orders (dashed)."""
    from interp.results.figures import over

    by = "site" if "site" in rows and rows["site"].nunique() > 1 else None
    return over(rows, "frequency", title="frequency", by=by, null="random order")


@analysis(
    name="key_frequencies",
    family="arithmetic",
    title="Key frequencies of modular addition",
    headline="logits",
    unit="frequency",
    order=60,
    figure=spectrum_figure,
    subject="zoo:modular-addition",
    columns=COLUMNS,
    presumes=(),
    quick={"n_shuffles": 25},
    exemptions={
        "sample": "every pair of residues is read: the seed is of nulls and intervals",
        "planted": "a model that adds, of which planted models have none; tests write the frequencies into logits",
    },
    means="The answer is read off waves of these frequencies: the logit of c rises and falls with "
    "cos(2 pi k (a + b - c) / p), and numbers and neurons turn with the same k.",
    misleads="Clock and pizza have the same spectrum: ask `addition_mechanism`. Where a norm or W_U leaves a direction "
    "out, a frequency of the embedding need not be used; k and p - k are one frequency.",
    reference="Nanda et al. 2023, arXiv 2301.05217; Zhou et al. 2024, arXiv 2406.03445",
)
def key_frequencies(
    model: Model, *, modulus: int | None = None, template: str | None = None, n_shuffles: int = 50, seed: int = 0
) -> Findings:
    """Share of the variance of all logits l(a, b, c) that waves cos, sin of 2 pi k (a + b - c) / p explain.

    The logits are less their mean over c for each pair a, b; the share is p^3 (|g_k|^2 / 2) / sum l^2 with amplitudes
    g_k = 2 / p^3 sum l e^(2 pi i k (a + b - c) / p). Variants, a row per frequency k = 1 to p // 2:
      logits     the above, with its interval over a;
      embedding  share of squared norm of W_E's rows of the numbers, `fourier_spectrum`, interval over channels;
      neurons    the same of each layer's neurons at the end of the prompt, along a for each b; `component` says the
                 layer, the interval is over neurons;
      total      one row: what all frequencies together explain of the logits.

    The null is the same with the numbers in a random order (in a, b and c alike), mean over `n_shuffles`; p is
    Student's prediction interval of these draws, q Benjamini-Hochberg over frequencies. A key frequency's
    label needs q < 0.01, and at least 1 % of the logits' variance, or for vectors 1.5 times an even spread over the
    frequencies.

    Args:
        model: any model of modular addition.
        modulus: p; found out by trying where it is not given (`interp.tasks.addition`).
        template: how a sum is asked for, likewise: "{a} {b} 113" in ids, "{a} + {b} =" in words.
        n_shuffles: random orders.
        seed: of orders, bootstrap, and the pairs on which a layout is tried.

    Raises:
        NotApplicable: the model does not add in any layout that was tried.
        TaskError: a modulus or template that is none.

    Reference: Nanda et al. 2023 (arXiv 2301.05217); P49 is Zhou et al. 2024 (arXiv 2406.03445).
    """
    layout = addition(model, modulus=modulus, template=template, seed=seed)
    layers = [i for i in range(model.info.n_layers) if model.writes(i).mlp is not None]
    sites = [Site("mlp_post", i) for i in layers]
    logits, acts = layout.table_with(model, sites)
    parts = [_logit_rows(logits, n_shuffles=n_shuffles, seed=seed)]
    embedding = fourier_spectrum(model.weights().w_e[layout.numbers], n_shuffles=n_shuffles, seed=seed)
    parts.append(_spectrum_rows("embedding", "W_E", embedding))
    for layer, site in zip(layers, sites, strict=True):
        neurons = acts[site].transpose(1, 2)  # a neuron b
        if float(neurons.var(0).sum()) > 0:
            spectrum = fourier_spectrum(neurons, n_shuffles=n_shuffles, seed=seed)
            parts.append(_spectrum_rows("neurons", mlp_name(layer), spectrum))
    table = pd.concat(parts, ignore_index=True)
    facts = {
        "task": "modular addition",
        "sha256": fingerprint([Batch.of(layout.prompts(*layout.pairs()))]),
        **layout.facts(),
    }
    facts["key_frequencies"] = key_list(table, "logits")
    (a, b), p = layout.pairs(), layout.modulus
    right = logits.argmax(2) == ((a + b) % p).view(p, p)
    ability = {"modular addition": Ability.of_counts(int(right.sum()), p * p, 1 / p, contrasted=True)}
    return Findings(table, facts, ability=ability)


def key_list(table: pd.DataFrame, variant: str) -> list[int]:
    """Labelled frequencies of a variant, strongest first."""
    rows = table[(table["variant"] == variant) & table["label"].fillna(False).astype(bool)]
    return [int(k) for k in rows.sort_values("value", ascending=False)["frequency"]]


def strong_frequencies(logits: Float[Tensor, "a b c"]) -> list[int]:
    """Frequencies that explain at least 1 % of the logits' variance, strongest first; the strongest at least."""
    p, centred = len(logits), (logits - logits.mean(2, keepdim=True)).double()
    share = _in_order(centred, torch.arange(p), _halves(p))
    return [int(k) + 1 for k in np.argsort(-share) if share[k] >= min(LEAST_SHARE, share.max())]


def wave_amplitudes(logits: Float[Tensor, "a b c"]) -> Complex[Tensor, "a frequency"]:
    """2 / p^2 sum over b, c of l(a, b, c) e^(2 pi i k (a + b - c) / p) for every a and k = 1 to p // 2; complex."""
    p = len(logits)
    by_distance = logits.gather(2, _answers(p)).sum(1).double()  # a d: over b, of c = a + b - d
    return 2 / p**2 * torch.fft.ifft(by_distance, dim=1)[:, 1 : p // 2 + 1] * p


def _answers(p: int) -> Int[Tensor, "a b d"]:
    """a + b - d modulo p."""
    every = torch.arange(p)
    return (every[:, None, None] + every[None, :, None] - every[None, None, :]) % p


def _logit_rows(logits: Float[Tensor, "a b c"], *, n_shuffles: int, seed: int) -> pd.DataFrame:
    """Rows of the logits: each frequency, and all together."""
    p, centred = len(logits), (logits - logits.mean(2, keepdim=True)).double()
    variance = centred.square().mean((1, 2)).numpy()  # of each a
    waves = wave_amplitudes(centred).numpy()
    half = _halves(p)
    share = _shares(np.full((1, p), 1 / p), waves, variance, half)[0]
    drawn = stats.bootstrap(lambda w: _shares(w, waves, variance, half), p, seed=seed, around=share)
    rng = np.random.default_rng(seed)
    null = np.stack([_in_order(centred, torch.tensor(rng.permutation(p)), half) for _ in range(n_shuffles)])
    total = _row("total", "all", float(share.sum()), null.sum(1)[:, None], p)
    drawn_total = stats.bootstrap(
        lambda w: _shares(w, waves, variance, half).sum(1), p, seed=seed, around=float(share.sum())
    )
    total |= {"ci_low": drawn_total.low, "ci_high": drawn_total.high, "se": drawn_total.se}
    rows = pd.DataFrame({"variant": "logits", "value": share, "se": drawn.se, "ci_low": drawn.low})
    rows["ci_high"] = drawn.high
    rows = _beside(rows, share, null, n=p, least=LEAST_SHARE)
    return pd.concat([rows, pd.DataFrame([total])], ignore_index=True)


def _halves(p: int) -> Float[ndarray, " frequency"]:
    """What the square of an amplitude is worth in variance."""
    half = np.full(p // 2, 0.5)
    if p % 2 == 0:
        half[-1] = 0.25  # the last frequency has a cosine alone, whose mean square is 1
    return half


def _shares(
    w: Float[ndarray, "draw a"], waves: ndarray, variance: Float[ndarray, " a"], half: Float[ndarray, " frequency"]
) -> Float[ndarray, "draw frequency"]:
    """Share of the variance under weights of the first operand."""
    return np.abs(w @ waves) ** 2 * half / np.maximum(w @ variance, 1e-300)[:, None]


def _in_order(centred: Tensor, order: Tensor, half: ndarray) -> Float[ndarray, " frequency"]:
    """The shares with the residues in another order, in operands and answers alike."""
    shuffled = centred[order][:, order][:, :, order]
    waves = wave_amplitudes(shuffled).mean(0).abs().square().numpy()
    return waves * half / float(centred.square().mean())


def _row(variant: str, component: str, value: float, null: Float[ndarray, "order 1"], n: int) -> dict[str, object]:
    """One row with its null, p and q."""
    p = float(stats.p_against_nulls(np.array([value]), null)[0])
    return {
        "variant": variant, "component": component, "value": value, "null": float(null.mean()), "p": p, "q": p, "n": n,
        "unit": "fraction of variance",
    }  # fmt: skip


def _beside(
    rows: pd.DataFrame,
    share: Float[ndarray, " frequency"],
    null: Float[ndarray, "order frequency"],
    *,
    n: int,
    least: float,
) -> pd.DataFrame:
    """Null, p, q, label and names beside shares."""
    p = stats.p_against_nulls(share, null)
    rows["null"], rows["p"], rows["q"] = null.mean(0), p, stats.benjamini_hochberg(p)
    rows["frequency"] = np.arange(1, len(share) + 1)
    rows["component"] = [f"frequency {k}" for k in rows["frequency"]]
    rows["label"] = (rows["q"] < LEVEL) & (share >= least)
    rows["n"], rows["unit"] = n, "fraction of variance"
    return rows


def _spectrum_rows(variant: str, component: str, spectrum: Spectrum) -> pd.DataFrame:
    """Rows of a spectrum of vectors."""
    share = spectrum.rows["value"].to_numpy(dtype=float)
    rows = spectrum.rows[["value", "ci_low", "ci_high"]].assign(variant=variant)
    n = int(spectrum.rows["n"].iloc[0])
    rows = _beside(rows, share, spectrum.orders, n=n, least=SPREAD / len(share))
    return rows.assign(component=[f"{component} frequency {k}" for k in rows["frequency"]])
