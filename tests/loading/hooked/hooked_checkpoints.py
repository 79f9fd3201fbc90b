"""Small random checkpoints in the HookedTransformer layout, and what one computes, written out with einsum.

Nothing here is shared with `interp.loading.hooked`: options are read as TransformerLens documents them.
"""

from __future__ import annotations

import json
import math

import torch
from safetensors.torch import save_file

SIZES = {"n_layers": 2, "n_heads": 4, "d_model": 16, "d_head": 6, "n_ctx": 12, "d_vocab": 19, "d_mlp": 20}
PLAIN = {**SIZES, "act_fn": "relu", "normalization_type": None}

VARIANTS = {
    "attention only": {"attn_only": True},
    "LN": {"normalization_type": "LN", "eps": 1e-3},
    "LNPre": {"normalization_type": "LNPre"},
    "RMS": {"normalization_type": "RMS"},
    "RMSPre": {"normalization_type": "RMSPre", "act_fn": "silu"},
    "final RMS": {"normalization_type": "LN", "final_rms": True},
    "norms after": {"normalization_type": "RMS", "use_normalization_before_and_after": True},
    "norm behind the embedding": {"normalization_type": "LN", "post_embedding_ln": True},
    "gelu": {"act_fn": "gelu"},
    "gelu_new": {"act_fn": "gelu_new"},
    "silu": {"act_fn": "silu"},
    "solu_ln": {"act_fn": "solu_ln", "normalization_type": "LN"},
    "solu_ln without gains": {"act_fn": "solu_ln", "normalization_type": "LNPre"},
    "gated": {"gated_mlp": True, "act_fn": "silu", "normalization_type": "RMS"},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4, "rotary_base": 100},
    "rotary, neighbours": {"positional_embedding_type": "rotary", "rotary_adjacent_pairs": True},
    "shortformer": {"positional_embedding_type": "shortformer", "normalization_type": "LN"},
    "no positions": {"positional_embedding_type": "none"},
    "both ways": {"attention_dir": "bidirectional", "normalization_type": "LN"},
    "grouped": {"n_key_value_heads": 2},
    "parallel": {"parallel_attn_mlp": True, "normalization_type": "LN"},
    "narrow": {"d_vocab_out": 7},
    "scale": {"attn_scale": 1.7},
    "no scale": {"use_attn_scale": False},
    "scale by layer": {"scale_attn_by_inverse_layer_idx": True},
    "local": {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]},
    "caps": {"attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 3.0},
    "coefficient": {"attn_coeff": 0.3, "attention_dir": "bidirectional"},
}


def options_of(variant: str) -> dict:
    """Options of a variant."""
    return {**PLAIN, **VARIANTS[variant]}


