"""Dictionaries as files: SAELens's layout for one, circuit-tracer's for transcoders of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from interp.dictionaries.activations import BatchTopK, JumpReLU
from interp.dictionaries.dictionary import Dictionaries, Dictionary
from interp.dictionaries.formats import circuit_tracer, saelens
from interp.dictionaries.training.settings import Settings
from interp.errors import SchemaError, UnknownEntry, nearest
from interp.sites import Site

LAYOUTS = ("saelens", "circuit_tracer")
"""Layouts that dictionaries are written in."""


def write(
    dictionary: Dictionary | Dictionaries,
    folder: str | Path,
    layout: str = "auto",
    *,
    force: bool = False,
    obsolete: Sequence[str] = (),
) -> None:
    """Write a dictionary so that `interp.dictionaries.load` and its layout's own package read it.

    A BatchTopK dictionary becomes JumpReLU with its threshold for every feature, as SAELens has it, and a scale of the
    input goes into the weights. SAELens has one dictionary a folder: those of a set go to folders named by their sites.

    Args:
        dictionary: one, or several.
        folder: where to; made if it is not there.
        layout: one of `LAYOUTS`; "auto" is SAELens's for one dictionary, circuit-tracer's for several.
        force: replace files that are not an earlier dictionary of ours.
        obsolete: names of files in the folder that go away once the dictionary is there.

    Raises:
        SchemaError: an unknown layout, or what it has no place for.
        InterpError: the folder cannot be written, or holds what is not ours.
    """
    if layout not in ("auto", *LAYOUTS):
        raise UnknownEntry(f"no dictionary is written as {layout!r}; {nearest(layout, LAYOUTS)}")
    members, single = tuple(map(_plain, dictionary.members)), isinstance(dictionary, Dictionary)
    if layout == "circuit_tracer" or layout == "auto" and not single:
        own = {} if isinstance(dictionary, Dictionary) else dictionary.metadata
        circuit_tracer.write(Dictionaries(members, own), folder, force=force, obsolete=obsolete)
        return
    states, configs = {}, {}
    for d in members:
        tensors, config = saelens.contents(d)
        within = "" if single else f"{d.site_in}/"
        states |= {within + name: x for name, x in tensors.items()}
        configs |= {within + name: x for name, x in config.items()}
    saelens.write_tensors(Path(folder), states, configs, force=force, obsolete=obsolete)


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


def _plain(d: Dictionary) -> Dictionary:
    """Without a scale of its own, and with a threshold for every feature where it has one for all."""
    d = d.folded()
    if not isinstance(d.activation, BatchTopK) or d.activation.threshold is None:
        return d
    return replace(d, activation=JumpReLU(d.activation.threshold.to(d.b_enc).expand(d.n_features).contiguous()))
