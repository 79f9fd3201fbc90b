"""`load`: a dictionary from files here or on the hub, in any known layout, checked against the model it is for."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from interp.batch import Prompts
from interp.dictionaries.activations import Normalisation
from interp.dictionaries.dictionary import Dictionaries, Dictionary
from interp.dictionaries.fit import check
from interp.dictionaries.formats.folder import Folder
from interp.dictionaries.formats.registry import read
from interp.errors import ModelLoadError, SiteError
from interp.model import Model
from interp.sites import Site


def load(
    source: str | os.PathLike[str],
    model: Model | None = None,
    *,
    format: str = "auto",  # noqa: A002  (the field's word)
    subfolder: str = "",
    revision: str | None = None,
    site: Site | str | None = None,
    site_out: Site | str | None = None,
    scale: float | None = None,
    prompts: Prompts = None,
    measure: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Dictionary | Dictionaries:
    """A dictionary, or a set of them, from a folder, a file or a hub id. Safetensors and npz; no code is ever run.

    With `model`, sites and widths are checked, and the fraction of variance explained and L0 are measured on a few
    prompts and held against what the files claim: a dictionary of another site, another normalisation or another model
    loads as easily as the right one, and nothing else would tell.

    Args:
        source: folder, file, or hub id, with a folder behind it where the repository holds several.
        model: what it is for.
        format: one of `interp.dictionaries.FORMATS`, "auto" by the files that are there.
        subfolder: folder inside the source.
        revision: branch, tag or commit on the hub.
        site: where it reads, for files that do not say; refused where they say otherwise.
        site_out: where it writes, likewise; where it reads, if that is left out.
        scale: factor of the input, for dictionaries trained on scaled activations whose files do not hold it.
        prompts: to measure on; text of this machine where the model has a tokenizer.
        measure: whether to measure with a model; sites and widths are checked all the same.
        dtype: of the dictionary; that of the file otherwise, float32 at least.
        device: of the dictionary; the CPU otherwise.

    Raises:
        ModelLoadError: files missing, damaged, pickled or of no known layout; tensors that do not go together; a site
            or a width that the model does not have; measurements that are not what the files claim, with the numbers.
    """
    dictionary = read(Folder.of(source, subfolder=subfolder, revision=revision), format)
    if site is not None or site_out is not None or scale is not None:
        if isinstance(dictionary, Dictionaries):
            raise ModelLoadError(f"{os.fspath(source)!r} is a set, which says its own sites; leave site and scale out")
        dictionary = _completed(dictionary, site, site_out, scale)
    if model is not None:
        check(model, dictionary, prompts, measure=measure)
    return dictionary if dtype is None and device is None else dictionary.to(device, dtype)


def _completed(d: Dictionary, site: Site | str | None, site_out: Site | str | None, scale: float | None) -> Dictionary:
    if site is not None or site_out is not None:
        first, last = _parsed(site) or d.site_in, _parsed(site_out)
        for given, own in ((first, d.site_in), (last, d.site_out)):
            if given is not None and own is not None and given != own:
                raise ModelLoadError(
                    f"the files say {own}, and {given} was given; leave it out, or use dictionary.at()"
                )
        if first is None:
            raise ModelLoadError("site_out without site: where the dictionary reads is not said either")
        d = d.at(first, last or d.site_out or first)
    if scale is not None:
        if d.normalisation.kind not in ("none", "scale"):
            raise ModelLoadError(f"the files say normalisation {d.normalisation.kind}, which leaves no scale to give")
        d = replace(d, normalisation=Normalisation("scale", undo=not d.writes_elsewhere, scale=float(scale)))
    return d


def _parsed(site: Site | str | None) -> Site | None:
    try:
        return Site.parse(site) if isinstance(site, str) else site
    except SiteError as error:
        raise ModelLoadError(str(error)) from error
