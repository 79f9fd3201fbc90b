"""Streams of activations to train on: of a store on disk, of a model as it runs, or of a planted dictionary.

A stream is cut into pieces, which are read in an order drawn for each epoch; as many as fill a buffer are shuffled
together and given out in batches. In memory is one buffer. What a step sees depends on the seed and on the pieces
alone, and where a stream stands is two numbers: an interrupted run reads its buffer again and goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.dictionaries.fit import FIRST
from interp.dictionaries.training.settings import generator
from interp.errors import SchemaError
from interp.model import Model
from interp.sites import PER_HEAD, UNLAYERED, Site
from interp.storage import Store

BUFFER = 2**15  # tokens
LENGTH, ROWS = 128, 32  # of a piece of a model's run, where prompts are texts


@dataclass(frozen=True)
class Activations:
    """Activations of some tokens: what each member reads, and what is at each site that is written to.

    Attributes:
        x: [token d_in] by member. y: [token d_out] by site. progress: how much of the run is done, 0 to 1.
    """

    x: tuple[Float[Tensor, "token d_in"], ...]
    y: tuple[Float[Tensor, "token d_out"], ...]
    progress: float = 0.0

    def __len__(self) -> int:
        """Tokens."""
        return len(self.x[0])

    def at(self, index: Tensor | slice) -> Activations:
        """Some of the tokens; an activation that is read and written is taken once."""
        taken = {id(x): x[index] for x in (*self.x, *self.y)}
        return Activations(tuple(taken[id(x)] for x in self.x), tuple(taken[id(x)] for x in self.y))

    @classmethod
    def joined(cls, parts: Sequence[Activations]) -> Activations:
        """Tokens of several, one after the other."""
        first = parts[0]
        columns = list(zip(*((*p.x, *p.y) for p in parts), strict=True))
        whole = {id(x): torch.cat(column) for x, column in zip((*first.x, *first.y), columns, strict=True)}
        return cls(tuple(whole[id(x)] for x in first.x), tuple(whole[id(x)] for x in first.y))


@runtime_checkable
class Pieces(Protocol):
    """Where activations come from."""

    @property
    def sites_in(self) -> tuple[Site | None, ...]:
        """By member."""
        ...

    @property
    def sites_out(self) -> tuple[Site | None, ...]:
        """Written to, by number."""
        ...

    @property
    def outs(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the sites that each member writes to."""
        ...

    @property
    def identity(self) -> str:
        """What the data are, so that an interrupted run is not gone on with on others."""
        ...

    def __len__(self) -> int:
        """Pieces; 0 for as many as are asked for."""
        ...

    def read(self, number: int) -> Activations:
        """Activations of a piece, the same whenever it is read."""
        ...


