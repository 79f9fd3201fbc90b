"""`attend` and `received`: the kernels as operators of torch, known to its compiler by their shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.errors import BackendError

SMALLEST = 16
"""Side of a matrix product that a kernel can do."""

ATTEND = (
    "(Tensor query, Tensor key, Tensor value, Tensor low, Tensor high, Tensor start, Tensor? slot, Tensor readout, "
    "Tensor offsets, float scale, float? cap, SymInt first_position, SymInt extra, bool entropy, bool distance, "
    "bool squares, bool best) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
RECEIVED = (
    "(Tensor query, Tensor key, Tensor low, Tensor high, Tensor start, Tensor lse, Tensor weight, float scale, "
    "float? cap, SymInt first_position, SymInt extra) -> Tensor"
)


def _width(n: int) -> int:
    return max(SMALLEST, 1 << (n - 1).bit_length())


def _blocks(width: int, itemsize: int) -> tuple[int, int, dict[str, int]]:
    """Queries and keys of a block, warps and stages: what the compiler fits into registers without spilling.

    Found by compiling for an H200 with all statistics asked for: no spills, but 28 bytes in half precision of 256 wide.
    """
    if itemsize == 2:  # noqa: PLR2004  (half precision)
        sizes = (128, 64, 3) if width <= 64 else (128, 32, 3) if width <= 128 else (64, 32, 2)  # noqa: PLR2004
    else:
        sizes = (64, 32, 2) if width <= 64 else (32, 32, 3) if width <= 128 else (16, 16, 2)  # noqa: PLR2004
    queries, keys, stages = sizes
    return queries, keys, {"num_warps": 8, "num_stages": stages}


def _precision(dtype: torch.dtype) -> str:
    """Products of float32 in full; those of halves are exact in float32 anyway."""
    return "ieee" if dtype == torch.float32 else "tf32"


def _wide(x: Tensor) -> bool:
    """Whether halves have no products of their own: where kernels are interpreted."""
    return x.element_size() < 4 and not x.is_cuda  # noqa: PLR2004  (bytes of float32)


def _check_device(x: Tensor) -> None:
    from triton import knobs

    if not x.is_cuda and not knobs.runtime.interpret:
        raise BackendError(
            'method="triton" needs a GPU; TRITON_INTERPRET=1 in the environment, before Python starts, has its kernels '
            "interpreted on a CPU, slowly: for checking them"
        )


@torch.library.custom_op("interp::attend", mutates_args=(), schema=ATTEND)
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    low: Tensor,
    high: Tensor,
    start: Tensor,
    slot: Tensor | None,
    readout: Tensor,
    offsets: Tensor,
    scale: float,
    cap: float | None,
    first_position: int,
    extra: int,
    entropy: bool,
    distance: bool,
    squares: bool,
    best: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output [batch head query d_value]; log-sum-exp, entropy, distance, squares, best p, its key [batch head query].

    Behind them read-outs [batch head readout query] of `readout` [batch readout key], and p at `offsets`.

    Statistics that are not asked for are empty.
    """
    from interp.attention.triton import kernels

    kernel: Any = kernels.attend_kernel  # what it takes is known to Triton alone

    _check_device(query)
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    results = _results(query, value, readout, offsets, entropy, distance, squares, best)
    batch, head, n_query, width = query.shape
    v_width, n_readouts = value.shape[-1], readout.shape[1]
    m, n, launch = _blocks(max(_width(width), _width(v_width)), query.element_size())
    grid = (-(-n_query // m), batch * head)
    kernel[grid](
        query, key, value, low, high, start, query if slot is None else slot, readout, offsets,
        *results,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        n_query, key.shape[2], head, head // key.shape[1], first_position, extra, scale, cap or 1.0,
        WIDTH=width, V_WIDTH=v_width, D=_width(width), DV=_width(v_width),
        M=m, N=n, PRECISION=_precision(query.dtype), WIDE=_wide(query),
        CAPPED=cap is not None, SLOT=slot is not None, FIRST=extra > 0,
        ENTROPY=entropy, DISTANCE=distance, SQUARES=squares, BEST=best,
        READOUTS=n_readouts, R=_width(n_readouts) if n_readouts else SMALLEST, OFFSETS=len(offsets),
        **launch,
    )  # fmt: skip
    return results


@attend.register_fake
def _(*words: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    query, _, value, *_, readout, offsets = words[:9]
    return _results(query, value, readout, offsets, *words[13:])


def _results(
    query: Tensor,
    value: Tensor,
    readout: Tensor,
    offsets: Tensor,
    entropy: bool,
    distance: bool,
    squares: bool,
    best: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for what `attend` gives."""
    batch, head, n_query, _ = query.shape

    def room(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=query.device)

    def row(wanted: bool, dtype: torch.dtype = torch.float32) -> Tensor:
        return room(*((batch, head, n_query) if wanted else (0, 0, 0)), dtype=dtype)

    return (
        room(batch, head, n_query, value.shape[-1], dtype=value.dtype),
        row(True),
        row(entropy),
        row(distance),
        row(squares),
        row(best),
        row(best, torch.int32),
        room(batch, head, readout.shape[1], n_query),
        room(batch, head, len(offsets), n_query),
    )


@torch.library.custom_op("interp::received", mutates_args=(), schema=RECEIVED)
def received(
    query: Tensor,
    key: Tensor,
    low: Tensor,
    high: Tensor,
    start: Tensor,
    lse: Tensor,
    weight: Tensor,
    scale: float,
    cap: float | None,
    first_position: int,
    extra: int,
) -> Tensor:
    """sum_i w_i exp(s_ij - L_i) of each key, [batch head key], with `weight` [batch query]."""
    from interp.attention.triton import kernels

    kernel: Any = kernels.received_kernel

    _check_device(query)
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    batch, head, n_query, width = query.shape
    n_key = key.shape[2]
    m, n, launch = _blocks(_width(width), query.element_size())
    first, last = _queries_of(low, high, start, extra, n_key, n)
    result = torch.empty(batch, head, n_key, dtype=torch.float32, device=query.device)
    kernel[(-(-n_key // n), batch * head)](
        query, key, low, high, start, lse, weight, first, last, result,
        *query.stride()[:3], *key.stride()[:3],
        n_query, n_key, head, first.shape[1], head // key.shape[1], first_position, extra, scale, cap or 1.0,
        WIDTH=width, D=_width(width), M=m, N=n, PRECISION=_precision(query.dtype), WIDE=_wide(query),
        CAPPED=cap is not None, FIRST=extra > 0, **launch,
    )  # fmt: skip
    return result


@received.register_fake
def _(query: Tensor, key: Tensor, *_: Any) -> Tensor:
    return torch.empty(*query.shape[:2], key.shape[2], dtype=torch.float32, device=query.device)


def _queries_of(low: Tensor, high: Tensor, start: Tensor, extra: int, n_key: int, n: int) -> tuple[Tensor, Tensor]:
    """First query that sees a key of each block of n keys, and the end of those that do: [batch block]."""
    begins = torch.arange(0, n_key, n, device=low.device, dtype=low.dtype).expand(len(low), -1).contiguous()
    first = torch.searchsorted(high.contiguous(), begins, right=True)
    last = torch.searchsorted(low.contiguous(), (begins + n).clamp(max=n_key))
    opens = (begins < start[:, None] + extra) & (begins + n > start[:, None])
    last = torch.where(opens, torch.full_like(last, low.shape[1]), last) if extra else last
    return first.int().contiguous(), last.int().contiguous()
