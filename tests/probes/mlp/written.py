"""A model written by hand whose MLP is a known linear map, so that all that it does is known in closed form.

Tests import it as `mlp_written`.
"""

from __future__ import annotations

from functools import cache

import torch
from tiny_models import D_VOCAB

import interp
from interp.loading.hooked.config import HookedConfig
from interp.loading.hooked.decoder import HookedDecoder
from interp.tasks.prompt import collate

WIDTH, HEADS, D_HEAD = 64, 4, 8
HALF = WIDTH // 2


def linear_mlp(scale: torch.Tensor, constant: torch.Tensor | None = None, *, seed: int = 0) -> interp.Model:
    """One layer without norms: tokens stand in the first half of the stream, head h writes to its own eight dimensions.

    The MLP writes `scale` times what stands in each dimension, and a constant: relu(x) - relu(-x) = x.
    """
    generator = torch.Generator().manual_seed(seed)
    config = HookedConfig(
        vocab_size=D_VOCAB,
        output_size=D_VOCAB,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=D_HEAD,
        max_position_embeddings=32,
        positions="none",
        activation="relu",
    )
    module = HookedDecoder(config).eval()
    block, eye = module.blocks[0], torch.eye(WIDTH)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.embed.weight[:, :HALF] = torch.randn(D_VOCAB, HALF, generator=generator)
        module.unembed.weight.copy_(torch.randn(D_VOCAB, WIDTH, generator=generator))
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = torch.randn(HEADS * D_HEAD, HALF, generator=generator) / HALF**0.5
            getattr(block.attn, name).weight[:, :HALF] = weight * (2.0 if name == "v_proj" else 1.0)
        block.attn.o_proj.weight[HALF:] = torch.eye(HALF)
        first, last = (m for m in block.mlp.modules() if isinstance(m, torch.nn.Linear))
        first.weight.copy_(torch.cat([eye, -eye]))
        last.weight.copy_(torch.cat([torch.diag(scale), -torch.diag(scale)], 1))
        if constant is not None:
            last.bias.copy_(constant)
    return interp.load(module)


def prompts(model: interp.Model, n: int, *, length: int = 9, seed: int = 0):
    """Random prompts whose right answer is what the model says, with a twin that differs at two places."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, model.info.d_vocab, (n, length), generator=generator)
    corrupt = clean.clone()
    corrupt[:, [2, 5]] = torch.randint(3, model.info.d_vocab, (n, 2), generator=generator)
    with torch.no_grad():
        answers = model.run(clean).logits[:, -1].argmax(-1)
    wrong = (answers + torch.randint(1, model.info.d_vocab, (n,), generator=generator)) % model.info.d_vocab
    return collate(
        "random",
        list(zip(clean.tolist(), corrupt.tolist(), strict=True)),
        answers=[[a] for a in answers.tolist()],
        wrong=[[w] for w in wrong.tolist()],
        roles=[{"s": 3}] * n,
        templates=["random"] * n,
        corruption="two tokens",
        metric="logit_diff",
    )


@cache
def amplifier() -> interp.Model:
    """m = 2 (what head 0 wrote) - (what head 1 wrote) + c."""
    scale = torch.zeros(WIDTH)
    scale[HALF : HALF + D_HEAD], scale[HALF + D_HEAD : HALF + 2 * D_HEAD] = 2.0, -1.0
    return linear_mlp(scale, torch.linspace(-3, 3, WIDTH))
