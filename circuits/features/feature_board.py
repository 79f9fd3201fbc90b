"""Edges of feature circuits judged on planted models, whose features are made of known other ones."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from circuits.features._feature_circuit import feature_circuit
from circuits.features.feature_edge_check import check_feature_edges
from circuits.features.node_graph import FeatureCircuit
from interp.dictionaries import Dictionaries, Dictionary, JumpReLU
from interp.loading.load import load
from interp.tasks import pair
from interp.zoo.planted.feature_chain import ANSWER, WRONG, FeatureChain, feature_chain

QUIET = 0.05
"""Threshold of planted features, whose strength is about 1."""


def planted_dictionaries(chain: FeatureChain) -> Dictionaries:
    """The planted directions, read by their pseudo-inverse, so that features of one site do not mix."""
    members = []
    for site, directions in chain.directions.items():
        zero, d = torch.zeros(len(directions)), directions.shape[1]
        encoder = torch.linalg.pinv(directions.double()).float()
        members.append(Dictionary(encoder, directions, zero, torch.zeros(d), JumpReLU(zero + QUIET)).at(site))
    return Dictionaries(tuple(members))


def judge_planted_edges(circuit: FeatureCircuit, chain: FeatureChain) -> dict[str, float]:
    """How |weights| rank the planted edges among all pairs of features that change, at an earlier and a later site.

    Pairs without an edge count as 0. Ends that do not change on the prompts are left out, planted or not.
    """
    features = circuit.nodes[circuit.nodes["feature"] >= 0]
    order = list(chain.directions)
    known = {
        (str(s), int(f)): str(n)
        for s, f, n in zip(features["site"], features["feature"], features["name"], strict=True)
    }
    weight = dict(
        zip(zip(circuit.edges["source"], circuit.edges["target"], strict=True), circuit.edges["weight"], strict=True)
    )
    planted = {(known[a], known[b]) for a, b in chain.edges if a in known and b in known}
    pairs = [(known[a], known[b]) for a in known for b in known if order.index(a[0]) < order.index(b[0])]
    true = np.array([p in planted for p in pairs])
    scores = np.array([abs(weight.get(p, 0.0)) for p in pairs])
    return {
        "auroc": float(roc_auc_score(true, scores)),
        "average_precision": float(average_precision_score(true, scores)),
        "planted": len(planted),
        "pairs": len(pairs),
    }


def feature_board(
    *,
    seeds: Sequence[int] = (0, 1, 2),
    attributions: Sequence[str] = ("ig", "atp"),
    n_prompts: int = 64,
    noise: float = 0.02,
    n_checked: int = 200,
) -> pd.DataFrame:
    """One row for each planted model and attribution: how edges are ranked, and what interventions say of them.

    Columns: auroc, average_precision, planted edges and pairs (`judge_planted_edges`); residual, the largest of the
    sums at sites over the metric's change; held, model, random: rank correlations of `check_feature_edges`;
    seconds of the circuit.
    """
    rows = []
    for seed in seeds:
        chain = feature_chain(seed=seed, noise=noise)
        model, dictionaries = load(chain.model), planted_dictionaries(chain)
        clean, corrupt = (x.tolist() for x in chain.prompts(n_prompts, seed=0))
        task = pair(model, clean, corrupt, ANSWER, WRONG, name="chain", corruption="tokens")
        for attribution in attributions:
            start = time.process_time()
            circuit = feature_circuit(
                model,
                task,
                dictionaries=dictionaries,
                attribution=attribution,
                n_nodes=None,
                n_edges=None,
                batch_size=n_prompts,
            )
            seconds = time.process_time() - start
            check = check_feature_edges(model, task, circuit, dictionaries=dictionaries, n=n_checked, seed=seed)
            rows.append(
                {
                    "seed": seed,
                    "attribution": attribution,
                    **judge_planted_edges(circuit, chain),
                    "residual": circuit.provenance["completeness_residual"] / abs(circuit.provenance["change"]),
                    "held": check.held,
                    "model": check.model,
                    "random": check.random,
                    "seconds": seconds,
                }
            )
    return pd.DataFrame(rows)
