"""Activations of many prompts on disk: written while the model runs, within a bound on memory, and read as needed.

`capture_to` runs prompts a few at a time and writes their activations as safetensors files beside an index. A run that
was interrupted goes on where it stopped. `Store` reads them: nothing is in memory before it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.environment import human_bytes, versions
from interp.errors import BackendError, SchemaError, SiteError, nearest
from interp.files import WRITER, atomic_write, read_json
from interp.model import Model
from interp.sites import Site

INDEX = "index.json"
SCHEMA = 1
MAX_BYTES = 2**28


def on_cpu(x: Tensor) -> Tensor:
    """Reducer that moves an activation off the accelerator at once: `capture={"resid_post": on_cpu}`.

    A head narrowed out of a larger tensor is copied, so that the rest is let go.
    """
    return _own(x).to("cpu")


def _own(x: Tensor) -> Tensor:
    """The tensor in memory of its own size."""
    whole = x.is_contiguous() and x.untyped_storage().nbytes() == x.nbytes
    return x if whole else x.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True, eq=False)
class Store:
    """Activations in a folder that `capture_to` wrote; those of one batch of prompts are read at a time.

    Attributes:
        folder: where. index: provenance, sites, and the batches of every file.
    """

    folder: Path
    index: dict[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Store:
        """Activations that `capture_to` wrote to a folder.

        Raises:
            SchemaError: no index there, or one that this version cannot read.
        """
        path = Path(folder)
        index = read_json(path / INDEX, name=f"the {INDEX} of {os.fspath(folder)!r}", error=SchemaError)
        schema = index.get("schema_version") if isinstance(index, dict) else None
        if schema != SCHEMA:
            raise SchemaError(
                f"{os.fspath(folder)!r} has schema {schema}, or was not written by capture_to; this reads {SCHEMA}"
            )
        return cls(path, index)

    def __len__(self) -> int:
        """Batches stored."""
        return sum(len(f["batches"]) for f in self.index["files"])

    @property
    def complete(self) -> bool:
        """Whether all prompts were run; a store of an interrupted capture holds the first of them."""
        return bool(self.index["complete"])

    @property
    def provenance(self) -> dict[str, Any]:
        """Model, sites, versions and time."""
        return self.index["provenance"]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites stored of each batch."""
        return tuple(map(Site.parse, self.index["sites"]))

    def batch(self, number: int) -> Batch:
        """Prompts of a batch."""
        return Batch(self._read(number, "ids"), self._read(number, "mask").bool())

    def get(self, site: Site | str, number: int) -> Tensor:
        """A site's activation in one batch.

        Raises:
            SiteError: a site that was not captured.
        """
        return self._read(number, self._key(site))

    def batches(self, site: Site | str) -> Iterator[tuple[Batch, Tensor]]:
        """Each batch in turn, with a site's activation in it."""
        name = self._key(site)
        for number in range(len(self)):
            yield self.batch(number), self._read(number, name)

    def tokens(self, site: Site | str) -> Tensor:
        """A site's activation at every real token of every prompt, [token ...]; not for patterns or one position."""
        key = Site.parse(self._key(site))
        if key.kind == "pattern" or key.position is not None:
            raise SiteError(f"{key}: has no position axis to list tokens along; read it with `batches`")
        return torch.cat([x[batch.mask] for batch, x in self.batches(key)])

    def _key(self, site: Site | str) -> str:
        name = str(Site.parse(site) if isinstance(site, str) else site)
        if name not in self.index["sites"]:
            raise SiteError(f"{name!r} was not captured; {nearest(name, self.index['sites'])}")
        return name

    def _read(self, number: int, name: str) -> Tensor:
        for file in self.index["files"]:
            if number in file["batches"]:
                with safe_open(self.folder / file["name"], framework="pt") as archive:
                    return archive.get_tensor(f"{number}/{name}")
        raise SchemaError(f"no batch {number}; {len(self)} are stored, numbered from 0")


def capture_to(
    model: Model,
    prompts: Iterable[Prompts],
    sites: Sequence[Site | str],
    folder: str | os.PathLike[str],
    *,
    max_bytes: int = MAX_BYTES,
    dtype: torch.dtype | None = None,
) -> Store:
    """Run prompts and write their activations to a folder; a folder that holds the first of them is continued.

    Args:
        model: any backend.
        prompts: batches, in any form that `Model.run` takes. One whose activations exceed `max_bytes` is run in parts.
        sites: what to keep; the pass ends after the last layer among them.
        folder: made if need be. It gets `index.json` (provenance, and what is where) and files of about `max_bytes`.
        max_bytes: bound on the activations held in memory at a time.
        dtype: of what is written; as the model gives it unless said.

    Raises:
        BackendError: one prompt alone exceeds `max_bytes`.
        SchemaError: the folder holds activations of another model, other sites or other prompts.

    >>> import interp, tempfile
    >>> from interp.storage import capture_to
    >>> model = interp.load("zoo:planted-induction")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = capture_to(model, [[[1, 2, 3]], [[4, 5]]], ["L1.z"], folder)
    ...     store.tokens("L1.z").shape[0]
    5
    """
    site_list = [
        Site.parse(s) if isinstance(s, str) else s for s in ([sites] if isinstance(sites, str | Site) else sites)
    ]
    keys = [s if layer is None else s.at(layer) for s in site_list for layer in model.info.layers_of(s)]
    if not keys:
        raise SiteError("no sites to capture")
    layers = [None if s.first is None and s.kind != "embed" else s.first or 0 for s in keys]
    stop = None if None in layers else max(layer for layer in layers if layer is not None)
    writer = _Writer(model, keys, Path(folder), dtype)
    parts = (part for tokens in prompts for part in _parts(model, keys, model.batch(tokens), max_bytes))
    for number, batch in enumerate(parts):
        if writer.holds(number, batch):
            continue
        if writer.size + _bytes(model, keys, batch) > max_bytes:
            writer.flush()
        run = model.run(batch, capture=dict.fromkeys(keys, on_cpu), stop=stop)
        writer.add(number, batch, {str(s): run.acts[s] for s in keys})
    writer.flush(complete=True)
    writer.meet()
    return Store.open(folder)


