"""All edge scores of one GPT-2-small shape, ours and TransformerLens's, on the same weights and prompts."""

from __future__ import annotations

import beartype  # noqa: F401  (before nnsight)

# isort: split
from collections.abc import Callable

import numpy as np
import torch
from providers import bridge_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from circuits.attribution.edge_gradients import edge_attribution
from circuits.graph.layout import Layout
from interp.tasks import PromptTask
from interp.tasks.prompt import collate

CHANGED = (3, 8, 11)
"""Positions at which a prompt differs from its twin."""
RIGHT, WRONG = 11, 7
LAYOUT = Layout(n_layers=12, n_heads=12, n_kv_heads=12)
Scores = np.ndarray
"""[sender slot]"""
PORTS = {"q_input": "q", "k_input": "k", "v_input": "v"}


def gpt2_small(attention: str = "sdpa") -> GPT2LMHeadModel:
    """GPT-2-small shape in float32 with random weights as they are initialised: sharper patterns amplify rounding."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(attn_implementation=attention)).eval()


def task(n: int, tokens: int) -> PromptTask:
    """Random prompts and twins that differ at three positions; judged by the difference of two logits at the end."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(50257, (n, tokens), generator=generator)
    corrupt = clean.clone()
    corrupt[:, list(CHANGED)] = torch.randint(50257, (n, len(CHANGED)), generator=generator)
    return collate(
        "random",
        list(zip(clean.tolist(), corrupt.tolist(), strict=True)),
        answers=[[RIGHT]] * n,
        wrong=[[WRONG]] * n,
        roles=[{}] * n,
        templates=["random"] * n,
        corruption="three tokens",
        metric="logit_diff",
    )


def ours(n: int, tokens: int, *, method: str = "eap") -> Callable[[], Scores]:
    """Ours on a loaded model: every call reads gradients anew, weights of attention only the first."""
    model, given = interp.load(gpt2_small()), task(n, tokens)
    return lambda: (
        edge_attribution(model, given, method=method, direction="denoising", batch_size=n, tolerance=None).mean
    )


def points(n: int, tokens: int) -> Callable[[], Scores]:
    """Integrated gradients with five midpoints."""
    return ours(n, tokens, method="eap-ig")


def first(n: int, tokens: int) -> Callable[[], Scores]:
    """Ours with a wrapper that has not read any weight yet."""
    module, given = gpt2_small(), task(n, tokens)
    return lambda: edge_attribution(interp.load(module), given, method="eap", direction="denoising", batch_size=n).mean


def transformer_lens(n: int, tokens: int) -> Callable[[], Scores]:
    """`attribution_patch` of a bridge with edge granularity, its scores summed over positions."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    module, given = gpt2_small("eager"), task(n, tokens)
    module.config.architectures = [type(module).__name__]
    bridge = TransformerBridge.boot_transformers(
        "local/none", hf_model=module, tokenizer=bridge_tokenizer(), device="cpu"
    )

    def difference(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, RIGHT] - logits[0, -1, WRONG]

    def run() -> Scores:
        found = attribution_patch(
            bridge, given.clean.ids, given.corrupt.ids, difference, EdgeAttributionConfig(granularity="edge")
        )
        return _summed(found.edge_scores)

    return run


def _summed(edges: dict) -> Scores:
    """Their edges by ours, positions summed."""
    scores = np.zeros(LAYOUT.exists.shape)
    places: dict[object, tuple[int, int]] = {}
    for (writer, reader), score in edges.items():
        key = (writer.kind, writer.layer, writer.head, reader.kind, reader.layer, reader.head)
        if key not in places:
            places[key] = LAYOUT.place((_sender(writer), *_slot(reader)))
        scores[places[key]] += score
    if len(places) != LAYOUT.n_edges:
        raise RuntimeError(f"{len(places)} edges of {LAYOUT.n_edges}")
    return scores


def _sender(node) -> str:
    return {"embed": "embed", "attn_head_out": f"L{node.layer}H{node.head}", "mlp_out": f"M{node.layer}"}[node.kind]


def _slot(node) -> tuple[str, str]:
    if node.kind == "logits":
        return "logits", "in"
    return (f"M{node.layer}", "in") if node.kind == "mlp_in" else (f"L{node.layer}H{node.head}", PORTS[node.kind])
