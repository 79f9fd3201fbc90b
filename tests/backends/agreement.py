"""The same tiny models on every backend, and how far their sites are apart.

python tests/backends/agreement.py        writes docs/reference/backends.md
"""

from __future__ import annotations

import beartype  # noqa: F401  (before nnsight)

# isort: split
import importlib.util
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

if __name__ == "__main__":
    models = Path(__file__).parents[1] / "models.py"
    spec = importlib.util.spec_from_file_location("tiny_models", models)
    sys.modules["tiny_models"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

from tiny_models import _NO_TOKENS, ARCHITECTURES, CONFIGS, D_MODEL, D_VOCAB, N_HEADS, N_LAYERS, build, ragged

import interp
from interp.sites import SQUARE

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "backends.md"
CONTEXT = 64
_OLD = {"vocab_size": D_VOCAB, "n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, **_NO_TOKENS}
_NEO = {"vocab_size": D_VOCAB, "hidden_size": D_MODEL, "num_layers": N_LAYERS, "num_heads": N_HEADS, **_NO_TOKENS}
_BLOOM = {"vocab_size": D_VOCAB, "hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, **_NO_TOKENS}
_MPT = {"vocab_size": D_VOCAB, "d_model": D_MODEL, "n_layers": N_LAYERS, "n_heads": N_HEADS, "max_seq_len": CONTEXT}
_FALCON = {"vocab_size": D_VOCAB, "hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS}
OUTSIDE = {  # architectures that do not follow transformers' attention interface
    "gptj": ("GPTJConfig", {**_OLD, "n_positions": CONTEXT, "rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            **_NEO,
            "max_position_embeddings": CONTEXT,
            "attention_types": [[["global", "local"], N_LAYERS // 2]],
            "window_size": 5,
        },
    ),
    "bloom": ("BloomConfig", _BLOOM),
    "codegen": ("CodeGenConfig", {**_OLD, "n_positions": CONTEXT, "rotary_dim": 4}),
    "falcon": ("FalconConfig", {**_FALCON, **_NO_TOKENS}),
    "mpt": ("MptConfig", {**_MPT, **_NO_TOKENS}),
}
CONFIGS.update(OUTSIDE)
SITES = (
    "embed",
    "token_embed",
    "pos_embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_in",
    "q",
    "k",
    "v",
    "scores",
    "pattern",
    "z",
    "head_out",
    "attn_out",
    "mlp_in",
    "router_logits",
    "mlp_pre",
    "mlp_up",
    "mlp_post",
    "mlp_out",
    f"L0-{N_LAYERS - 1}.norm_scale",
    "norm_scale",
    "mlp_norm_scale",
    "attn_out_norm_scale",
    "mlp_out_norm_scale",
    "unembed_in",
    "logits",
)


@cache
def on(backend: str, name: str) -> interp.Model:
    """The shared model of one architecture on one backend."""
    return interp.load(build(name), backend=backend)


def capture(model: interp.Model, site: str, tokens) -> dict | str:
    """Activations of a site by its key, or why there is none."""
    try:
        return model.run(tokens, capture=[site]).acts
    except interp.InterpError as error:
        return str(error)


def difference(ours: dict, theirs: dict, mask) -> float:
    """Largest difference at real tokens, in units of the largest value at the site (1 if that is smaller)."""
    found = []
    for site, x in ours.items():
        real = mask[:, None, :, None] if site.kind in SQUARE else mask.view(*mask.shape, *(1,) * (x.ndim - 2))
        y, seen = theirs[site], x.isfinite()  # scores of keys that are not visible are -inf
        assert torch.equal(seen, y.isfinite()), site
        a, b = x.where(seen, 0.0) * real, y.where(seen, 0.0) * real
        found.append(float((a - b).abs().max()) / max(1.0, float(a.abs().max())))
    return max(found)


def differences(name: str, tokens) -> dict[str, dict[str, float | None]]:
    """Site -> backend -> difference from `hf`; None where neither has the site.

    Raises:
        AssertionError: one backend has a site that another lacks.
    """
    ours = {site: capture(on("hf", name), site, tokens) for site in SITES}
    exist = [site for site, found in ours.items() if not isinstance(found, str)]
    table: dict[str, dict[str, float | None]] = {site: {} for site in SITES}
    for backend in ("lens", "nnsight"):
        sinks = backend == "lens" and on(backend, name).info.sink_logits
        theirs = on(backend, name).run(tokens, capture=[s for s in exist if not (sinks and s == "scores")]).acts
        for site in SITES:
            if sinks and site == "scores":
                assert "sink logits" in str(capture(on(backend, name), site, tokens))
                table[site][backend] = None
                continue
            known = site in exist
            assert known or isinstance(capture(on(backend, name), site, tokens), str), (name, site, backend)
            table[site][backend] = difference(ours[site], theirs, tokens.mask) if known else None
    return table


def page() -> str:
    """docs/reference/backends.md."""
    tokens = ragged(12, "unpadded")
    found = {name: differences(name, tokens) for name in ARCHITECTURES}
    head = " | ".join(ARCHITECTURES)
    lines = [f"| site | backend | {head} |", "|---|---|" + "---|" * len(ARCHITECTURES)]
    for site in SITES:
        for backend in ("lens", "nnsight"):
            cells = (_cell(found[name][site][backend]) for name in ARCHITECTURES)
            lines.append(f"| `{site}` | {backend} | {' | '.join(cells)} |")
    outside = [f"| {name} | {_own(name, tokens):.0e} |" for name in OUTSIDE]
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "transformer-lens", "nnsight"))
    return _PAGE.format(table="\n".join(lines), outside="\n".join(outside), packages=packages)


def _own(name: str, tokens) -> float:
    """How far the bridge's logits are from those of transformers' own forward pass."""
    with torch.no_grad():
        own = build(name)(tokens.ids).logits
    return float((on("lens", name).run(tokens).logits - own).abs().max())


def _cell(apart: float | None) -> str:
    if apart is None:
        return "none"
    return "0" if apart == 0 else f"{apart:.0e}"


_PAGE = """# Backends

Generated by `python tests/backends/agreement.py` ({packages}); do not edit.

| | `hf` | `lens` | `nnsight` |
|---|---|---|---|
| takes | hub id, folder, `zoo:NAME`, transformers model | the same with `backend="lens"`, or a `TransformerBridge` | \
the same with `backend="nnsight"`, or a `TransformersModel` or `NNsight` wrapper |
| architectures | those of transformers' attention interface | those TransformerLens bridges | as `hf` |
| attention statistics | O(n) memory | dense patterns, n x n per head | O(n) memory |
| the model | hooks while it runs, untouched otherwise | a bridge replaces submodules; a model of yours is copied | \
traces; hooks for `generate` and `editing` |

## How far apart the sites are

Largest difference from `hf` at any layer, head and token, in units of the largest value of the site (1 where that is
smaller); tiny random models, float32, CPU. `none`: the architecture has no such site, on any backend; but for `scores`
with sink logits (gpt_oss), which `lens` refuses: its softmax takes them less the largest of their row.

{table}

## Architectures outside the attention interface

Through `lens` alone; largest difference of the logits from transformers' own forward pass.

| architecture | logits |
|---|---|
{outside}
"""

if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
