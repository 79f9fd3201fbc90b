"""Numbers by their last digit: is the residue there before a head reads it, can it be exchanged, who writes it?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from interp import data, tasks
from interp.batch import Batch
from interp.components import head_name, head_names
from interp.dictionaries import Dictionary
from interp.errors import NotApplicable, SchemaError, nearest
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, THRESHOLD, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.figures import dots
from probes.heads import ordinals as _ordinals
from probes.heads import residue_units as _units
from probes.heads import residues as _residues
from probes.heads._successor import BASE, EMBEDDINGS
from probes.heads.residue_units import Case, Units
from probes.heads.residues import Grid

BLOCKS = 2
"""Fewer whole decades than this leave none to learn from once one is held out."""


@analysis(
    name="successor_features",
    family="roles",
    title="Last digits of numbers",
    headline="arithmetic",
    unit="residue of numbers",
    order=45,
    needs="text",
    figure=dots,
    exemptions={
        "sample": "every number is read: the seed is of nulls and intervals",
        "planted": "numerals, of which planted models have none",
    },
    columns={"label": "boolean", "written": "float64"},
    means="The last digit is a direction of its own in what heads read, shared by all decades: taking f_3 from 23 and "
    "adding f_7 makes the head answer 28.",
    misleads="A head can count perfectly, with all last digits right, from numbers that share no digit: read the "
    "arithmetic, not `mod10` of the successor scores. A probe finds a digit that no head uses. Neurons are judged one "
    "at a time: where each fires for one number only, none is tuned to a digit, and together they write it.",
    reference="Gould et al. 2023, arXiv 2312.09230",
)
def successor_features(
    model: Model,
    *,
    numbers: Sequence[str] | None = None,
    embedding: str = "full",
    dictionary: Dictionary | None = None,
    base: int = BASE,
    n_permutations: int = 199,
    n_draws: int = 8,
    n_random: int = 5,
    seed: int = 0,
) -> Findings:
    """Feature arithmetic: share of (x, b) with argmax over numbers of W_U OV_h (e(x) - f_a + f_b) = x - a + b + 1.

    a = x mod 10, b another residue with b + 1 < 10; e(x) is what x is behind layer 0 (heads of layer 0: W_E); f_r is
    the mean of e over numbers of residue r in the other decades, less the mean over all residues. Only whole decades
    count, each the same. Variants:
      arithmetic  the share, one row per head; null, p, q and label;
      carry       the same for b = 9, where the next decade begins;
      digit       the last digit alone has to be right, (b + 1) mod 10;
      successor   share of numbers x themselves whose arg-max is x + 1, null one over the numbers;
      probe       one row per embedding (`full`, `ov_mlp0`, `ov_embed`, as in `successor`): accuracy of a linear probe
                  for the residue, fitted on all decades but the one asked about; null and p: labels permuted within
                  each decade;
      neuron      one row per neuron of MLP 0: share of its variance within decades that is between residues; null one
                  over the decades, p by the same permutations, q the share of them in which any neuron reaches it,
                  label q < 0.01; `written`: sd between residues of its mean activation, times the norm of what it
                  writes.
    With a dictionary, also:
      feature     the same, one row per feature of the dictionary: those labelled are features of the residue;
      dictionary  as `arithmetic`, f_r = sum_i (a_i(r) - mean a_i) d_i over the labelled features i: a_i(r) is the mean
                  of what i writes for numbers of residue r in the other decades, d_i its direction;
      dictionary_one  with one feature a residue, that with the largest (a_i(r) - mean a_i) |d_i|, as published.

    The null of the arithmetic is its mean over `n_draws` exchanges of names in which no f is called by its own, so what
    is added is as large; p is Student's prediction interval of these draws, for an excess of at most 0.05; q is
    Benjamini-Hochberg over heads; a label needs q < 0.01 and a share >= 0.3. Intervals resample decades.

    Interventions: the labelled neurons with the most `written`, 1, 2, 4, ... of them, held at their mean over numbers,
    beside `n_random` sets of others that write about as much: accuracy of the probe, and for the head that counts best,
    the share of numbers x with arg-max x + 1 and of those with its last digit. The labelled features likewise.

    Args:
        model: any loaded model with a tokenizer.
        numbers: words in counting order from 0, in place of "0" to "199".
        embedding: behind which heads and neurons are read: "full", "ov_mlp0" (attention 0 left out) or "ov_embed" (no
            neurons then).
        dictionary: an autoencoder or transcoder that writes at L0.mlp_out or L0.resid_post (at `embed` for "ov_embed").
        base: of the residues; another base than the numerals' own is a control.
        n_permutations: of labels, for probe and neurons; with fewer than 100 no neuron can be labelled.
        n_draws: exchanges of names, at least five.
        n_random: sets of neurons each set is compared with.
        seed: of all that is drawn.

    Raises:
        NotApplicable: no tokenizer, or fewer than two whole decades (20 numbers) that are one token each.
        SchemaError: an unknown embedding, or a dictionary that is none of it.

    Reference: Gould et al. 2023 (arXiv 2312.09230). Their features are those of a sparse autoencoder on
    `ov_mlp0`; class means, held-out decades and all nulls are ours.
    """
    if embedding not in EMBEDDINGS:
        raise SchemaError(f"unknown embedding {embedding!r}; {nearest(embedding, EMBEDDINGS)}")
    if dictionary is not None:
        _units.check_place(dictionary, embedding)
    case = _case(model, numbers, embedding, base)
    logits = case.logits()
    parts = [*_heads(case, logits, n_draws=n_draws, seed=seed), _probes(case, n_permutations, seed)]
    provenance, effects = _provenance(case, base, dictionary), []
    if obstacle := _no_neurons(case):
        provenance["neurons"] = obstacle
    else:
        units = _units.neurons(case)
        parts.append(units.rows(n_permutations=n_permutations, seed=seed))
        effects += _ablations(case, logits, units, _units.tuned(parts[-1]), n_random=n_random, seed=seed)
        provenance["counts_best"] = head_name(*_best(case, logits)[1:])
    if dictionary is not None:
        rows, more = _features(case, logits, dictionary, n_permutations, n_draws, n_random, seed)
        parts, effects = [*parts, *rows], [*effects, *more]
    return Findings(pd.concat(parts, ignore_index=True), provenance, effects)


def _provenance(case: Case, base: int, dictionary: Dictionary | None) -> dict[str, object]:
    own: dict[str, object] = {
        "task": "numbers",
        "sha256": tasks.fingerprint([Batch.of(case.numbers.ids[None])]),
        "numbers": [len(case.numbers.ids), case.numbers.size],
        "blocks": len(case.grid.at),
        "base": base,
        "embedding": case.name,
    }
    if dictionary is not None:
        own["dictionary"] = repr(dictionary)[1:-1]
    return own


def _no_neurons(case: Case) -> str:
    """Why neurons of MLP 0 are not asked about; empty where they are."""
    if case.name == "ov_embed":
        return "not asked about: W_E is not behind MLP 0"
    if case.model.writes(0).mlp is None:
        return f"layer 0 has none that can be told apart: {dict(case.model.writes(0).missing)}"
    return ""


def _case(model: Model, numbers: Sequence[str] | None, name: str, base: int) -> Case:
    default_numbers = data.read_json(data.path("ordinals", "classes.json"))["classes"]["numbers"]["members"]
    (ordinal,), _ = _ordinals.find(model, {"numbers": list(default_numbers if numbers is None else numbers)})
    grid = Grid.of(ordinal.rank, base)
    if len(grid.at) < BLOCKS:
        raise NotApplicable(
            f"{len(ordinal.ids)} of {ordinal.size} numbers are one token each, and {len(grid.at)} blocks of {base} are "
            f"whole; at least {BLOCKS} blocks ({BLOCKS * base} numbers) are needed"
        )
    first = tasks.bos_id(model, "default")
    if first is None and getattr(model.tokenizer, "bos_token_id", None) is not None:
        first = tasks.bos_id(model, "forced")
    return Case(model, ordinal, grid, name, first)


def _heads(
    case: Case, logits: Sequence[Float[np.ndarray, "head block residue member"]], *, n_draws: int, seed: int
) -> list[pd.DataFrame]:
    """Rows of arithmetic, carry, digit and successor."""
    base = case.grid.at.shape[1]
    own = _arithmetic(case, logits, np.arange(base))
    nulls = [_arithmetic(case, logits, names) for names in _residues.derangements(base, n=n_draws, seed=seed)]
    successor_shares = np.stack([_counts(case, layer).mean(-1).T for layer in logits], 1)  # block layer head
    parts = [_row(case, "successor", successor_shares, seed=seed)]
    return [*_scored(case, own, nulls, "arithmetic", seed=seed), *parts]


def _scored(
    case: Case,
    own: dict[str, Float[np.ndarray, "block layer head"]],
    nulls: Sequence[dict[str, Float[np.ndarray, "block layer head"]]],
    judged: str,
    *,
    seed: int,
) -> list[pd.DataFrame]:
    """Rows of each share with the mean of its nulls; p, q and label of the one that is judged."""
    parts = []
    for name, every in own.items():
        if np.isnan(every).any((1, 2)).all():
            continue
        null = np.stack([np.nanmean(d[name], 0) for d in nulls])
        parts.append(_row(case, name, every, null, judged=name == judged, seed=seed))
    return parts


def _row(
    case: Case,
    name: str,
    every: Float[np.ndarray, "block layer head"],
    null: Float[np.ndarray, "draw layer head"] | None = None,
    *,
    judged: bool = False,
    seed: int,
) -> pd.DataFrame:
    """A row for each head. Without draws the null is one over the numbers."""
    value = every[~np.isnan(every).any((1, 2))]  # the last decade has nothing to carry to
    interval = stats.bootstrap_mean(value, seed=seed)
    more: dict[str, object] = {"null": 1 / len(case.numbers.ids) if null is None else null.mean(0)}
    if judged and null is not None:
        p = stats.p_against_nulls(interval.mean, null, margin=MARGIN)
        q = stats.benjamini_hochberg(p)
        more |= {"p": p, "q": q, "label": (q < LEVEL) & (interval.mean >= THRESHOLD)}
    rows = head_rows(case.model, name, "fraction", **interval_columns(interval), **more)
    rows["component"] = head_names(zip(rows["layer"], rows["head"], strict=True))
    return rows


def _arithmetic(
    case: Case,
    logits: Sequence[Float[np.ndarray, "head block residue member"]],
    names: Int[np.ndarray, " residue"],
    features: Sequence[Float[np.ndarray, "head block residue member"]] | None = None,
) -> dict[str, Float[np.ndarray, "block layer head"]]:
    """Shares by name, with features of the numbers' own logits, or with logits of others, layer by layer."""
    own = [None] * len(logits) if features is None else features
    layers = [
        _residues.arithmetic(_residues.shifted(layer, names, f), case.grid)
        for layer, f in zip(logits, own, strict=True)
    ]
    return {name: np.stack([layer[name] for layer in layers], 1) for name in layers[0]}


