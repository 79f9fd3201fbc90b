"""What an edit is tied to: tokens and prompts of one batch, or none; and what it is, as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from jaxtyping import Bool
from torch import Tensor

from interp.edits.reshape import CalibrateSpans, ScaleColumns
from interp.edits.values import NUMBERS, Ablate, Apply, Edit, Noise
from interp.edits.where import single
from interp.errors import SiteError, nearest
from interp.sites import PER_HEAD

BATCH = "leave `rows` and values of each prompt out, or give the model one batch with `run`"
EditT = TypeVar("EditT", bound=Edit)
NAMED = ("positions", "queries", "keys")
"""Fields of edits that may be the name of a span; `spans` may be several."""


def at_spans(edit: EditT, spans: Mapping[str, Bool[Tensor, "batch pos"]]) -> EditT:
    """The edit with the tokens of a batch's spans in place of their names; itself where it names none.

    Raises:
        SiteError: the batch has no span of that name.
    """
    listed = getattr(edit, "spans", ())
    if any(isinstance(span, str) for span in listed):
        several = [_span(edit, "spans", x, spans) if isinstance(x, str) else x for x in listed]
        edit = replace(edit, **{"spans": several})
    names = {name: value for name in NAMED if isinstance(value := getattr(edit, name, None), str)}
    masks = {field: _span(edit, field, span, spans) for field, span in names.items()}
    return replace(edit, **masks) if masks else edit


def _span(edit: Edit, field: str, span: str, spans: Mapping[str, Tensor]) -> Bool[Tensor, "batch pos"]:
    if span not in spans:
        has = nearest(span, spans) if spans else "give it as a batch with spans, Batch.of(..., spans={name: ...})"
        raise SiteError(f"{edit.site}: {field}={span!r} is a span, and the batch that is run has none; {has}")
    return spans[span]


def of_prompts(edit: Edit) -> bool:
    """Whether an edit means rows of one batch: by `rows`, by a position, a value or noise for each, or by a mask."""
    positions = edit.positions
    per_row = isinstance(positions, Tensor) and positions.ndim > 0
    if edit.rows is not None or per_row or isinstance(edit, Noise):
        return True
    if isinstance(edit, CalibrateSpans) and _of_batch(edit):
        return True
    if isinstance(edit, ScaleColumns) and isinstance(edit.keys, Tensor) and edit.keys.ndim > 0:
        return True
    return any(len(axes) > 1 - single(positions, edit.site) and axes[0] > 1 for axes in _leading(edit))


def of_tokens(edit: Edit) -> bool:
    """Whether an edit does at one token what it does not at another, or at one prompt and not at another.

    What a function does is not known, so that it may.
    """
    if of_prompts(edit) or isinstance(edit, Apply) or edit.positions is not None or edit.site.position is not None:
        return True
    return any(size > 1 for axes in _leading(edit) for size in axes)


def refuse_rows(edits: Iterable[Edit], what: str) -> None:
    """Refuse edits of rows where batches are made from prompts: a row is then not the caller's.

    Raises:
        SiteError: names the edit.
    """
    for edit in edits:
        if of_prompts(edit):
            raise SiteError(
                f"{edit.site}: {type(edit).__name__} is of rows of one batch, and {what} makes its own; {BATCH}"
            )


def plain_edit(edit: Edit) -> dict[str, Any]:
    """An edit as plain data: its class, site and what it was given, tensors by shape and hash."""
    given = {f.name: getattr(edit, f.name) for f in fields(edit) if f.init and getattr(edit, f.name) is not None}
    return {"edit": type(edit).__name__, **{name: _plain(value) for name, value in given.items()}}


def _leading(edit: Edit) -> list[tuple[int, ...]]:
    """Axes of the edit's values before those of a token: of batch and position, as far as they are there."""
    tail = 2 if edit.site.kind in PER_HEAD and edit.site.head is None else 1
    if edit.site.kind == "pattern":
        tail = 2 - (edit.site.head is not None)  # head and key; the query stands for the position
    values = [getattr(edit, f.name) for f in fields(edit) if f.name in (*NUMBERS, "bias", "pattern")]
    tensors = [x for x in values if isinstance(x, Tensor)]
    if isinstance(edit, Ablate) and edit.how == "mean":
        whole = 2 if edit.site.kind in PER_HEAD else 1
        tensors = [x for x in tensors if x.ndim != whole + 1]  # [layer (head) d], of no token
    return [tuple(x.shape[: max(0, x.ndim - tail)]) for x in tensors]


def _of_batch(edit: CalibrateSpans) -> bool:
    heads = 1 + (edit.site.head is None)  # axes of a baseline that is the same for all prompts
    own = isinstance(edit.baseline, Tensor) and edit.baseline.ndim > heads and len(edit.baseline) > 1
    return own or any(isinstance(span, Tensor) for span in edit.spans)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        numbers = data.float() if data.is_floating_point() else data
        return f"tensor {tuple(value.shape)} {hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:16]}"
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list | range):
        return [_plain(x) for x in value]
    if callable(value):
        return f"function {getattr(value, '__qualname__', type(value).__name__)}"
    return str(value)
