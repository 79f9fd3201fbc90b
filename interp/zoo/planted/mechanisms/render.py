"""Rendering of a sketch as a `transformers` model: the architecture's layout of weights, norms that cancel."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from interp.zoo.planted.mechanisms.planted_vocabulary import Vocabulary
from interp.zoo.planted.mechanisms.sketch import ROPE_PLANES, ROPE_THETA, Sketch
from interp.zoo.trained.tokenizer import SPECIALS

Architecture = Literal["llama", "llama-gqa", "llama-nonorm", "gpt2"]
ARCHITECTURES: tuple[Architecture, ...] = ("llama", "llama-gqa", "llama-nonorm", "gpt2")

EPS = 1e-8
NO_NORM_EPS = 2.0**20
"""RMSNorm is x / sqrt(mean(x^2) + eps) * gain: with gain = sqrt(eps) it returns x, to the relative
precision mean(x^2) / (2 eps): 3e-8 for an ordinary position, 6e-5 under a massive activation of 200
in 320 dimensions."""
_SPECIAL: dict[str, Any] = {f"{name}_token_id": SPECIALS.index(f"<{name}>") for name in ("bos", "eos", "pad")}


def render(sketch: Sketch, architecture: Architecture, *, seed: int) -> PreTrainedModel:
    """The finished model, float32 and in eval mode, norms calibrated; the global seed is untouched."""
    with torch.random.fork_rng(devices=[]):
        model = _gpt2(sketch) if architecture == "gpt2" else _llama(sketch, architecture)
    if architecture == "llama-nonorm":
        for norm in _norms(model):
            norm.weight.fill_(NO_NORM_EPS**0.5)
    else:
        calibrate(model, sketch.vocab, context=sketch.shape.context, seed=seed)
    return model.eval()


def calibrate(model: PreTrainedModel, vocab: Vocabulary, *, context: int, seed: int) -> None:
    """Set every norm's gain to the size its input really has, so that what was written is read back.

    One forward pass on random words, half of them repeated: each norm is set just before it runs,
    to the median root mean square over positions after `<bos>`. Rounded to 12 bits, so that the
    order in which a machine adds floats does not show in the bytes.
    """
    length = min(context, 2 * vocab.n_words + 1)
    words = vocab.draw(4, length // 2, generator=torch.Generator().manual_seed(seed))
    tokens = torch.cat([torch.full((4, 1), vocab.bos), words, words], 1)[:, :length]

    def measure(norm: nn.Module, args: tuple[Any, ...]) -> None:
        size = args[0][:, 1:].square().mean(-1).sqrt().median().item()
        norm.get_parameter("weight").fill_(round(size * 4096) / 4096)

    handles = [norm.register_forward_pre_hook(measure) for norm in _norms(model)]
    try:
        model(tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def _norms(model: PreTrainedModel) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ in {"LayerNorm", "LlamaRMSNorm"}]


def _llama(sketch: Sketch, architecture: Architecture) -> LlamaForCausalLM:
    shape = sketch.shape
    theta = ROPE_THETA ** (shape.d_head / 2 / ROPE_PLANES)  # plane p turns by `RATES`[p] however many there are
    config = LlamaConfig(
        vocab_size=len(sketch.vocab),
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        head_dim=shape.d_head,
        max_position_embeddings=shape.context,
        rms_norm_eps=NO_NORM_EPS if architecture == "llama-nonorm" else EPS,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=False,
        **_SPECIAL,
    )
    model = LlamaForCausalLM(config)
    weights = {"model.embed_tokens.weight": sketch.embed, "lm_head.weight": sketch.unembed}
    for layer in range(shape.n_layers):
        path = f"model.layers.{layer}"
        weights |= {
            f"{path}.self_attn.q_proj.weight": sketch.q[layer].flatten(0, 1),
            f"{path}.self_attn.k_proj.weight": sketch.k[layer].flatten(0, 1),
            f"{path}.self_attn.v_proj.weight": sketch.v[layer].flatten(0, 1),
            f"{path}.self_attn.o_proj.weight": _join(sketch.o[layer]),
            f"{path}.mlp.gate_proj.weight": sketch.mlp_in[layer],
            f"{path}.mlp.up_proj.weight": sketch.constant.expand(shape.d_mlp, -1),
            f"{path}.mlp.down_proj.weight": sketch.mlp_out[layer],
        }
    _fill(model, weights)
    return model


def _gpt2(sketch: Sketch) -> GPT2LMHeadModel:
    """Every dimension x of the sketch is a pair (x, -x): the mean is zero and LayerNorm is an RMSNorm."""
    shape = sketch.shape
    config = GPT2Config(
        vocab_size=len(sketch.vocab),
        n_positions=shape.context,
        n_embd=2 * shape.d_model,
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        n_inner=shape.d_mlp,
        activation_function="gelu",
        layer_norm_epsilon=EPS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        **_SPECIAL,
    )
    model = GPT2LMHeadModel(config)
    weights = {
        "transformer.wte.weight": _write(sketch.embed),
        "transformer.wpe.weight": _write(sketch.positions),
        "lm_head.weight": _read(sketch.unembed),
    }
    for layer in range(shape.n_layers):
        path = f"transformer.h.{layer}"
        qkv = torch.cat([weight[layer].flatten(0, 1) for weight in (sketch.q, sketch.k, sketch.v)])
        weights |= {
            f"{path}.attn.c_attn.weight": _read(qkv).T,
            f"{path}.attn.c_proj.weight": _write(_join(sketch.o[layer]).T),
            f"{path}.mlp.c_fc.weight": _read(sketch.mlp_in[layer]).T,
            f"{path}.mlp.c_proj.weight": _write(sketch.mlp_out[layer].T),
        }
    _fill(model, weights)
    return model


def _fill(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Overwrite every parameter: biases by zero, norms by one."""
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.copy_(weights.pop(name))
        else:
            parameter.fill_(1.0 if name.endswith("weight") and parameter.ndim == 1 else 0.0)
    assert not weights, f"no such parameters: {sorted(weights)}"


def _join(o: Tensor) -> Tensor:
    """[head d_model d_head] -> [d_model head*d_head]."""
    return o.transpose(0, 1).flatten(1)


def _read(rows: Tensor) -> Tensor:
    """Rows that read the stream, in twin channels: (x, -x) . (w, -w) / 2 = x . w."""
    return torch.cat([rows, -rows], -1) / 2


def _write(rows: Tensor) -> Tensor:
    """Rows that are added to the stream, in twin channels."""
    return torch.cat([rows, -rows], -1)
