"""Statistics from PyTorch's FlexAttention: a mask and a soft-cap as functions, compiled on a GPU into one kernel.

What it returns beside the output, the log-sum-exp, is all that `fused` needs. On a CPU it runs uncompiled and forms
every score: there it is a check, not a way to save memory. `method="flex"` asks for it; "auto" never does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from interp.attention import fused
from interp.attention.call import Call
from interp.attention.statistics import Statistic
from interp.attention.streamed import Forward
from interp.attention.windows import WindowMask
from interp.errors import BackendError
from interp.shapes import Float


def answer_all(call: Call, questions: Mapping[str, Statistic]) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention output in the call's dtype, and the answer to each question in float32.

    Raises:
        BackendError: a window with the mean of what it drops, or a PyTorch whose FlexAttention returns no log-sum-exp.
    """
    if isinstance(call.mask, WindowMask) and call.mask.window.compensate:
        raise BackendError('method="flex": a window with the mean of what it drops; use method="auto"')
    output, lse = attend(call)
    forward = Forward(call.float(), lse.to(torch.promote_types(lse.dtype, torch.float32)))
    return output, {name: fused.answer_one(question, forward) for name, question in questions.items()}


def attend(
    call: Call,
) -> tuple[Float[Tensor, "batch head query d_value"], Float[Tensor, "batch head query"]]:
    """sum_j p_ij v_j and L_i by FlexAttention; rows that see no key give zeros and -inf."""
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask

    mask, device = call.mask, call.query.device

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask.visible(batch, query, key)

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return call.cap(score)

    blocks = create_block_mask(seen, mask.batch, None, mask.n_query, mask.n_key, device=str(device))
    output, aux = _attention(device.type)(
        call.query,
        call.key,
        call.value,
        score_mod=None if call.softcap is None else capped,
        block_mask=blocks,
        scale=call.scale,
        enable_gqa=call.group > 1,
        return_aux=AuxRequest(lse=True),
    )
    return fused.with_slot(call, output, aux.lse)


@cache
def _attention(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    flex: Any = flex_attention

    if device != "cpu":
        return torch.compile(flex, dynamic=True)

    def dense(*tensors: Tensor, **options: Any) -> Any:
        with warnings.catch_warnings():  # it says that all scores are formed: so does this module
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            return flex(*tensors, **options)

    return dense
