"""What callers hand to `run`, `attention`, `editing` and the readers of weights, checked before anything is planned."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from interp.attention import Statistic
from interp.edits import Edit
from interp.errors import BackendError, SchemaError, SiteError
from interp.model import ModelInfo
from interp.numerics import refuse_autocast
from interp.several import several
from interp.sites import Site


def edit_list(edits: Any) -> list[Edit]:
    """Edits of one site each in order, from several or a single one.

    Raises:
        SchemaError: something that is no edit.
    """
    result = several(edits, "edits", one=(Edit, str))
    for edit in result:
        if not isinstance(edit, Edit):
            raise SchemaError(f"edits: {_text(edit)} is none; give interp.edits, such as Ablate('L3H5.z')")
    return [part for edit in result for part in edit.parts]


def statistics_by_name(statistics: Any) -> dict[str, Statistic]:
    """The statistics asked for, under their names.

    Raises:
        SchemaError: no {name: statistic}, or something that is no statistic.
    """
    if not isinstance(statistics, Mapping):
        raise SchemaError(f"statistics: expected {{name: statistic}}; got {_text(statistics)}")
    for name, statistic in statistics.items():
        if not isinstance(statistic, Statistic):
            raise SchemaError(
                f"statistics: {name!r} is {_text(statistic)}, no statistic; give one of interp.attention, such as "
                "Entropy()"
            )
    return dict(statistics)


def layer_tuple(layers: Any, info: ModelInfo) -> tuple[int, ...]:
    """Layers with attention, from several, a single number, or None for all of them.

    Raises:
        SiteError: none, or one without attention.
    """
    if layers is None:
        return info.attention_layers
    result = tuple(layer_number(x, None) for x in several(layers, "layers", one=(int, str)))
    if not result:
        raise SiteError("no layers asked for; leave `layers` out for all of them")
    unknown = sorted(set(result) - set(info.attention_layers))
    if unknown:
        raise SiteError(f"layer {unknown[0]} has no attention; layers with attention: {info.attention_layers}")
    return result


def layer_number(layer: Any, n_layers: int | None) -> int:
    """A layer as a number from 0; with `n_layers`, one that the model has: -1 is no layer.

    Raises:
        SiteError: it is none, or out of range.
    """
    try:
        number = operator.index(layer)
    except TypeError:
        raise SiteError(f"layer {layer!r:.40}: expected a number, counted from 0") from None
    if n_layers is not None and not 0 <= number < n_layers:
        raise SiteError(f"layer {number} is out of range; the model has layers 0 to {n_layers - 1}")
    return number


def check_mode(module: nn.Module, device: torch.device, *, gradients: bool = False) -> None:
    """Refuse contexts of torch in which numbers would not be the model's own, or gradients would be none.

    Raises:
        BackendError: torch.autocast is on for the device; gradients are asked for under torch.inference_mode, or of
            weights that were made under it.
    """
    refuse_autocast(device)
    if not gradients:
        return
    if torch.is_inference_mode_enabled():
        raise BackendError("no gradients exist under torch.inference_mode(); leave it, or ask without gradients")
    if any(p.is_inference() for p in module.parameters()):
        raise BackendError(
            "the weights were made under torch.inference_mode() and take no part in gradients; load the model outside"
        )


def site_list(capture: Any) -> Sequence[Any]:
    """Sites to capture, from several, a single one, or a mapping to reducers.

    Raises:
        SchemaError: something that is no site, or a reducer that cannot be called.
    """
    if isinstance(capture, Mapping):
        for site, reducer in capture.items():
            if reducer is not None and not callable(reducer):
                raise SchemaError(f"capture: the reducer of {site} is {_text(reducer)}; expected a function, or None")
    items = several(capture, "capture", one=(str, Site))
    for item in items:
        if not isinstance(item, str | Site):
            raise SchemaError(f"capture: {_text(item)} is no site; write 'L3.z', or interp.Site('z', 3)")
    return items


def _text(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"