def _counts(case: Case, logits: Float[np.ndarray, "head block residue member"], *, digit: bool = False) -> np.ndarray:
    """[head block residue]: whether the arg-max for a number is the next one, or ends like it."""
    argmax, base = logits.argmax(-1), case.grid.at.shape[1]
    if digit:
        return case.grid.rank[argmax] % base == (np.arange(base) + 1) % base
    return argmax == case.grid.after


def _probes(case: Case, n: int, seed: int) -> pd.DataFrame:
    rows = []
    for name in EMBEDDINGS:
        x = case.embedding(name).numpy()[case.grid.at]
        hits, null = _residues.probe(x, n_permutations=n, seed=seed)
        interval = interval_columns(stats.bootstrap_mean(hits.mean(1), seed=seed))
        p = (1 + (null >= hits.mean()).sum()) / (1 + len(null))
        rows.append(
            {"variant": "probe", "unit": "accuracy", "component": name, **interval, "null": null.mean(), "p": p}
        )
    return pd.DataFrame(rows)


def _features(
    case: Case,
    logits: Sequence[Float[np.ndarray, "head block residue member"]],
    dictionary: Dictionary,
    n_permutations: int,
    n_draws: int,
    n_random: int,
    seed: int,
) -> tuple[list[pd.DataFrame], list[dict[str, object]]]:
    """Rows of a dictionary's features and of the arithmetic with them, and of their ablation."""
    units = _units.features(case, dictionary)
    parts = [units.rows(n_permutations=n_permutations, seed=seed)]
    chosen = _units.tuned(parts[0])
    base = case.grid.at.shape[1]
    for name, x in _units.directions(units, dictionary, chosen).items():
        f = case.direction_logits(x)
        orders = [np.arange(base), *_residues.derangements(base, n=n_draws, seed=seed)]
        own, *nulls = ({name: _arithmetic(case, logits, order, f)["arithmetic"]} for order in orders)
        parts += _scored(case, own, nulls, name, seed=seed)
    return parts, _ablations(case, logits, units, chosen, n_random=n_random, seed=seed)


