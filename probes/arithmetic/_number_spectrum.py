"""Waves over the numbers 0 to N: spectra of embeddings, hidden activations and logits in the order of the numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batch import Batch
from interp.errors import NotApplicable, SchemaError
from interp.measurement.fourier import fourier_spectrum
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL
from interp.model import Model
from interp.results import stats
from interp.sites import Site
from interp.tasks import PromptTask, bos_id, fingerprint
from interp.tasks.metrics import answer_logits
from probes.arithmetic._key_frequencies import spectrum_figure
from probes.arithmetic.numbers import LEAST, number_ids


@analysis(
    name="number_spectrum",
    family="arithmetic",
    title="Spectra over numbers",
    headline="frequency",
    unit="frequency",
    order=62,
    figure=spectrum_figure,
    subject="zoo:modular-addition",
    columns={"site": "str", "frequency": "Int64", "period": "float64", "label": "boolean"},
    presumes=(),
    quick={"n_shuffles": 25},
    exemptions={
        "sample": "every number is read: the seed is of nulls and intervals",
        "planted": "numbers, of which planted models have none; tests write waves into an embedding",
    },
    means="Numbers that differ by the period are alike there: a spike at period 10 is the last digit, at 2 the parity, "
    "and at low frequencies the size.",
    misleads="A line that is no cycle has its share at the lowest frequencies whatever it is (`detrend` takes a "
    "straight one out), and a period that does not divide the number of tokens leaks into the next. A wave that is "
    "there need not be used: patch it (`helix`).",
    reference="Zhou et al. 2024, arXiv 2406.03445",
)
def number_spectrum(
    model: Model,
    *,
    task: PromptTask | None = None,
    n_numbers: int | None = None,
    detrend: bool = False,
    top: int = 5,
    n_shuffles: int = 100,
    seed: int = 0,
) -> Findings:
    """Share of squared norm at frequency k, |c_k|^2 + |s_k|^2 over the sum for all k > 0, of vectors of 0 to N - 1.

    The numbers are those of the vocabulary that are one token each, from 0 on without a gap; without a tokenizer, the
    residues of a modular adder. Vectors are their rows of W_E, the stream behind each layer (the number alone, behind a
    beginning of text where the tokenizer puts one), their columns of W_U, and with a `task` the logits of the numbers
    at its END, a column per prompt. Variants:
      frequency  a row per place (`site`: "W_E", "L0.resid_post", "W_U", "logits") and frequency, `period` N / k;
                 interval over channels or prompts; null: random orders of the numbers; p Student's prediction interval
                 of these draws; q Benjamini-Hochberg over the frequencies of a place; a label needs q < 0.01;
      top        a row per place: the `top` strongest frequencies together, null that of the strongest of random orders;
                 interval over channels or prompts.

    Args:
        model: any model.
        task: whose logits are looked at as well.
        n_numbers: N; all that are there if not given. A multiple of 10 has periods 2, 5 and 10 exactly.
        detrend: take a straight line over the numbers out of every channel first.
        top: frequencies that are counted together.
        n_shuffles: random orders, 5 at least.
        seed: of the orders and the bootstrap.

    Raises:
        NotApplicable: fewer than eight numbers of one token each.
        SchemaError: more numbers asked for than there are.

    Reference: Zhou et al. 2024 (arXiv 2406.03445); Nanda et al. 2023 (arXiv 2301.05217).
    """
    ids = number_ids(model)
    if n_numbers is not None and not LEAST <= n_numbers <= len(ids):
        raise SchemaError(f"n_numbers {n_numbers}: from {LEAST} to {len(ids)}, the numbers of one token each")
    ids = ids[:n_numbers]
    parts = []
    for site, x in _vectors(model, ids, task).items():
        parts.append(_rows(site, _detrended(x) if detrend else x, top, n_shuffles, seed))
    rows = pd.concat(parts, ignore_index=True).sort_values("variant", kind="stable", ignore_index=True)
    facts: dict[str, object] = {"task": "numbers", "n_numbers": len(ids), "sha256": fingerprint([Batch.of(ids[None])])}
    if task is None:
        return Findings(rows, facts)
    return Findings(rows, facts | {"prompts": task.provenance()}, ability=task)


@torch.no_grad()
def _vectors(
    model: Model, ids: Int[Tensor, " number"], task: PromptTask | None
) -> dict[str, Float[Tensor, "number d"]]:
    """Vectors of the numbers by place; places at which they are all the same are left out."""
    first = bos_id(model, "default")
    prompts = ids[:, None] if first is None else torch.stack([torch.full_like(ids, first), ids], 1)
    sites = [Site("resid_post", i) for i in range(model.info.n_layers)]
    weights = model.weights()
    vectors = {"W_E": weights.w_e[ids]}
    run = model.run(Batch.of(prompts), capture={s: lambda x: x[:, -1].float().cpu() for s in sites})
    vectors |= {str(site): run[site] for site in sites}
    if model.info.n_logits != 0:
        vectors["W_U"] = weights.source.columns(ids)
    if task is not None:
        logits = model.run(task.clean).logits
        if logits is None:
            raise NotApplicable("the model has no logits")
        at_end = answer_logits(logits, task).float().cpu()[:, ids]
        vectors["logits"] = (at_end - at_end.mean(1, keepdim=True)).T
    return {name: x for name, x in vectors.items() if float(x.float().std(0).max()) > 0}


def _detrended(x: Float[Tensor, "number d"]) -> Float[Tensor, "number d"]:
    """Less a straight line over the numbers, and the mean."""
    line = torch.arange(len(x), dtype=torch.float64)
    line = (line - line.mean()) / (line - line.mean()).norm()
    x = x.double() - x.double().mean(0)
    return x - line[:, None] * (line @ x)


def _rows(site: str, x: Float[Tensor, "number d"], top: int, n_shuffles: int, seed: int) -> pd.DataFrame:
    spectrum = fourier_spectrum(x, n_shuffles=n_shuffles, seed=seed)
    rows = spectrum.rows.drop(columns="null_high")
    rows["p"] = stats.p_against_nulls(rows["value"].to_numpy(dtype=float), spectrum.orders)
    rows["q"] = stats.benjamini_hochberg(rows["p"].to_numpy(dtype=float))
    rows = rows.assign(variant="frequency", site=site, period=len(x) / rows["frequency"], label=rows["q"] < LEVEL)
    rows["se"] = (rows["ci_high"] - rows["ci_low"]) / (2 * 1.96)
    rows["component"] = [f"{site} frequency {k}" for k in rows["frequency"]]
    value, draws, null = spectrum.top(top)
    low, high = np.quantile(draws, [0.025, 0.975])
    p = float(stats.p_against_nulls(np.array([value]), null[:, None])[0])
    whole = {"variant": "top", "site": site, "component": f"{site} top {top}", "value": value, "null": null.mean()}
    whole |= {
        "se": draws.std(ddof=1),
        "ci_low": min(low, value),
        "ci_high": max(high, value),
        "p": p,
        "q": p,
        "n": int(rows["n"].iloc[0]),
        "unit": "fraction",
        "label": p < LEVEL,
    }
    return pd.concat([rows, pd.DataFrame([whole])], ignore_index=True)
