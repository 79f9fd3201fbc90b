"""Models with known mechanisms: planted by code, or trained here and shipped with the package.

>>> model, tokenizer = load("planted-induction")
>>> truth("planted-induction").roles["induction"]
((1, 7),)
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from interp.errors import ModelLoadError
from interp.zoo.truth import Edge, Truth

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["Edge", "Entry", "Truth", "entry", "folder", "load", "names", "truth"]


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue."""

    name: str
    summary: str
    kind: Literal["trained", "planted"]
    """"trained": a folder of weights in the package. "planted": built by code, with a `Truth`."""


_ENTRIES = (
    Entry(
        "default",
        "3-layer Llama trained to copy repeated random words: previous-token and induction heads",
        "trained",
    ),
    Entry(
        "planted-induction",
        "2-layer Llama with one previous-token head and one induction head written into it",
        "planted",
    ),
    Entry(
        "planted-duplicate",
        "2-layer Llama with one duplicate-token head hidden among random heads",
        "planted",
    ),
    Entry(
        "planted-sink",
        "2-layer Llama with one first-token sink, and a massive activation at <bos> in its last layer",
        "planted",
    ),
    Entry(
        "planted-two-hop",
        "3-layer GPT-2 with an IOI-like circuit: duplicate, inhibition and mover heads, and its edges",
        "planted",
    ),
    Entry(
        "planted-all",
        "Llama with every mechanism of `interp.zoo.factory` at once, each with its own task",
        "planted",
    ),
    Entry(
        "positional-shortcut",
        "1-layer Llama that only looks 23 back: the false positive of an induction test at T = 24",
        "trained",
    ),
)


def names() -> tuple[str, ...]:
    """Names of all models, in catalogue order."""
    return tuple(known.name for known in _ENTRIES)


def entry(name: str) -> Entry:
    """The catalogue's line for `name`; ModelLoadError where there is none."""
    for known in _ENTRIES:
        if known.name == name:
            return known
    close = get_close_matches(name, names(), n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ModelLoadError(f"no zoo model is called {name!r}, valid names: {', '.join(names())}{hint}")


def folder(name: str) -> Path | None:
    """Hugging Face folder of a trained model, inside the package; None for a planted one."""
    if entry(name).kind == "planted":
        return None
    path = Path(__file__).parent / "models" / name
    if not (path / "model.safetensors").is_file():
        raise ModelLoadError(
            f"the weights of zoo model {name!r} are missing from the installed package; "
            f"`python -m interp.zoo.train {name} --out {path.name}` trains them again"
        )
    return path


def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model, in float32 and eval mode on the CPU, and its tokenizer; never uses the network."""
    where = folder(name)
    if where is None:
        return _build(name)[:2]
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    model = LlamaForCausalLM.from_pretrained(where, dtype="float32", local_files_only=True)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(where, local_files_only=True)


def truth(name: str) -> Truth | None:
    """What is known of a planted model by construction; None for a trained one."""
    return _build(name)[2] if entry(name).kind == "planted" else None


def _build(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Truth]:
    from interp.zoo import factory, planted

    if name == "planted-induction":
        return planted.planted_induction()
    built = {
        "planted-duplicate": lambda: factory.plant([factory.DuplicateToken()]),
        "planted-sink": lambda: factory.plant([factory.FirstTokenSink(), factory.MassiveActivation(layer=-1)]),
        "planted-two-hop": lambda: factory.plant([factory.TwoHop()], architecture="gpt2"),
        "planted-all": lambda: factory.plant(factory.ALL),
    }[name]()
    return built.model, built.tokenizer, built.truth
