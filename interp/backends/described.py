"""A model in words: its sizes and what is special about it, for a notebook and for the report."""

from __future__ import annotations

from html import escape

from interp.model import ModelInfo


def shape(info: ModelInfo) -> str:
    """The size of a model in a few words."""
    layers = f"{info.n_layers} layer{'s' * (info.n_layers != 1)}"
    if len(info.attention_layers) != info.n_layers:
        layers += f" ({len(info.attention_layers)} with attention)"
    return f"{layers} \u00d7 {info.n_heads} head{'s' * (info.n_heads != 1)}"


def model_facts(info: ModelInfo) -> dict[str, str]:
    """Everything known of the model, as terms and descriptions."""
    groups = "" if info.n_kv_heads == info.n_heads else f", {info.n_kv_heads} key-value heads"
    facts = {
        "Name": info.name,
        "Class": info.family,
        "Sizes": f"{shape(info)}{groups}; d_model {info.d_model}, d_head {info.d_head}, vocabulary {info.d_vocab}",
        "Context": "unlimited" if info.context is None else f"{info.context} tokens",
        "Weights": f"{info.dtype}, {_weights(info)}",
    }
    windows = sorted({w for w in info.windows if w is not None})
    if windows:
        covered = sum(w is not None for w in info.windows)
        facts["Sliding window"] = f"{', '.join(map(str, windows))} tokens in {covered} of {len(info.windows)} layers"
    if info.softcap is not None:
        facts["Soft-cap on scores"] = f"{info.softcap:g}"
    if info.sink_logits:
        facts["Sink logits"] = "yes: a learned extra slot in every softmax"
    return facts


def model_html(info: ModelInfo, *, backend: str) -> str:
    """What a notebook shows of a model: every fact as a row."""
    facts = {**model_facts(info), "Backend": backend}
    cells = "".join(
        f'<tr><th style="text-align: left">{escape(term)}</th><td style="text-align: left">{escape(fact)}</td></tr>'
        for term, fact in facts.items()
    )
    return f"<table>{cells}</table>"


def _weights(info: ModelInfo) -> str:
    if info.weights_sha256:
        return f"sha256 {info.weights_sha256}"
    return f"commit {info.commit}" if info.commit else "made in memory, or not hashed"
