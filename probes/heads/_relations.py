"""Roles read off parameters: which relation between words a head's OV implements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import binom
from torch import Tensor

from interp import data, tasks
from interp.batch import Batch
from interp.decompose.embeddings import effective_embedding
from interp.errors import NotApplicable
from interp.measurement.declaration import RECALL, Stage
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, THRESHOLD, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.figures import dots
from interp.sites import Site
from interp.tasks.spell import Speller

LEAST = 10
"""Fewer pairs than this are no relation."""
BARE = "{source}"

Pairs = Int[Tensor, "pair 2"]


@analysis(
    name="relations",
    family="roles",
    title="Relations in the weights",
    headline="static",
    unit="head and relation",
    order=50,
    needs="text",
    stage=Stage("relation", RECALL),
    figure=dots,
    quick={"dynamic": False},
    exemptions={
        "sample": "every pair is read: the seed is of intervals",
        "planted": "relations between words of a language, of which planted models have none",
    },
    columns={"label": "boolean", "relation": "str"},
    means="Attending to a word, the head raises the word that stands in this relation to it (its capital, its "
    "plural) into the k most raised of the vocabulary.",
    misleads="It is what a head would write if it looked there. Many heads hold a little of a relation, and a "
    "head can hold several. A map from single words knows no context: on relations that need it, static and "
    "dynamic scores part.",
    reference="Elhelo & Geva 2024, arXiv 2412.11965",
)
def relations(
    model: Model,
    *,
    pairs: Mapping[str, Sequence[Sequence[str]]] | None = None,
    k: int = 10,
    least: int = LEAST,
    dynamic: bool = True,
    seed: int = 0,
) -> Findings:
    """Relation score: share of pairs (s, t) with t among the k largest of e(s) OV_h W_U over the vocabulary.

    e(s) is W_E s for heads of layer 0, else s through layer 0, alone behind its BOS. Variants, a row per head and
    relation:
      static       the score, with null, p, q and label;
      suppression  t among the k smallest;
      dynamic      the same for v_h W_O W_U with the value v_h that the model has at s, alone and at the end of short
                   contexts: what the head writes if all its attention is on s.

    The null is k / d_vocab, p the binomial tail, q Benjamini-Hochberg over heads and relations. A label needs q < 0.01
    and a score >= 0.3. Provenance says how many pairs of each list are single tokens, and Pearson's r over heads of
    static with dynamic scores. "copy", each source with itself, is made of the others' sources; there k is 1.

    Args:
        model: any loaded model with a tokenizer.
        pairs: relation -> (source, target) words, in place of `datasets/relations`.
        k: how many of the vocabulary count; lowered to a twentieth of a small vocabulary.
        least: pairs of single tokens below which a relation is left out.
        dynamic: whether to run the contexts as well.
        seed: of the bootstrap over pairs.

    Raises:
        NotApplicable: no relation has enough pairs in this tokenizer.

    Reference: Elhelo & Geva 2024 (arXiv 2412.11965), section 3: e there leaves attention 0 out; k is theirs (10).
    """
    pairs_by_relation, templates, coverage = _token_pairs(model, pairs, least=least)
    k = max(1, min(k, model.info.d_vocab // 20))
    parts, agreement = [], {}
    for name, ids in pairs_by_relation.items():
        n_top = 1 if name == "copy" else k
        rank, low = _ranks(model, _static(model, ids[:, 0]), ids[:, 1])
        in_top = rank < n_top
        n, hits = len(ids), in_top.sum(0)
        p = binom.sf(hits - 1, n, n_top / model.info.d_vocab)
        share = stats.bootstrap_mean(in_top.astype(float), seed=seed)
        columns, null = interval_columns, n_top / model.info.d_vocab
        rows = [head_rows(model, "static", "fraction", **columns(share), null=null, p=p)]
        below = stats.bootstrap_mean((low < n_top).astype(float), seed=seed)
        rows.append(head_rows(model, "suppression", "fraction", **columns(below), null=null))
        if dynamic:
            live = stats.bootstrap_mean((_dynamic(model, ids, templates) < n_top).astype(float), seed=seed)
            rows.append(head_rows(model, "dynamic", "fraction", **columns(live), null=null))
            spread = min(share.mean.std(), live.mean.std())
            agreement[name] = float(np.corrcoef(share.mean.ravel(), live.mean.ravel())[0, 1]) if spread else None
        parts += [r.assign(relation=name) for r in rows]
    table = pd.concat(parts, ignore_index=True)
    static = table["variant"] == "static"
    table.loc[static, "q"] = stats.benjamini_hochberg(table.loc[static, "p"].to_numpy(dtype=float))
    table["label"] = pd.Series(pd.NA, index=table.index, dtype="boolean")
    strong = (table.loc[static, "q"] < LEVEL) & (table.loc[static, "value"] >= THRESHOLD)
    table.loc[static, "label"] = strong.astype("boolean")
    data = {"task": "relations", "k": k, "coverage": coverage, "static_dynamic_pearson": agreement}
    return Findings(table, data | {"sha256": tasks.fingerprint([Batch.of(ids) for ids in pairs_by_relation.values()])})


def _token_pairs(
    model: Model, pairs: Mapping[str, Sequence[Sequence[str]]] | None, *, least: int
) -> tuple[dict[str, Pairs], list[str], dict[str, list[int]]]:
    """Ids of the pairs of single tokens, templates that can be written, and [left, all] of each list."""
    speller = Speller(model, bos="none")
    dataset: Mapping[str, Any] = data.read_json(data.path("relations", "relations.json"))
    word_pairs = dataset["relations"] if pairs is None else pairs
    token_pairs, coverage = {}, {}
    for name, rows in word_pairs.items():
        source, target = ([_one(speller, row[i]) for row in rows] for i in (0, 1))
        id_pairs = [(s, t) for s, t in zip(source, target, strict=True) if s is not None and t is not None]
        coverage[name] = [len(id_pairs), len(rows)]
        if len(id_pairs) >= least:
            token_pairs[name] = torch.tensor(id_pairs)
    if not token_pairs:
        raise NotApplicable(f"no relation has {least} pairs of words that are one token each: {coverage}")
    if "copy" not in token_pairs:
        sources = torch.cat([ids[:, 0] for ids in token_pairs.values()]).unique()
        token_pairs["copy"] = torch.stack([sources, sources], 1)
    usable = [t for t in dataset["templates"] if speller.unknown not in speller.ids([t.format(source="").strip()])[0]]
    return token_pairs, [BARE, *usable], coverage


def _one(speller: Speller, word: str) -> int | None:
    tail = speller.tails("the", [" " + word])[0]
    return tail[0] if tail is not None and len(tail) == 1 else None


def _static(model: Model, ids: Int[Tensor, " pair"]) -> list[Float[Tensor, "head pair d_model"]]:
    """What each layer's heads write for tokens, biases left out."""
    w = model.weights()
    first = tasks.bos_id(model, "default")
    raw, deep = (effective_embedding(model, tokens=ids, variant=v, bos=first) for v in ("embed", "full"))
    maps = {layer: w.ov(layer, fold_norm=True) for layer in w.layers}
    return [((raw if layer == 0 else deep) @ ov.left) @ ov.right for layer, ov in maps.items()]


