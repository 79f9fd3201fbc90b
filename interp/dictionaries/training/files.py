"""What was trained, as files: SAELens's layout for one dictionary, circuit-tracer's for a cross-layer transcoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from interp.dictionaries.activations import BatchTopK, JumpReLU
from interp.dictionaries.dictionary import Dictionaries, Dictionary
from interp.dictionaries.formats import circuit_tracer, saelens
from interp.dictionaries.training.settings import Settings
from interp.errors import SchemaError
from interp.sites import Site


def write(dictionary: Dictionary | Dictionaries, folder: str | Path) -> None:
    """Write a dictionary so that `interp.dictionaries.load` and its layout's own package read it.

    A BatchTopK dictionary becomes JumpReLU with its threshold for every feature, as SAELens has it.

    Raises:
        SchemaError: what neither layout has a place for.
    """
    if isinstance(dictionary, Dictionary):
        saelens.write(_with_thresholds(dictionary), folder)
    else:
        circuit_tracer.write(replace(dictionary, members=tuple(map(_with_thresholds, dictionary.members))), folder)


def check_writable(settings: Settings, site_in: Sequence[Site], site_out: Sequence[Site]) -> None:
    """Refuse, before it is trained, what has no layout.

    Raises:
        SchemaError: a transcoder that is neither ReLU nor can be written as JumpReLU, a cross-layer transcoder that
            leaves layers out or has a skip.
    """
    if tuple(site_in) == tuple(site_out):
        return
    if settings.kind in ("topk", "gated"):
        raise SchemaError(f"no layout of files has a {settings.kind} transcoder; train batchtopk, jumprelu or standard")
    if len(site_in) > 1:
        layers = list(range(len(site_in)))
        if [s.first for s in site_in] != layers or [s.first for s in site_out] != layers or settings.skip:
            raise SchemaError("circuit-tracer's files hold every layer from 0 on, in order, and no skip")


def _with_thresholds(d: Dictionary) -> Dictionary:
    if not isinstance(d.activation, BatchTopK) or d.activation.threshold is None:
        return d
    return replace(d, activation=JumpReLU(d.activation.threshold.to(d.b_enc).expand(d.n_features).contiguous()))