def _parts(model: Model, keys: Sequence[Site], batch: Batch, max_bytes: int) -> Iterator[Batch]:
    """The rows of a batch in pieces within the bound."""
    rows, n = batch.ids.shape
    each = _bytes(model, keys, batch.select(slice(None, 1)))
    if each > max_bytes:
        raise BackendError(
            f"one prompt of {n} tokens takes {human_bytes(each)} at {len(keys)} sites, above max_bytes = "
            f"{human_bytes(max_bytes)}; raise it, or name fewer sites, heads or positions"
        )
    step = max(1, max_bytes // max(1, each))
    for first in range(0, rows, step):
        yield batch.select(slice(first, first + step))


def _bytes(model: Model, keys: Sequence[Site], batch: Batch) -> int:
    rows, n = batch.ids.shape
    return sum(model.info.activation_bytes(s, (rows, n)) for s in keys)


class _Writer:
    """Gathers batches and writes them as files, the index after each: what it names exists whole."""

    def __init__(self, model: Model, keys: Sequence[Site], folder: Path, dtype: torch.dtype | None) -> None:
        self.model, self.folder, self.dtype = model, folder, dtype
        self.buffer: dict[str, Tensor] = {}
        self.numbers: list[int] = []
        self.hashes: list[str] = []
        about = {"model": model.info.as_dict(), "backend": model.backend, "dtype": str(dtype or "as the model's")}
        self.index: dict[str, Any] = {
            "schema_version": SCHEMA,
            "provenance": json.loads(json.dumps(about)) | {"versions": versions(), "time_utc": _now()},
            "sites": [str(s) for s in keys],
            "prompts_sha256": [],
            "files": [],
            "complete": False,
        }
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / INDEX).exists():
            self._continue(Store.open(folder).index)
        self.meet()

    def meet(self) -> None:
        """Wait for the other processes of a tensor-parallel model: the first writes, all read."""
        self.model.agree((len(self.index["prompts_sha256"]),), "numbers of stored batches")

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(x.nbytes for x in self.buffer.values())

    def _continue(self, before: dict[str, Any]) -> None:
        for what in ("model", "backend", "dtype"):
            old, new = before["provenance"].get(what), self.index["provenance"][what]
            if old != new:
                raise SchemaError(f"{str(self.folder)!r} holds activations of {what} {old}, not {new}; choose another")
        if before["sites"] != self.index["sites"]:
            raise SchemaError(f"{str(self.folder)!r} holds sites {before['sites']}, not {self.index['sites']}")
        self.index = before

    def holds(self, number: int, batch: Batch) -> bool:
        """Whether a batch is on disk already.

        Raises:
            SchemaError: another batch of that number is.
        """
        hashes = self.index["prompts_sha256"]
        if number >= len(hashes):
            return False
        if hashes[number] != _sha256(batch):
            raise SchemaError(
                f"{str(self.folder)!r} holds other prompts (batch {number} differs); choose another folder"
            )
        return True

    def add(self, number: int, batch: Batch, acts: dict[str, Tensor]) -> None:
        """Hold a batch until the next file is written."""
        things = {"ids": batch.ids.cpu(), "mask": batch.mask.cpu().to(torch.uint8)}
        things |= {name: x.detach().to(self.dtype or x.dtype) for name, x in acts.items()}
        pointers: set[int] = set()
        for name, x in things.items():  # one tensor may be two sites; in a file each has its own memory
            own = x.clone() if x.data_ptr() in pointers else _own(x)
            pointers.add(own.data_ptr())
            self.buffer[f"{number}/{name}"] = own
        self.numbers.append(number)
        self.hashes.append(_sha256(batch))

    def flush(self, *, complete: bool = False) -> None:
        """Write what is held to a new file, then the index."""
        if self.numbers:
            name = f"{len(self.index['files']):05d}.safetensors"
            self._write(name, lambda path: save_file(self.buffer, path, metadata={"writer": WRITER}))
            self.index["files"].append({"name": name, "batches": self.numbers, "bytes": self.size})
            self.index["prompts_sha256"] += self.hashes
            self.buffer, self.numbers, self.hashes = {}, [], []
        self.index["complete"] = complete
        text = json.dumps(self.index, indent=1)
        self._write(INDEX, lambda path: path.write_text(text, encoding="utf-8"))

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        """Let a file appear whole or not at all."""
        if self.model.rank > 0:
            return
        atomic_write(self.folder / name, write)


def _sha256(batch: Batch) -> str:
    digest = hashlib.sha256(str(tuple(batch.ids.shape)).encode())
    for x in (batch.ids, batch.mask):
        digest.update(x.cpu().numpy().tobytes())
    return digest.hexdigest()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
