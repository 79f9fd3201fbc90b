"""`interp sae graph`: files, streams and refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import torch
from dictionaries_made import random_dictionary

import interp
from circuits.features.graph_files import AttributionGraph
from interp.dictionaries import write_saelens
from interp.dictionaries.fit import prompts_of

PROMPT = "sun moon star rain sun moon star"
SMALL = ("--features", 24, "-k", 40, "--check", 12, "--batch", 8)


def fitted():
    """A transcoder of random encoder, its decoder fitted to what the MLP gives: the check on loading takes it."""
    model = interp.load("zoo:default")
    batch = prompts_of(model, None)
    run = model.run(batch, capture=["L2.mlp_in", "L2.mlp_out"])
    x, y = (run[site][batch.mask] for site in ("L2.mlp_in", "L2.mlp_out"))
    d = random_dictionary("L2.mlp_in", "L2.mlp_out", d_in=192, d_out=192, n=64)
    mean = y.mean(0)
    f = d.encode(x)
    w = torch.linalg.solve(f.mT @ f + 10 * torch.eye(64), f.mT @ (y - mean))
    return replace(d, w_dec=w, b_dec=mean)


def test_a_graph_of_the_shipped_model_and_its_files(run, tmp_path):
    code, out, err = run("sae", "graph", "zoo:default", "--prompt", PROMPT, "--out", tmp_path, *SMALL, "--heads")
    assert code == 0
    assert "edges checked by taking their source out: rank correlation 1.000 with attention" in out
    assert all(f"wrote {tmp_path / name}" in err for name in ("graph.json", "page.html", "edges.csv", "nodes.csv"))
    graph = AttributionGraph.load(tmp_path / "graph.json")
    assert graph.tokens[-1].strip() == "star" and graph.heads and graph.replacement > 0.999
    best = next(n for n in graph.nodes if n.kind == "logit")
    assert best.label.strip() == "rain"
    edges = pd.read_csv(tmp_path / "edges.csv")
    assert list(edges["source"]) == list(graph.table()["source"]) and edges["head"].notna().all()
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Attribution graph" in page and 'id="circuit"' in page


def test_a_dictionary_from_a_folder_and_refusals(run, tmp_path):
    write_saelens(fitted(), tmp_path / "sae")
    command = ("sae", "graph", "zoo:default", "--prompt", PROMPT, "--dictionary", tmp_path / "sae", *SMALL)
    code, out, err = run(*command, "--json", "--node", 1, "--edge", 1)
    assert code == 0, err
    kinds = {node["feature_type"] for node in json.loads(out)["nodes"]}
    assert kinds == {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}
    code, out, err = run("sae", "graph", "zoo:default", "--prompt", PROMPT, "--node", 0)
    assert (code, out) == (2, "") and "--node is a share of influence" in err
    (tmp_path / "file").write_text("")
    code, out, err = run("sae", "graph", "zoo:default", "--prompt", PROMPT, "--out", tmp_path / "file")
    assert (code, out) == (1, "") and "name a folder" in err