def shapes(o: dict) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the layout."""
    d, heads, d_head, mlp = o["d_model"], o["n_heads"], o["d_head"], o["d_mlp"]
    kv, norm, out = o.get("n_key_value_heads") or heads, o["normalization_type"], o.get("d_vocab_out") or o["d_vocab"]
    under = "_" if o.get("n_key_value_heads") else ""
    tensors = {"embed.W_E": (o["d_vocab"], d), "unembed.W_U": (d, out), "unembed.b_U": (out,)}
    if o.get("positional_embedding_type", "standard") in ("standard", "shortformer"):
        tensors["pos_embed.W_pos"] = (o["n_ctx"], d)
    if o.get("post_embedding_ln"):
        tensors |= {"embed.ln.w": (d,), "embed.ln.b": (d,)}
    norms = {"ln_final": "RMS" if o.get("final_rms") else norm} if norm in ("LN", "RMS") else {}
    for i in range(o["n_layers"]):
        at = f"blocks.{i}."
        tensors |= {f"{at}attn.W_Q": (heads, d, d_head), f"{at}attn.W_O": (heads, d_head, d), f"{at}attn.b_O": (d,)}
        tensors |= {f"{at}attn.{under}W_{n}": (kv, d, d_head) for n in "KV"}
        tensors |= {f"{at}attn.b_Q": (heads, d_head), **{f"{at}attn.{under}b_{n}": (kv, d_head) for n in "KV"}}
        if not o.get("attn_only"):
            tensors |= {f"{at}mlp.W_in": (d, mlp), f"{at}mlp.b_in": (mlp,)}
            tensors |= {f"{at}mlp.W_out": (mlp, d), f"{at}mlp.b_out": (d,)}
            tensors |= {f"{at}mlp.W_gate": (d, mlp)} if o.get("gated_mlp") else {}
            if o["act_fn"] == "solu_ln" and norm == "LN":
                tensors |= {f"{at}mlp.ln.w": (mlp,), f"{at}mlp.ln.b": (mlp,)}
        if norm in ("LN", "RMS"):
            places = ["ln1"] if o.get("attn_only") else ["ln1", "ln2"]
            places += [f"{p}_post" for p in places] if o.get("use_normalization_before_and_after") else []
            norms |= {at + place: norm for place in places}
    for name, kind in norms.items():
        tensors |= {f"{name}.w": (d,), **({f"{name}.b": (d,)} if kind == "LN" else {})}
    return tensors


def random_state(o: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors: patterns far from uniform, gains around one, no bias at zero (but those that a norm divides)."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes(o).items():
        x = torch.randn(shape, generator=generator)
        if name.endswith(".w"):
            state[name] = 1 + 0.3 * x
        elif len(shape) == 1 or ".b_" in name or "._b_" in name:
            state[name] = 0.3 * x
        elif name.startswith(("embed", "pos_embed")):
            state[name] = x
        else:
            gain = 0.5 if o["normalization_type"] is None else 1.5 if name[-1] in "QK" else 1.0
            state[name] = gain * x * shape[-2] ** -0.5
        if o.get("use_normalization_before_and_after") and name.endswith("attn.b_O"):
            state[name].zero_()
    return state


def save(folder, o: dict, state: dict[str, torch.Tensor] | None = None):
    """A folder with config and state dict."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(o))
    save_file(random_state(o) if state is None else state, folder / "model.safetensors")
    return folder


