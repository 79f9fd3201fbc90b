"""`Folder`: the files of a dictionary, here or on the hub, and what is read of them without running any code."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import ModelLoadError, first_line
from interp.files import read_json, read_text
from interp.loading.hooked.files import read_pickle, read_safetensors
from interp.loading.hub import fetch
from interp.zoo import folder as zoo_folder

PICKLES = (".pt", ".pth", ".bin", ".pkl")
ZOO = "zoo:"


@dataclass(frozen=True)
class Folder:
    """Files of one dictionary, or of a set of them.

    Attributes:
        name: the path, or the hub's id with what follows it; some formats say layer and site nowhere else.
        path: where it is here; None on the hub.
        repository, inside, revision: of the hub: id, folder inside it, branch or commit.
        only: the one file that was given, where it was a file.
    """

    name: str
    path: Path | None = None
    repository: str = ""
    inside: str = ""
    revision: str | None = None
    only: str | None = None

    @classmethod
    def of(cls, source: str | os.PathLike[str], *, subfolder: str = "", revision: str | None = None) -> Folder:
        """The folder that a path, a file in it, or a hub id (with a folder behind it, if any) means.

        Raises:
            ModelLoadError: no such folder here.
        """
        name = os.fspath(source)
        if name.startswith(ZOO):
            return cls(name, _of_zoo(name, subfolder))
        path = Path(name).expanduser() / subfolder
        if name.strip() and path.is_dir():
            return cls(str(path.absolute()), path)
        if name.strip() and path.is_file():
            return cls(str(path.absolute()), path.parent, only=path.name)
        parts = [p for p in (*name.split("/"), *subfolder.split("/")) if p]
        if not name.strip() or name.startswith((".", "~", os.sep)) or len(parts) < 2:
            raise ModelLoadError(f"no folder {str(path)!r}; give a folder with a dictionary, or a hub id")
        return cls("/".join(parts), None, "/".join(parts[:2]), "/".join(parts[2:]), revision)

    def __str__(self) -> str:
        """Its name in quotes, for errors."""
        return repr(self.name)

    def file(self, name: str) -> Path | None:
        """A file of the folder, None where there is none of that name."""
        if self.only is not None and name.endswith((".npz", ".safetensors", *PICKLES)) and name != self.only:
            return None
        if self.path is not None:
            return self.path / name if (self.path / name).is_file() else None
        return fetch(self.repository, f"{self.inside}/{name}" if self.inside else name, self.revision)

    def need(self, name: str) -> Path:
        """A file of the folder.

        Raises:
            ModelLoadError: it is not there.
        """
        file = self.file(name)
        if file is None:
            raise ModelLoadError(f"{self} has no {name}")
        return file

    def pickles(self) -> list[str]:
        """Names of pickled files, which are not opened; of a folder here alone."""
        if self.path is None:
            return []
        names = sorted(p.name for suffix in PICKLES for p in self.path.glob(f"*{suffix}"))
        return [self.only] if self.only in names and self.only is not None else names if self.only is None else []

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object; empty where the file is not there.

        Raises:
            ModelLoadError: it is none.
        """
        file = self.file(name)
        if file is None:
            return {}
        return self._mapping(read_json(file, name=f"{name} of {self}", error=ModelLoadError), name)

    def yaml(self, name: str) -> dict[str, Any]:
        """A YAML mapping of plain values.

        Raises:
            ModelLoadError: it is none, or names Python objects.
        """
        import yaml  # late: one format has it

        text = read_text(self.need(name), name=f"{name} of {self}", error=ModelLoadError)
        try:
            data = yaml.safe_load(text)
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            raise ModelLoadError(f"cannot read {name} of {self}: {first_line(error)}") from error
        return self._mapping(data, name)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Tensors of a file by name.

        Raises:
            ModelLoadError: it is damaged, holds Python objects, or something that is no tensor.
        """
        return tensors_of(self.need(name))

    def _mapping(self, data: Any, name: str) -> dict[str, Any]:
        if not isinstance(data, Mapping):
            raise ModelLoadError(f"{name} of {self} holds a {type(data).__name__}, not names and values")
        return dict(data)


def tensors_of(file: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .npz or .pt file by name; see `Folder.tensors`."""
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    if file.suffix == ".npz":
        return _arrays(file)
    content = read_pickle(file, "the state dict alone: torch.save(dictionary.state_dict(), ...)")
    if not isinstance(content, Mapping) or not all(isinstance(x, Tensor) for x in content.values()):
        raise ModelLoadError(f"{str(file)!r} holds no state dict: names and tensors alone")
    return dict(content)


def _arrays(file: Path) -> dict[str, Tensor]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files}
    except ValueError as error:
        if "pickle" in str(error):
            raise ModelLoadError(
                f"{str(file)!r} holds Python objects, which can run code when opened; save arrays of numbers"
            ) from error
        raise ModelLoadError(f"corrupt weights in {str(file)!r}: {first_line(error)}") from error
    except (OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ModelLoadError(f"corrupt weights in {str(file)!r}: {first_line(error)}") from error


def pick(folder: Folder, state: Mapping[str, Tensor], *names: str, optional: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Tensors of a file by name, in one floating-point dtype (that of the first, float32 at least), all accounted for.

    Raises:
        ModelLoadError: one is missing, one has no place in this format, or one is no floating-point number.
    """
    missing = [n for n in names if n not in state]
    if missing:
        raise ModelLoadError(f"{folder} lacks {missing[0]!r}; it holds {', '.join(sorted(state)) or 'nothing'}")
    more = [n for n in state if n not in (*names, *optional)]
    if more:
        raise ModelLoadError(f"{folder} holds {more[0]!r}, which has no place in a dictionary of this kind")
    wrong = [n for n, x in state.items() if not x.is_floating_point()]
    if wrong:
        raise ModelLoadError(
            f"{wrong[0]!r} of {folder} is of {state[wrong[0]].dtype}; floating-point weights are needed"
        )
    dtype = torch.promote_types(state[names[0]].dtype, torch.float32)
    return {n: x.to(dtype).contiguous() for n, x in state.items()}


def value(folder: Folder, config: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """An entry of a configuration, of its declared type.

    Raises:
        ModelLoadError: missing, without a default, or of another type.
    """
    entry = config.get(name, default)
    if entry is None and default is None:
        raise ModelLoadError(f"the configuration of {folder} does not say {name}")
    if not isinstance(entry, kind) or (kind is int and isinstance(entry, bool)):
        raise ModelLoadError(f"{name} in the configuration of {folder} is {entry!r:.40}; expected {kind.__name__}")
    return entry


def _of_zoo(name: str, subfolder: str) -> Path:
    """The folder of a dictionary that a zoo model comes with: zoo:default/resid2."""
    model, _, inside = name.removeprefix(ZOO).partition("/")
    where = zoo_folder(model)
    shelf = None if where is None else where / "dictionaries"
    names = [] if shelf is None else sorted(p.name for p in shelf.glob("*") if p.is_dir())
    inside = "/".join(part for part in (inside, subfolder) if part)
    if shelf is None or inside not in names:
        offer = f"it has {', '.join(f'{ZOO}{model}/{n}' for n in names)}" if names else "it has none"
        raise ModelLoadError(f"zoo model {model!r} has no dictionary {inside!r}: {offer}")
    return shelf / inside
