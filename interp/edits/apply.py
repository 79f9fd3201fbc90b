"""Activation edits applied to a tensor: pure, shared by every backend, one indexed write for many rows' edits.

Every activation edit sets, scales or adds. Neighbours in the list that do the same thing to different rows or heads
become one write, so that 64 ablations of 64 rows cost one kernel and not 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.edits.values import Ablate, Add, Apply, AttentionEdit, Edit, Noise, Replace, Scale
from interp.edits.where import column_mask, one_column, row_index, single
from interp.errors import SiteError
from interp.sites import PER_HEAD, Site

Value = float | Tensor


@dataclass(frozen=True, eq=False)
class _Write:
    """`x[rows, columns, head]` is set to, scaled by or increased by `value`; `columns` None: all."""

    verb: str
    rows: Tensor
    columns: Tensor | None
    head: int | None
    value: Value
    whole: bool

    @property
    def form(self) -> tuple[object, ...]:
        """Key of writes that can be merged into one."""
        constant = self.value if isinstance(self.value, float) else None
        return self.verb, self.columns is None, self.head is None, constant, self.whole


def apply_edits(
    x: Float[Tensor, "batch pos *rest"],
    edits: Sequence[Edit],
    *,
    layer: int | None = None,
    mask: Bool[Tensor, "batch prompt"] | None = None,
    offset: int = 0,
) -> Float[Tensor, "batch pos *rest"]:
    """The tensor of one site at one layer after `edits`, in the order given; `x` itself is left alone.

    Args:
        x: [batch pos d], or [batch pos head d] for kinds with heads.
        edits: those of this kind and layer.
        layer: which layer, None outside the layers.
        mask: real tokens of the prompts, to count positions by; None: all are real.
        offset: column at which `x` starts: not 0 when decoding with a cache.

    Raises:
        SiteError: rows or positions out of range, or a value whose shape does not broadcast (both shapes named).
    """
    if not edits:
        return x
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    own, pending = False, []
    for edit in edits:
        if isinstance(edit, Apply):
            x = _commit(x, pending, own) if pending else x
            x, own, pending = apply_function(x, edit, mask, offset), False, []
            continue
        write = _write(x, edit, layer, mask, offset)
        if write is None:
            continue
        if pending and not _joins(pending, write):
            x, own, pending = _commit(x, pending, own), True, []
        pending.append(write)
    return _commit(x, pending, own) if pending else x


def change(edit: Edit, shape: tuple[int, ...], layer: int | None, offset: int) -> tuple[str, Value]:
    """Verb of an activation edit, "set", "scale" or "add", and its value."""
    return _change(edit, shape, layer, offset)


@singledispatch
def _change(edit: Edit, shape: tuple[int, ...], layer: int | None, offset: int) -> tuple[str, Value]:
    kind = "attention" if isinstance(edit, AttentionEdit) else "no known kind of"
    raise SiteError(f"{edit.site}: {type(edit).__name__} is {kind} edit; it cannot be applied to this activation")


@_change.register
def _(edit: Ablate, shape: tuple[int, ...], layer: int | None, offset: int) -> tuple[str, Value]:
    if edit.value is None:
        return "set", 0.0
    return "set", _of_layer(edit.value, edit.site, layer, edit.by) if edit.how == "mean" else edit.value


@_change.register
def _(edit: Replace, shape: tuple[int, ...], layer: int | None, offset: int) -> tuple[str, Value]:
    return "set", edit.value


@_change.register
def _(edit: Scale, shape: tuple[int, ...], layer: int | None, offset: int) -> tuple[str, Value]:
    return "scale", edit.factor if isinstance(edit.factor, Tensor) else float(edit.factor)


@_change.register
def _(edit: Add, shape: tuple[int, ...], layer: int | None, offset: int) -> tuple[str, Value]:
    return "add", edit.value


@_change.register
def _(edit: Noise, shape: tuple[int, ...], layer: int | None, offset: int) -> tuple[str, Value]:
    def draw(column: int, *sizes: int) -> Tensor:
        seed = hash((edit.seed, 0 if layer is None else layer + 1, column)) % 2**62
        return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))

    if offset and not single(edit.positions, edit.site):  # generated tokens: each its own, one at a time or together
        noise = torch.cat([draw(offset + i, shape[0], 1, *shape[2:]) for i in range(shape[1])], dim=1)
    else:
        noise = draw(0, *shape)
    sd = edit.sd if isinstance(edit.sd, Tensor) else float(edit.sd)
    return "add", noise * (sd.cpu() if isinstance(sd, Tensor) else sd)


def _of_layer(value: Tensor, site: Site, layer: int | None, by: str | None) -> Tensor:
    """A mean as it is, or this layer's (and head's) share of [layer (position) (head) d]."""
    axes = (2 if site.kind in PER_HEAD else 1) + (by is not None)
    if value.ndim != axes + 1 or layer is None:
        return value
    if layer >= len(value):
        raise SiteError(f"{site}: a mean over {len(value)} layers has none for layer {layer}")
    return value[layer] if site.head is None else value[layer, ..., site.head, :]


def _check_heads(edit: Ablate, n_heads: int) -> None:
    """Refuse a value of each token where a mean over all layers and heads would be read: both have as many axes.

    Raises:
        SiteError: names the shape, and the edit that takes a value of each token.
    """
    value = edit.value
    if edit.how != "mean" or value is None or value.ndim != 3 + (edit.by is not None) or value.shape[-2] == n_heads:
        return
    form = "[layer position head d_head]" if edit.by else "[layer head d_head]"
    raise SiteError(
        f"{edit.site}: a mean of shape {tuple(value.shape)} is no {form} of {n_heads} heads; for a value of each token "
        "use Replace"
    )


def broadcast(value: Tensor, shape: Sequence[int], edit: Edit) -> Tensor:
    """The value expanded to a shape, or an error that names both."""
    try:
        return value.expand(tuple(shape))
    except RuntimeError:
        name = type(edit).__name__
        message = f"{edit.site}: {name} value of shape {tuple(value.shape)} does not broadcast to {tuple(shape)}"
        raise SiteError(message) from None


def _write(x: Tensor, edit: Edit, layer: int | None, mask: Tensor, offset: int) -> _Write | None:
    is_narrowed = edit.rows is not None or edit.positions is not None or edit.site.position is not None
    if is_narrowed and len(mask) != len(x):
        raise SiteError(f"{edit.site}: the edit is for a batch of {len(mask)} rows; this pass has {len(x)}")
    rows = row_index(edit.rows, len(x), edit.site, x.device)
    tail = x.shape[2:] if edit.site.head is None else x.shape[3:]
    full, narrow = (len(rows), x.shape[1], *tail), (len(rows), *tail)
    one = single(edit.positions, edit.site)
    if isinstance(edit, Ablate) and edit.site.head is not None:
        _check_heads(edit, x.shape[2])
    verb, value = change(edit, narrow if one else full, layer, offset)
    value = value.to(x) if isinstance(value, Tensor) else value
    if isinstance(edit, Ablate) and edit.by is not None and isinstance(value, Tensor):
        if offset >= mask.shape[1]:
            return None
        value = _by_position(value, edit, mask[rows], one, offset)
    along = isinstance(value, Tensor) and value.ndim > len(tail) and not (one and value.ndim < len(full))
    if along and offset and not isinstance(edit, Noise) and value.shape[-len(tail) - 1] != 1:  # type: ignore[union-attr]
        return None  # a value for each token of the prompt says nothing about the tokens generated after it
    if edit.positions is None and edit.site.position is None:
        value = broadcast(value, full, edit) if isinstance(value, Tensor) else value
        return _Write(verb, rows, None, edit.site.head, value, edit.rows is None and edit.site.head is None)
    return _at_points(x, edit, rows, mask, offset, (verb, value), (full, narrow if one else None))


def _by_position(value: Tensor, edit: Edit, mask: Tensor, one: bool, offset: int) -> Tensor:
    """A mean [position ...] as a value for each token, [row pos ...], by its place among the real ones."""
    longest = int(mask.sum(1).max())
    if longest > len(value):
        raise SiteError(f"{edit.site}: a mean by position over {len(value)} of them; a prompt has {longest} tokens")
    return value[(mask.cumsum(1) - 1).clamp(min=0)[:, offset:]]


def _at_points(
    x: Tensor,
    edit: Edit,
    rows: Tensor,
    mask: Tensor,
    offset: int,
    what: tuple[str, Value],
    shapes: tuple[tuple[int, ...], tuple[int, ...] | None],
) -> _Write | None:
    """The write at chosen (row, column) points; None when none of them is among the columns of `x`."""
    verb, value = what
    full, narrow = shapes
    if narrow is not None:
        column = one_column(edit.positions, edit.site, mask, rows) - offset
        local = torch.arange(len(rows), device=x.device)
        here = (column >= 0) & (column < x.shape[1])
        local, column = local[here], column[here]
    else:
        selection = column_mask(edit.positions, edit.site, mask, rows)[:, offset : offset + x.shape[1]]
        local, column = selection.nonzero(as_tuple=True)
    if not len(local):
        return None
    if isinstance(value, Tensor):
        if narrow is not None and value.ndim < len(full):
            value = broadcast(value, narrow, edit)[local]
        else:
            value = broadcast(value, full, edit)[local, column]
    return _Write(verb, rows[local], column, edit.site.head, value, False)


def apply_function(
    x: Float[Tensor, "batch pos *rest"], edit: Apply, mask: Bool[Tensor, "batch prompt"], offset: int
) -> Float[Tensor, "batch pos *rest"]:
    """The activation with the part that a function means replaced by what the function gives.

    Raises:
        SiteError: the function gives another shape (both are named), or rows or positions are out of range.
    """
    site, head = edit.site, edit.site.head
    if not edit.narrows or (edit.rows is None and edit.positions is None and site.position is None and head is None):
        return _output(x, edit)
    if (edit.rows is not None or edit.positions is not None or site.position is not None) and len(mask) != len(x):
        raise SiteError(f"{site}: the edit is for a batch of {len(mask)} rows; this pass has {len(x)}")
    rows = row_index(edit.rows, len(x), site, x.device)
    index: tuple[Any, ...] = (rows,)
    if edit.positions is not None or site.position is not None:
        if offset >= mask.shape[1]:
            return x  # positions are of the prompt
        row, column = _points(edit, mask, rows)
        index = (row, column - offset)
    if head is not None:
        index = (*index, head) if len(index) > 1 else (rows, slice(None), head)
    old = x[index]
    if not old.numel():
        return x
    new = x.clone()
    new[index] = _output(old, edit)
    return new


def _points(edit: Apply, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the tokens that an edit means: [row], [row position] for several, [token] of a mask."""
    positions, site = edit.positions, edit.site
    if positions is None or single(positions, site):
        return rows, one_column(positions, site, mask, rows)
    if isinstance(positions, Tensor):
        row, column = column_mask(positions, site, mask, rows).nonzero(as_tuple=True)
        return rows[row], column
    several: Any = positions
    columns = [one_column(int(p), site, mask, rows) for p in several]
    return rows[:, None], torch.stack(columns, dim=1)