def logits(o: dict, s: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Logits [batch pos out] of prompts without padding, in float64."""
    s = {name: x.double() for name, x in s.items()}
    x, looks = s["embed.W_E"][ids], 0.0
    if o.get("post_embedding_ln"):
        x = norm("LN", x, s["embed.ln.w"], s["embed.ln.b"], o)
    kind = o.get("positional_embedding_type", "standard")
    if kind == "standard":
        x = x + s["pos_embed.W_pos"][: ids.shape[1]]
    if kind == "shortformer":
        looks = s["pos_embed.W_pos"][: ids.shape[1]]
    for i in range(o["n_layers"]):
        at = f"blocks.{i}."
        after = o.get("use_normalization_before_and_after")
        attn = attention(o, s, i, normed(o, s, at + "ln1", x), looks)
        attn = normed(o, s, at + "ln1_post", attn) if after else attn
        if o.get("attn_only"):
            x = x + attn
            continue
        mlp = neurons(o, s, at, normed(o, s, at + "ln2", x if o.get("parallel_attn_mlp") else x + attn))
        mlp = torch.einsum("bpn,nd->bpd", mlp, s[at + "mlp.W_out"]) + s[at + "mlp.b_out"]
        x = x + attn + (normed(o, s, at + "ln2_post", mlp) if after else mlp)
    x = normed(o, s, "ln_final", x, "RMS" if o.get("final_rms") else None)
    out = torch.einsum("bpd,dv->bpv", x, s["unembed.W_U"]) + s["unembed.b_U"]
    cap = o.get("output_logits_soft_cap", -1)
    return out if cap <= 0 else cap * (out / cap).tanh()


def attention(o, s, layer, x, looks):
    """What attention adds."""
    at = f"blocks.{layer}.attn."
    group = o["n_heads"] // (o.get("n_key_value_heads") or o["n_heads"])
    q = torch.einsum("bpd,hde->bhpe", x + looks, s[at + "W_Q"]) + s[at + "b_Q"][:, None]
    k, v = (
        torch.einsum("bpd,hde->bhpe", y, s.get(f"{at}W_{n}", s.get(f"{at}_W_{n}")))
        + s.get(f"{at}b_{n}", s.get(f"{at}_b_{n}"))[:, None]
        for n, y in (("K", x + looks), ("V", x))
    )
    if o.get("positional_embedding_type") == "rotary":
        q, k = rotated(o, q), rotated(o, k)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    divisor = o.get("attn_scale", math.sqrt(o["d_head"])) if o.get("use_attn_scale", True) else 1.0
    divisor = divisor * (layer + 1) if o.get("scale_attn_by_inverse_layer_idx") else divisor
    score = torch.einsum("bhqe,bhke->bhqk", q, k) / divisor
    cap = o.get("attn_scores_soft_cap", -1)
    score = score if cap <= 0 else cap * (score / cap).tanh()
    if o.get("attention_dir", "causal") == "causal":
        n = x.shape[1]
        see = torch.ones(n, n, dtype=torch.bool).tril()
        if o.get("use_local_attn") and o["attn_types"][layer] == "local":
            see = see.triu(1 - o["window_size"])
        score = score.masked_fill(~see, -torch.inf)
    weight = o.get("attn_coeff", 1.0) * score.softmax(-1) + (1 - o.get("attn_coeff", 1.0))
    return torch.einsum("bhqk,bhke,hed->bqd", weight, v, s[at + "W_O"]) + s[at + "b_O"]


def rotated(o, x):
    """Each pair of channels turned by position / base^(2 i / rotary_dim)."""
    turning = o.get("rotary_dim", o["d_head"])
    out = x.clone()
    for p in range(x.shape[2]):
        for i in range(turning // 2):
            a, b = (2 * i, 2 * i + 1) if o.get("rotary_adjacent_pairs") else (i, i + turning // 2)
            angle = p * o.get("rotary_base", 10000) ** (-2 * i / turning)
            out[:, :, p, a] = x[:, :, p, a] * math.cos(angle) - x[:, :, p, b] * math.sin(angle)
            out[:, :, p, b] = x[:, :, p, b] * math.cos(angle) + x[:, :, p, a] * math.sin(angle)
    return out


def normed(o, s, name, x, kind=None):
    """A norm of the config's kind."""
    kind = kind or o["normalization_type"]
    if kind is None:
        return x
    gains = o["normalization_type"] in ("LN", "RMS")
    w, b = (s[f"{name}.w"], s.get(f"{name}.b", 0.0)) if gains else (1.0, 0.0)
    return norm("LN" if kind.startswith("LN") else "RMS", x, w, b, o)


def norm(kind, x, w, b, o):
    """(x - mean) / sqrt(var + eps) w + b, or without the mean."""
    x = x - x.mean(-1, keepdim=True) if kind == "LN" else x
    return x / ((x**2).mean(-1, keepdim=True) + o.get("eps", 1e-5)).sqrt() * w + b


def neurons(o, s, at, x):
    """Neurons of an MLP."""
    name = o["act_fn"].removesuffix("_ln")
    act = {
        "relu": lambda y: y.clamp(min=0),
        "gelu": lambda y: y * (1 + torch.erf(y / math.sqrt(2))) / 2,
        "gelu_new": lambda y: y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))) / 2,
        "silu": lambda y: y / (1 + torch.exp(-y)),
        "solu": lambda y: y * torch.exp(y) / torch.exp(y).sum(-1, keepdim=True),
    }[name]
    into = torch.einsum("bpd,dn->bpn", x, s[at + "mlp.W_in"])
    if o.get("gated_mlp"):
        return act(torch.einsum("bpd,dn->bpn", x, s[at + "mlp.W_gate"])) * into + s[at + "mlp.b_in"]
    mid = act(into + s[at + "mlp.b_in"])
    if name == o["act_fn"]:
        return mid
    gains = o["normalization_type"] == "LN"
    return norm("LN", mid, s[at + "mlp.ln.w"] if gains else 1.0, s[at + "mlp.ln.b"] if gains else 0.0, o)
