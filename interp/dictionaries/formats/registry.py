"""`FORMATS`: every layout by name, with the files by which it is known; `read` reads a folder in one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from interp.dictionaries.dictionary import Dictionaries, Dictionary
from interp.dictionaries.formats import circuit_tracer, dictionary_learning, gemma_scope, saelens, sparsify
from interp.dictionaries.formats.folder import Folder
from interp.errors import InterpError, ModelLoadError, SchemaError, UnknownModel, nearest


@dataclass(frozen=True)
class Format:
    """A layout: its name, the files that have to be there for it, and its reader."""

    name: str
    files: tuple[str, ...]
    read: Callable[[Folder], Dictionary | Dictionaries]

    def fits(self, folder: Folder) -> bool:
        """Whether every file is there."""
        return all(folder.file(name) is not None for name in self.files)


FORMATS = {
    f.name: f
    for f in (
        Format("saelens", (saelens.CONFIG, saelens.WEIGHTS), saelens.read),
        Format("sparsify", (sparsify.CONFIG, sparsify.WEIGHTS), sparsify.read),
        Format(
            "dictionary_learning",
            (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS),
            dictionary_learning.read,
        ),
        Format("circuit_tracer", (circuit_tracer.CONFIG,), circuit_tracer.read),
        Format("gemma_scope", (gemma_scope.FIRST,), gemma_scope.read_first),
        Format("gemma_scope_2", (gemma_scope.SECOND,), gemma_scope.read_second),
    )
}


def read(folder: Folder, name: str = "auto") -> Dictionary | Dictionaries:
    """What a folder holds, in a layout by name, or in the one whose files are there.

    Raises:
        ModelLoadError: no such layout, none whose files are there, or contents that do not go together.
    """
    if name != "auto" and name not in FORMATS:
        raise UnknownModel(f"unknown format {name!r} of a dictionary; {nearest(str(name), ('auto', *FORMATS))}")
    form = next((f for f in FORMATS.values() if f.fits(folder)), None) if name == "auto" else FORMATS[name]
    if form is None:
        layouts = "; ".join(f"{f.name}: {', '.join(f.files)}" for f in FORMATS.values())
        pickles = folder.pickles()
        if pickles:
            raise ModelLoadError(
                f"{folder} has no dictionary in safetensors or npz, only {pickles[0]}; a pickle can run code when "
                f"opened, and no known layout has it: convert it ({layouts})"
            )
        raise ModelLoadError(f"{folder} holds no dictionary of a known layout ({layouts})")
    try:
        result = form.read(folder)
    except SchemaError as error:
        raise ModelLoadError(f"{folder}: {error}") from error
    except InterpError:
        raise
    except (TypeError, ValueError, IndexError, AttributeError) as error:  # entries of types that no writer gives
        raise ModelLoadError(f"cannot read {folder} as {form.name}: {type(error).__name__}: {error}") from error
    if isinstance(result, Dictionaries):
        return replace(result, members=tuple(replace(d, format=form.name) for d in result.members))
    return replace(result, format=form.name)