class Stream:
    """Batches of pieces. Its memory is where the buffer begins, in pieces, and the tokens of it given out."""

    def __init__(self, pieces: Pieces, *, batch_size: int, steps: int, seed: int = 0, buffer: int = BUFFER) -> None:
        self.pieces, self.batch_size, self.steps, self.seed = pieces, batch_size, steps, seed
        self.capacity = max(buffer, batch_size)
        self.start = self.offset = 0
        self.held: tuple[int, int, Activations] | None = None

    def buffer(self, start: int) -> tuple[int, Activations]:
        """(the piece after it, the buffer that begins with a piece), its tokens in the order drawn for it.

        Raises:
            SchemaError: fewer tokens than a batch.
        """
        if self.held is None or self.held[0] != start:
            self.held = None  # let go before the next is read
            parts: list[Activations] = []
            number, n = start, len(self.pieces)
            while sum(map(len, parts)) < self.capacity and not (n and number - start >= n):
                parts.append(self.pieces.read(self._piece(number)))
                number += 1
            whole = Activations.joined(parts)
            if len(whole) < self.batch_size:
                raise SchemaError(
                    f"{len(whole)} tokens are fewer than a batch of {self.batch_size}; give more prompts, or lower it"
                )
            order = torch.randperm(len(whole), generator=generator("order", self.seed, start))
            self.held = (start, number, whole.at(order.to(whole.x[0].device)))
        return self.held[1], self.held[2]

    def batch(self, step: int) -> Activations:
        """The next tokens; what is left of a buffer behind its last whole batch is let go."""
        following, held = self.buffer(self.start)
        if self.offset + self.batch_size > len(held):
            self.start, self.offset = following, 0
            _, held = self.buffer(self.start)
        batch = held.at(slice(self.offset, self.offset + self.batch_size))
        self.offset += self.batch_size
        return Activations(batch.x, batch.y, step / self.steps)

    def advance(self, step: int, parts: Mapping[str, Tensor]) -> None:
        """The losses change nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"start": self.start, "offset": self.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.start, self.offset = state["start"], state["offset"]

    def _piece(self, number: int) -> int:
        n = len(self.pieces)
        if not n:
            return number
        epoch, place = divmod(number, n)
        return int(torch.randperm(n, generator=generator("epoch", self.seed, epoch))[place])


def passages(
    site_in: Site | str | Sequence[Site | str], site_out: Site | str | Sequence[Site | str] | None
) -> tuple[tuple[Site, ...], tuple[Site, ...], tuple[tuple[int, ...], ...]]:
    """(sites read, sites written to, numbers of those of each member).

    One site in and none or one out: an autoencoder or a transcoder. Several in and as many out: a cross-layer
    transcoder, whose member i writes to the outs from i on.

    Raises:
        SchemaError: several sites that do not pair up.
    """
    ins = _sites(site_in)
    if site_out is None:
        if len(ins) > 1:
            raise SchemaError("several sites to read, and none to write to: autoencoders are trained one at a time")
        return ins, ins, ((0,),)
    last = _sites(site_out)
    if len(ins) != len(last):
        raise SchemaError(
            f"{len(ins)} sites are read and {len(last)} written to; a cross-layer transcoder has one each a layer"
        )
    return ins, last, tuple(tuple(range(i, len(last))) for i in range(len(last)))


def _sites(given: Site | str | Sequence[Site | str]) -> tuple[Site, ...]:
    several = [given] if isinstance(given, Site | str) else given
    sites = tuple(Site.parse(s) if isinstance(s, str) else s for s in several)
    if not sites:
        raise SchemaError("no site to read; name one, such as 'L2.resid_post'")
    for site in sites:
        one = site.first is not None and site.first == site.last
        if site.position is not None or not (one or site.kind in UNLAYERED):
            raise SchemaError(f"{site}: a dictionary is of one layer, and of every position")
    return sites


class _Sited:
    """What pieces of sites share."""

    def __init__(self, places: tuple, first: int, device: torch.device | str | None) -> None:
        self.sites_in, self.sites_out, self.outs = places
        self.first, self.device = first, device

    @property
    def sites(self) -> list[Site]:
        """Read or written, each once."""
        return list(dict.fromkeys([*self.sites_in, *self.sites_out]))

    def gathered(self, batch: Batch, acts: Callable[[Site], Tensor]) -> Activations:
        """Tokens of a batch, without the first of each prompt."""
        keep = batch.mask & (batch.positions >= self.first)
        flat: dict[Site, Tensor] = {}
        for site in self.sites:
            x = acts(site)
            x = x.flatten(2) if site.kind in PER_HEAD and site.head is None else x
            if x.ndim != 3:
                raise SchemaError(
                    f"{site}: activations of shape {tuple(x.shape)}; a dictionary reads one vector a token"
                )
            flat[site] = x[keep.to(x.device)].to(self.device or x.device, torch.float32)
        return Activations(tuple(flat[s] for s in self.sites_in), tuple(flat[s] for s in self.sites_out))


class StoredPieces(_Sited):
    """Batches of a store that `interp.storage.capture_to` wrote, read as they are needed."""

    def __init__(
        self, store: Store, places: tuple, *, first: int = FIRST, device: torch.device | str | None = None
    ) -> None:
        super().__init__(places, first, device)
        self.store = store
        if not store.complete:
            raise SchemaError(f"{str(store.folder)!r} holds an unfinished capture; run capture_to again, it goes on")
        hashes = hashlib.sha256("".join(store.index["prompts_sha256"]).encode()).hexdigest()
        self.identity = f"store {hashes[:16]} of {store.provenance['model'].get('name')}, first {first}"

    def __len__(self) -> int:
        """Batches stored."""
        return len(self.store)

    def read(self, number: int) -> Activations:
        """Activations of a stored batch."""
        return self.gathered(self.store.batch(number), lambda site: self.store.get(site, number))


class ModelPieces(_Sited):
    """Runs of a model, one piece each, up to the last layer among the sites.

    `prompts`: texts or lists of ids, cut into stretches; or a function from a number to the prompts of one run, the
    same whenever it is called, of which there is no end.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Prompts] | Callable[[int], Prompts],
        places: tuple,
        *,
        first: int = FIRST,
        device: torch.device | str | None = None,
        length: int = LENGTH,
    ) -> None:
        super().__init__(places, first, device)
        self.model, self.prompts = model, prompts
        self.rows = [] if callable(prompts) else _rows(model, prompts, min(length, model.info.context or length))
        layers = [s.first for s in self.sites]
        self.stop = None if None in layers else max(s for s in layers if s is not None)
        data = str(self.rows) if self.rows else self._batch(0).ids.tolist()
        digest = hashlib.sha256(str(data).encode()).hexdigest()
        self.identity = f"prompts {digest[:16]} of {model.info.name}, first {first}, length {length}"

    def __len__(self) -> int:
        """Runs of rows; 0 where a function gives prompts without end."""
        return (len(self.rows) + ROWS - 1) // ROWS

    def _batch(self, number: int) -> Batch:
        if callable(self.prompts):
            return self.model.batch(self.prompts(number))
        return self.model.batch(self.rows[number * ROWS : (number + 1) * ROWS])

    @torch.no_grad()
    def read(self, number: int) -> Activations:
        """Activations of a run."""
        batch = self._batch(number)
        run = self.model.run(batch, capture=self.sites, stop=self.stop)
        return self.gathered(batch, lambda site: run[site])


def _rows(model: Model, prompts: Sequence[Prompts], length: int) -> list[list[int]]:
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        raise SchemaError("prompts to train on are a list of texts or of token ids, or a function that gives some")
    rows = []
    for text in prompts:
        batch = Batch.of(text, model.tokenizer)
        for ids, mask in zip(batch.ids, batch.mask, strict=True):
            whole = ids[mask].tolist()
            rows += [whole[i : i + length] for i in range(0, len(whole), length)]
    return rows