def _ranks(
    model: Model, writes: Sequence[Float[Tensor, "head pair d_model"]], target: Int[Tensor, " pair"]
) -> tuple[Int[np.ndarray, "pair layer head"], Int[np.ndarray, "pair layer head"]]:
    """How many tokens are raised more than the target, and how many less; ties count against it."""
    w = model.weights()
    above, below = [], []
    for layer in writes:
        up, down = [], []
        for head in layer:
            logits = w.unembed(head, fold_norm=True)
            own = logits.gather(1, target[:, None])
            up.append((logits >= own).sum(1) - 1)
            down.append((logits <= own).sum(1) - 1)
        above.append(torch.stack(up))
        below.append(torch.stack(down))
    high, low = (torch.stack(x).permute(2, 0, 1).numpy() for x in (above, below))
    return high, low


def _dynamic(model: Model, pairs: Pairs, templates: Sequence[str]) -> Int[np.ndarray, "prompt layer head"]:
    """Ranks of the targets behind the values that the model has at the source, over templates and pairs."""
    w = model.weights()
    speller = Speller(model, bos="default")
    ranks = []
    for template in templates:
        before = speller.ids([template.format(source="").strip()])[0] if template != BARE else ()
        rows = Batch.of([[*speller.start, *before, int(s)] for s in pairs[:, 0]])
        sites: dict[Site | str, Any] = {Site("v", layer): lambda x: x[:, -1].float().cpu() for layer in w.layers}
        acts = model.run(rows, capture=sites, stop=w.layers[-1]).acts
        writes = []
        for layer in w.layers:
            own = w[layer].folded()
            v = acts[Site("v", layer)].repeat_interleave(own.group, 1)  # pair head d_value
            writes.append(torch.einsum("phv,hvd->hpd", v, own.w_o))
        ranks.append(_ranks(model, writes, pairs[:, 1])[0])
    return np.concatenate(ranks)
