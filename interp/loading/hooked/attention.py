"""`Attention` of a HookedTransformer, through transformers' attention interface, and its rotary positions."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.attention.hook import NAME
from interp.errors import BackendError
from interp.loading.hooked.config import HookedConfig

Rotary = tuple[Float[Tensor, "#batch pos turning"], Float[Tensor, "#batch pos turning"]]
MINE = ("eager", NAME)  # implementations that know of soft-caps and of weights that are not all softmax


class Attention(nn.Module):
    """softmax(scale q . k) v through W_O, with q, k, v affine in the layer's input.

    `positions` are added to what makes queries and keys ("shortformer"), not to what makes values.
    """

    def __init__(self, config: HookedConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer
        self.is_causal = config.is_causal
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = (config.scales or [config.head_dim**-0.5] * config.num_hidden_layers)[layer]
        wide, narrow = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, wide)
        self.k_proj = nn.Linear(config.hidden_size, narrow)
        self.v_proj = nn.Linear(config.hidden_size, narrow)
        self.o_proj = nn.Linear(wide, config.hidden_size)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch pos d_model"],
        attention_mask: Any = None,
        past_key_values: Any = None,
        rotary: Rotary | None = None,
        positions: Tensor | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """What attention adds to the stream.

        Raises:
            BackendError: an attention function of transformers that cannot do what the config asks for.
        """
        looks = hidden_states if positions is None else hidden_states + positions
        q, k, v = (
            project(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
            for project, x in ((self.q_proj, looks), (self.k_proj, looks), (self.v_proj, hidden_states))
        )
        if rotary is not None:
            q, k = (turn(x, rotary, pairs=self.config.rotary_pairs) for x in (q, k))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        options = self._options()
        z, _ = ALL_ATTENTION_FUNCTIONS.get_interface(str(self.config._attn_implementation), eager)(
            self,
            q,
            k,
            v,
            attention_mask,
            dropout=0.0,
            scaling=self.scaling,
            **options,
        )
        return self.o_proj(z.flatten(2))

    def _options(self) -> dict[str, float]:
        options = {} if self.config.score_cap is None else {"softcap": self.config.score_cap}
        if self.config.share != 1.0:
            options["share"] = self.config.share
        if options and self.config._attn_implementation not in MINE:
            raise BackendError(
                f"attention function {self.config._attn_implementation!r} knows nothing of {', '.join(options)}; load "
                'with attn_implementation="eager"'
            )
        return options


def eager(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    attention_mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    share: float = 1.0,
    **_: Any,
) -> tuple[Float[Tensor, "batch query head d_head"], Float[Tensor, "batch head query key"]]:
    """Attention by its definition: z, and the weights, share * softmax + (1 - share) at the keys that may be seen."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    score = scaling * query @ key.mT
    if softcap is not None:
        score = softcap * torch.tanh(score / softcap)
    visible = torch.ones_like(score, dtype=torch.bool)
    if attention_mask is not None:
        score = score + attention_mask
        visible = (attention_mask == 0).expand_as(score)
    weight = score.softmax(-1, dtype=torch.promote_types(score.dtype, torch.float32)).to(value.dtype)
    if share != 1.0:
        weight = share * weight + (1.0 - share) * visible.to(weight.dtype)
    return (weight @ value).transpose(1, 2).contiguous(), weight


def rotary_table(config: HookedConfig, position_ids: Int[Tensor, "batch pos"], like: Tensor) -> Rotary:
    """Cosine and sine of the angles at some positions: angle i is position / base^(i / (rotary_dim / 2))."""
    half = config.rotary_dim // 2
    frequency = config.rotary_base ** (-torch.arange(half, dtype=torch.float64, device=position_ids.device) / half)
    angles = position_ids[..., None] * frequency
    angles = angles.repeat_interleave(2, dim=-1) if config.rotary_pairs else torch.cat([angles, angles], dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def turn(
    x: Float[Tensor, "batch head pos d_head"], rotary: Rotary, *, pairs: bool
) -> Float[Tensor, "batch head pos d_head"]:
    """The first channels turned by their angles: channel i with i + half, or with its neighbour (`pairs`)."""
    cos, sin = (t[:, None] for t in rotary)
    turning, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
    if pairs:
        quarter = torch.stack([-turning[..., 1::2], turning[..., ::2]], dim=-1).flatten(-2)
    else:
        first, second = turning.chunk(2, dim=-1)
        quarter = torch.cat([-second, first], dim=-1)
    return torch.cat([turning * cos + quarter * sin, rest], dim=-1)