def _best(case: Case, logits: Sequence[Float[np.ndarray, "head block residue member"]]) -> tuple[int, int, int]:
    """The head that counts best: place of its layer among those with heads, layer, head."""
    counts = np.stack([_counts(case, layer).mean((1, 2)) for layer in logits])
    row, head = (int(i) for i in np.unravel_index(counts.argmax(), counts.shape))
    return row, case.model.info.attention_layers[row], head


def _ablations(
    case: Case,
    logits: Sequence[Float[np.ndarray, "head block residue member"]],
    units: Units,
    tuned: Int[np.ndarray, " k"],
    *,
    n_random: int,
    seed: int,
) -> list[dict[str, object]]:
    """What is left with 1, 2, 4, ... of the tuned units at their mean, beside others that write about as much."""
    _, layer, head = _best(case, logits)
    left, right = (factor[head : head + 1] for factor in case.heads(layer))
    layer0_embedding = case.embedding("ov_embed") if layer == 0 else None

    def measure(chosen: Int[np.ndarray, " k"]) -> dict[str, float]:
        deep = case.embedding(case.name, [units.at_mean(chosen)] if len(chosen) else [])
        own = ((deep if layer0_embedding is None else layer0_embedding) @ left @ right).numpy()[:, case.grid.at]
        x = deep.numpy()[case.grid.at]
        return {
            "successor_share": float(_counts(case, own).mean()),
            "digit_share": float(_counts(case, own, digit=True).mean()),
            "probe_accuracy": float(_residues.probe(x, n_permutations=0, seed=seed)[0].mean()),
        }

    clean, effects = measure(np.array([], dtype=np.int64)) if len(tuned) else {}, []
    for k in sorted({2**i for i in range(len(tuned).bit_length())} | ({len(tuned)} if len(tuned) else set())):
        edited = measure(tuned[:k])
        random = [measure(s) for s in _residues.matched_sets(units.spread, tuned[:k], n=n_random, seed=seed)]
        effects += [
            {
                "set_id": f"mean: {k} most tuned {units.kind}s of {units.place}",
                "k": k,
                "control": f"others of {units.place} that write as much" if random else "none",
                "metric": metric,
                "clean": value,
                "edited": edited[metric],
                "random_mean": np.mean([r[metric] for r in random]) if random else None,
                "random_sd": np.std([r[metric] for r in random], ddof=1) if len(random) > 1 else None,
                "n_random": len(random),
            }
            for metric, value in clean.items()
        ]
    return effects
