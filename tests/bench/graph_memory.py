"""Memory of an attribution graph against the length of its prompt, at a fixed number of feature nodes.

`python tests/bench/graph_memory.py` adds rows to results/graph_memory.csv. Each length is a process of its own, whose
largest resident size is taken; that of loading is in it. Beside it stand the bytes that the graph itself keeps, and
those of a dense adjacency over the same nodes (features, errors, tokens, logits; float32).

The model is random. Its MLPs are ReLUs of which few are active, and these are the features, so that there is no error:
errors and tokens, one of each for a place, would be the strongest sources of all, and no 7,500 features be reached.
"""

from __future__ import annotations

import beartype  # noqa: F401  (before nnsight)

# isort: split
import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

LENGTHS = (256, 512, 1024, 2048, 4096, 6000)
TARGET = Path(__file__).parent / "results" / "graph_memory.csv"
D, WIDTH, LAYERS = 32, 256, 3
THRESHOLD = -1.15  # bias of neurons: an eighth of them is active
QUERIES = 3.0


def sparse_model() -> tuple[object, object]:
    """A random model (OPT) whose MLPs have few active neurons at a token, and these as transcoders."""
    import transformers

    import interp
    from interp.dictionaries import Dictionaries, Dictionary

    g = torch.Generator().manual_seed(0)
    sizes = {"hidden_size": D, "ffn_dim": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 1}
    config = transformers.OPTConfig(vocab_size=256, max_position_embeddings=8192, word_embed_proj_dim=D, **sizes)
    config._attn_implementation = "sdpa"
    module = transformers.OPTForCausalLM(config).eval()
    members = []
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=g) * p.shape[1] ** -0.5)
        for i, layer in enumerate(module.model.decoder.layers):
            layer.self_attn.q_proj.weight *= QUERIES
            layer.fc1.bias.fill_(THRESHOLD)
            w = (layer.fc1.weight.mT, layer.fc2.weight.mT, layer.fc1.bias, layer.fc2.bias)
            members.append(Dictionary(*(x.detach() for x in w)).at(f"L{i}.mlp_in", f"L{i}.mlp_out"))
    return interp.load(module), Dictionaries(tuple(members))


def measure(n: int, nodes: int, k: int, batch: int) -> dict[str, float]:
    """One graph, in this process."""
    from circuits.features.attribute import attribution_graph

    model, dictionaries = sparse_model()
    ids = torch.randint(256, (1, n), generator=torch.Generator().manual_seed(1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    graph = attribution_graph(
        model,
        ids,
        dictionaries,
        max_features=nodes,
        k=k,
        batch=batch,
        node=None,
    )
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    dense = (int(graph.mask("feature").sum()) + (LAYERS + 1) * n + int(graph.mask("logit").sum())) ** 2 * 4
    return {
        "tokens": n,
        "active": graph.provenance["n_active"],
        "feature_nodes": int(graph.mask("feature").sum()),
        "k": k,
        "batch": batch,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_mib": round(rss, 1),
        "loaded_mib": round(before, 1),
        "graph_mib": round(graph.edges.nbytes / 2**20, 2),
        "dense_mib": round(dense / 2**20, 1),
        "influence_kept": round(graph.kept, 4),
    }


def main() -> None:
    """Each length in a process; rows as they come."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--nodes", type=int, default=7500)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--one", type=int, help="measure this length here, and print it")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.nodes, options.k, options.batch)))
        return
    for n in options.lengths:
        command = [sys.executable, __file__, "--one", n, "--nodes", options.nodes, "--k", options.k]
        out = subprocess.run(
            [*map(str, command), "--batch", str(options.batch)], capture_output=True, text=True, check=True
        ).stdout
        row = json.loads(out.splitlines()[-1])
        print(row, flush=True)
        new = not options.out.exists()
        with options.out.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