def _output(x: Tensor, edit: Apply) -> Tensor:
    new = edit.function(x)
    if not isinstance(new, Tensor) or new.shape != x.shape:
        shape = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise SiteError(f"{edit.site}: the function gave {shape} for an activation {tuple(x.shape)}")
    return new


def _joins(pending: Sequence[_Write], write: _Write) -> bool:
    """Same form, and no row (or head of a row) written twice: then one indexed write says the same."""
    if pending[0].form != write.form or write.whole:
        return False
    rows = set(write.rows.tolist())
    return not any(w.head == write.head and not rows.isdisjoint(w.rows.tolist()) for w in pending)


def _commit(x: Tensor, writes: Sequence[_Write], own: bool) -> Tensor:
    first = writes[0]
    if first.whole:
        return _combine(x, first.verb, first.value)
    rows = torch.cat([w.rows for w in writes])
    index: tuple = (rows,) if first.columns is None else (rows, torch.cat([w.columns for w in writes]))  # type: ignore[misc]
    if first.head is not None:
        heads = torch.cat([torch.full_like(w.rows, w.head) for w in writes])  # type: ignore[arg-type]
        index = (rows, slice(None), heads) if first.columns is None else (*index, heads)
    value = first.value if isinstance(first.value, float) else torch.cat([w.value for w in writes])  # type: ignore[misc]
    x = x if own else x.clone()
    x[index] = value if first.verb == "set" else _combine(x[index], first.verb, value)
    return x


def _combine(old: Tensor, verb: str, value: Value) -> Tensor:
    if verb == "scale":
        return old * value
    if verb == "add":
        return old + value
    return value.clone() if isinstance(value, Tensor) else torch.full_like(old, value)
