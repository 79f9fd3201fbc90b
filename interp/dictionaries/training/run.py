"""`train`: a dictionary from activations, checkpointed; an interrupted run ends with the weights of a whole one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from interp.batch import Prompts
from interp.dictionaries.dictionary import Dictionaries, Dictionary
from interp.dictionaries.training import losses
from interp.dictionaries.training.coder import Coders
from interp.dictionaries.training.settings import Settings
from interp.dictionaries.training.streams import (
    BUFFER,
    Activations,
    ModelPieces,
    Pieces,
    StoredPieces,
    Stream,
    passages,
)
from interp.errors import SchemaError
from interp.model import Model
from interp.sites import Site
from interp.storage import Store
from interp.zoo.trained import loop
from interp.zoo.trained.recipe import Recipe

Sites = Site | str | Sequence[Site | str]


def train(
    source: Model | Store | Pieces,
    site: Sites | None = None,
    prompts: Sequence[Prompts] | Callable[[int], Prompts] | None = None,
    *,
    site_out: Sites | None = None,
    folder: str | os.PathLike[str] | None = None,
    save_every: float = 60.0,
    buffer: int = BUFFER,
    device: torch.device | str | None = None,
    **settings: Any,
) -> Dictionary | Dictionaries:
    """Train an autoencoder, a transcoder (`site_out`), or a cross-layer transcoder (several of both).

    Activations are streamed, a buffer of tokens at a time, and scaled so that E|x| = sqrt(d), d their width; the first
    token of every prompt is left out. What is returned reads and writes activations as they are, with decoders of unit
    norm.

    Args:
        source: a store of activations, a model to run prompts through, or pieces of your own.
        site: where it reads; several for a cross-layer transcoder, in order of depth.
        prompts: for a model: texts or lists of token ids, or a function from a number to the prompts of one run.
        site_out: where it writes, if elsewhere; as many as are read.
        folder: where the state is kept; a run that was interrupted goes on from there. None: not kept.
        save_every: seconds of training between two states.
        buffer: tokens shuffled together, and held in memory.
        device: where it is trained; where the activations are unless said.
        settings: of `Settings`: kind, n_features, k, steps ...

    Raises:
        SchemaError: settings or sites that do not go together, fewer tokens than a batch, or a folder that holds the
            state of another run.

    >>> import interp, interp.dictionaries
    >>> model = interp.load("zoo:planted-induction")
    >>> ids = [list(range(1, 30)) for _ in range(4)]
    >>> sae = interp.dictionaries.train(model, "L0.resid_post", ids, n_features=32, k=4, steps=3, batch_size=64)
    >>> sae.n_features, str(sae.site_in)
    (32, 'L0.resid_post')
    """
    options = _settings(settings)
    pieces = _pieces(source, site, site_out, prompts, device)
    recipe = recipe_of(pieces, options, buffer=buffer)
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(temporary if folder is None else folder)
        try:
            coders, minutes = loop.train(recipe, out=where, log_every=save_every)
        except ValueError as error:  # the loop's word for a state of another run
            raise SchemaError(f"{error}; choose another folder") from error
    return value_of(coders, pieces, {**asdict(options), "minutes": round(minutes, 2), "data": pieces.identity})


def recipe_of(pieces: Pieces, settings: Settings, *, buffer: int = BUFFER) -> Recipe[Coders, Activations]:
    """The run as a value that the training loop takes."""

    def stream(progress: float) -> Stream:
        return Stream(pieces, batch_size=settings.batch_size, steps=settings.steps, seed=settings.seed, buffer=buffer)

    def model() -> Coders:
        return Coders(stream(0.0).buffer(0)[1], pieces.outs, settings)

    places = [str(s) for s in (*pieces.sites_in, *pieces.sites_out)]
    return Recipe(
        facts={**asdict(settings), "buffer": buffer, "data": pieces.identity, "sites": places},
        steps=settings.steps,
        model=model,
        data=stream,
        loss=losses.loss,
        schedule=settings.rate,
        weight_decay=0.0,
        outputs=lambda coders, batch: coders(batch),
        optimizer=lambda coders: torch.optim.AdamW(coders.parameters(), weight_decay=0.0),
        after=losses.after,
    )


def value_of(coders: Coders, pieces: Pieces, metadata: dict[str, Any]) -> Dictionary | Dictionaries:
    """What was trained, as a value with its sites."""
    from dataclasses import replace

    members = []
    for i, (site, outs) in enumerate(zip(pieces.sites_in, pieces.outs, strict=True)):
        sites_out = tuple(s for o in outs if (s := pieces.sites_out[o]) is not None)
        members.append(replace(coders.dictionary(i, site, sites_out), metadata=metadata))
    return members[0] if len(members) == 1 else Dictionaries(tuple(members))


def _settings(given: dict[str, Any]) -> Settings:
    from interp.errors import nearest

    names = Settings.__dataclass_fields__
    for name in given:
        if name not in names:
            raise SchemaError(f"unknown setting {name!r} of a training run; {nearest(name, tuple(names))}")
    return Settings(**given)


def _pieces(
    source: Any,
    site: Sites | None,
    site_out: Sites | None,
    prompts: Any,
    device: torch.device | str | None,
) -> Pieces:
    if hasattr(source, "outs"):
        return source
    if site is None:
        raise SchemaError("no site to train at; name one, such as 'L2.resid_post'")
    places = passages(site, site_out)
    if isinstance(source, Store):
        return StoredPieces(source, places, device=device)
    if prompts is None:
        raise SchemaError("a model needs prompts to run; give texts, lists of token ids, or a function that gives some")
    return ModelPieces(source, prompts, places, device=device)
