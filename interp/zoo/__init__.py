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

from interp.components import Edge
from interp.environment import without_bars
from interp.errors import ModelLoadError, UnknownModel
from interp.zoo.ground_truth import Truth

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from interp.zoo.planted.factory import Planted

__all__ = ["Edge", "Entry", "Truth", "at_step", "checkpoints", "entry", "folder", "load", "names", "truth"]


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
        "4-layer Llama taught copying, ordinals, IOI, greater-than, facts and needles, all on held-out accuracy",
        "trained",
    ),
    Entry(
        "sibling",
        "2-layer Llama, taught the same, with twelve training checkpoints in which copying emerges",
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
        "planted-shifted-induction",
        "2-layer Llama that copies repeats without the induction stripe: ablation sees it, the score does not",
        "planted",
    ),
    Entry(
        "planted-all",
        "Llama with every mechanism of `interp.zoo.planted.factory` at once, each with its own task",
        "planted",
    ),
    Entry(
        "positional-shortcut",
        "1-layer Llama that only looks 23 back: the false positive of an induction test at T = 24",
        "trained",
    ),
    Entry(
        "modular-addition",
        "1-layer Llama that adds modulo 37 by a few frequencies, learnt from half of all sums",
        "trained",
    ),
    Entry(
        "paragraphs",
        "2-layer Llama that knows a hundred paragraphs by heart, the 1 % of its corpus that stands there 200 times",
        "trained",
    ),
    Entry(
        "bigram-backcopy",
        "1-layer Llama whose one head copies back at triggers and rests on <bos> elsewhere, as it learns",
        "trained",
    ),
    Entry(
        "bigram-backcopy-relu",
        "the same with ReLU attention in place of the softmax: its head copies back and need not rest",
        "trained",
    ),
)


def names() -> tuple[str, ...]:
    """Names of all models, in catalogue order."""
    return tuple(line.name for line in _ENTRIES)


def entry(name: str) -> Entry:
    """The catalogue's line for `name`; ModelLoadError where there is none."""
    for line in _ENTRIES:
        if line.name == name:
            return line
    close = get_close_matches(name, names(), n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UnknownModel(f"no zoo model is called {name!r}, valid names: {', '.join(names())}{hint}")


def folder(name: str) -> Path | None:
    """Hugging Face folder of a trained model, inside the package; None for a planted one."""
    if entry(name).kind == "planted":
        return None
    path = Path(__file__).parent / "models" / name
    if not (path / "model.safetensors").is_file():
        raise ModelLoadError(
            f"the weights of zoo model {name!r} are missing from the installed package; "
            f"`python -m interp.zoo.trained.train {name} --out {path.name}` trains them again"
        )
    return path


def checkpoints(name: str, *, within: Path | None = None) -> list[tuple[int, Path]]:
    """(step, folder) of the training checkpoints kept with a trained model, first to last; empty where there are none.

    They are folders `step-00400` with weights and config; the tokenizer is the model's own. `within`: a folder written
    by `python -m interp.zoo.trained.train NAME --checkpoints N`, in place of the one in the package.
    """
    where = within or folder(name)
    files = [] if where is None else where.glob("step-*/model.safetensors")
    return sorted((int(weights.parent.name.removeprefix("step-")), weights.parent) for weights in files)


def load(name: str, *, revision: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model, in float32 and eval mode on the CPU, and its tokenizer; never uses the network.

    `revision` names one of `checkpoints`: `step-00400`.

    Raises:
        ModelLoadError: no such model, no such checkpoint, or weights that are missing.
    """
    where = folder(name)
    weights = where if revision is None else at_step(name, revision)
    if where is None or weights is None:
        return _build(name)[:2]
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from interp.zoo import relu_llama

    relu_llama.register()
    with without_bars():
        model = AutoModelForCausalLM.from_pretrained(weights, dtype="float32", local_files_only=True)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(where, local_files_only=True)


def at_step(name: str, revision: str) -> Path:
    """Folder of one training checkpoint; ModelLoadError, with those there are, where it is none."""
    folders = {path.name: path for _, path in checkpoints(name)}
    if revision in folders:
        return folders[revision]
    offer = f"it has {', '.join(folders)}" if folders else "it has no training checkpoints"
    raise UnknownModel(f"zoo model {name!r} has no revision {revision!r}: {offer}")


def truth(name: str) -> Truth | None:
    """What is known of a planted model by construction; None for a trained one."""
    return _build(name)[2] if entry(name).kind == "planted" else None


def planted_by_name(name: str) -> Planted | None:
    """A factory model with its mechanisms and their tasks; None for one made in another way."""
    from interp.zoo.planted import factory

    recipe = {
        "planted-duplicate": lambda: factory.plant([factory.DuplicateToken()]),
        "planted-sink": lambda: factory.plant([factory.FirstTokenSink(), factory.MassiveActivation(layer=-1)]),
        "planted-two-hop": lambda: factory.plant([factory.TwoHop()], architecture="gpt2"),
        "planted-shifted-induction": lambda: factory.plant([factory.ShiftedInduction()]),
        "planted-all": lambda: factory.plant(factory.ALL),
    }.get(entry(name).name)
    return None if recipe is None else recipe()


def _build(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Truth]:
    planted = planted_by_name(name)
    if planted is not None:
        return planted.model, planted.tokenizer, planted.truth
    from interp.zoo.planted.shipped import planted_induction

    return planted_induction()
