"""`plant`: a model with the given mechanisms in known places, and nothing else.

>>> planted = plant([Induction(), FirstTokenSink()], architecture="gpt2", seed=3)
>>> sorted(planted.truth.roles)
['induction', 'previous_token', 'sink']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from interp.components import EMBED, Edge, head_name, mlp_name
from interp.zoo.ground_truth import Truth
from interp.zoo.planted.mechanisms import (
    AntiCopy,
    Copy,
    Dated,
    DuplicateToken,
    Fact,
    FirstTokenSink,
    Induction,
    MassiveActivation,
    Mechanism,
    PreviousToken,
    Retrieval,
    ShiftedInduction,
    Successor,
    Switch,
    Task,
    Told,
    TwoHop,
    Vocabulary,
)
from interp.zoo.planted.mechanisms.base import EXPECTED_PERIOD, Place
from interp.zoo.planted.mechanisms.placement import depths, head_places
from interp.zoo.planted.mechanisms.render import ARCHITECTURES, Architecture, render
from interp.zoo.planted.mechanisms.sketch import RATES, Shape, Sketch, planes
from interp.zoo.planted.shipped import Subspaces

ALL: tuple[Mechanism, ...] = (
    PreviousToken(),
    Induction(),
    DuplicateToken(),
    Copy(),
    AntiCopy(),
    FirstTokenSink(),
    Successor(),
    Retrieval(),
    Fact(),
    Told(),
    Dated(),
    TwoHop(),
    MassiveActivation(layer=-1),
)
"""Every mechanism once."""
STAND_INS: tuple[Mechanism, ...] = (ShiftedInduction(),)
"""Mechanisms that do the task of one in `ALL` in another way: beside it, neither alone would be needed."""
SWITCHES: tuple[Mechanism, ...] = (Switch(),)
"""Mechanisms that change what another in `ALL` says: planted by name, beside none but what they need."""
SUPPLIERS: Mapping[str, Mechanism] = {"previous_token": PreviousToken(), "fact": Fact()}
"""What is added where a mechanism needs it and the caller did not list it."""
WORDS = 48
"""Words of a vocabulary where no mechanism needs more."""
SPARE = 32
"""Dimensions of the stream that no mechanism uses."""


@dataclass(frozen=True)
class PlantedRole:
    """Heads or MLP neurons that play one role: what is zeroed together."""

    name: str
    heads: tuple[Place, ...] = ()
    neurons: tuple[Place, ...] = ()
    """(layer, neuron) pairs."""


@dataclass(frozen=True, eq=False)
class Planted:
    """A finished model, its tokenizer and what is true of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    truth: Truth
    mechanisms: tuple[Mechanism, ...]
    """As written, added ones included."""
    vocab: Vocabulary
    d_mlp: int
    """Neurons of each MLP."""

    def heads(self, name: str) -> tuple[Place, ...]:
        """All heads of a mechanism's own roles."""
        slots = [slot.role for m in self.mechanisms if m.name == name for slot in m.slots]
        return tuple(dict.fromkeys(where for role in slots for where in self.truth.roles[role]))

    def roles(self, name: str) -> tuple[PlantedRole, ...]:
        """All that the mechanism needs, role by role: its heads, its neurons, and the heads of those it reads from."""
        names = {name, *(supplier for m in self.mechanisms if m.name == name for supplier in m.needs)}
        members = [m for m in self.mechanisms if m.name in names]
        role_names = dict.fromkeys(slot.role for m in members for slot in m.slots)
        tables = dict.fromkeys(m.table for m in members if m.table)
        return (
            *(PlantedRole(role, heads=self.truth.roles[role]) for role in role_names),
            *(PlantedRole(role, neurons=self.truth.neurons[role]) for role in tables),
        )

    def inert(self, *, seed: int) -> tuple[PlantedRole, ...]:
        """A random head and a layer's random neurons, both drawn by the seed from those that no mechanism uses."""
        generator = torch.Generator().manual_seed(seed)
        config = self.model.config
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        busy_heads = {where for places in self.truth.roles.values() for where in places}
        free = [(i, h) for i in range(layers) for h in range(heads) if (i, h) not in busy_heads]
        busy_neurons = {where for places in self.truth.neurons.values() for where in places}
        layer = int(torch.randint(layers, (), generator=generator))
        neurons = tuple((layer, i) for i in range(self.d_mlp) if (layer, i) not in busy_neurons)
        head = free[int(torch.randint(len(free), (), generator=generator))]
        return PlantedRole("inert_head", heads=(head,)), PlantedRole("inert_neurons", neurons=neurons)

    def task(self, name: str, *, seed: int, n: int = 64) -> Task:
        """Fresh prompts that need the mechanism called `name`; ValueError where it has none."""
        for mechanism in self.mechanisms:
            task = mechanism.task(self.vocab, seed=seed, n=n) if mechanism.name == name else None
            if task is not None:
                return task
        raise ValueError(f"no mechanism called {name!r} with a task is planted: {[m.name for m in self.mechanisms]}")


@torch.no_grad()
def plant(
    mechanisms: Sequence[Mechanism],
    *,
    architecture: Architecture = "llama",
    seed: int = 0,
    n_layers: int | None = None,
    n_heads: int = 8,
    n_words: int | None = None,
    d_mlp: int = 64,
    context: int = 128,
    noise: float = 1.0,
) -> Planted:
    """A model with exactly these mechanisms, among random heads and MLP neurons.

    The seed draws the places (of mechanisms without `at`) and all random weights; the same call
    gives the same bytes. float32, eval mode, on the CPU. `noise` scales what random heads and neurons write: at 0
    they attend as before and write nothing, so that their effect is exactly 0. There are 48 words, or as many as the
    mechanisms speak of, unless `n_words` says otherwise. Architectures:
      llama         RMSNorm, rotary positions, gated SiLU MLP;
      llama-gqa     the same with two query heads per key-value head;
      llama-nonorm  the same with norms that are the identity: linear but for the soft-max and the MLP;
      gpt2          LayerNorm, learned positions, GELU MLP, every dimension twice with opposite signs.

    Raises:
        ValueError: unknown architecture, places that clash or run out, a vocabulary too small.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}, valid: {', '.join(ARCHITECTURES)}")
    all_mechanisms = _with_suppliers(mechanisms)
    vocab = Vocabulary(max([WORDS, *(m.words() for m in all_mechanisms)]) if n_words is None else n_words)
    n_kv_heads = n_heads // 2 if architecture == "llama-gqa" else n_heads
    if n_layers is None:
        # Enough for the longest chain, and for half of the key-value heads to stay random.
        earliest, _ = depths(all_mechanisms)
        n_layers = max(2, -(-len(earliest) * 2 // n_kv_heads), *(layer + 1 for layer in earliest.values()))
    generator = torch.Generator().manual_seed(seed)
    placement = head_places(
        all_mechanisms, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, generator=generator
    )

    massive = [m for m in all_mechanisms if isinstance(m, MassiveActivation)]
    if len(massive) > 1:  # they share a dimension, and `<bos>` could not be recognised behind several
        raise ValueError(f"{len(massive)} massive activations; there can be one")
    has_norm = architecture != "llama-nonorm"
    parts, d_model = _subspaces(all_mechanisms, vocab, learned=architecture == "gpt2", n_heads=n_heads)
    shape = Shape(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_model=d_model,
        d_head=2 * d_model // n_heads if architecture == "gpt2" else 2 * planes(vocab.n_words),
        d_mlp=d_mlp + sum(m.neurons() for m in all_mechanisms),
        context=context,
        learned=architecture == "gpt2",
    )
    sketch = Sketch.blank(shape, vocab, parts, after_massive=massive[0].behind_norm() if massive and has_norm else None)
    sketch.add_noise(generator=generator, amount=noise)
    sketch.to_logits("copied", vocab.words)  # of a model without mechanisms as well: random heads say something there
    neurons: dict[str, tuple[Place, ...]] = {}
    for mechanism, places in zip(all_mechanisms, placement, strict=True):
        before = dict(sketch.neurons)
        mechanism.write(sketch, places)
        new = [(at, i) for at, count in sketch.neurons.items() for i in range(before.get(at, 0), count)]
        if new:
            neurons[mechanism.table] = (*neurons.get(mechanism.table, ()), *new)
    model = render(sketch, architecture, seed=seed)
    effects = {m.name: m.effects(vocab) for m in all_mechanisms} if architecture == "llama-nonorm" else {}
    truth = _truth(all_mechanisms, placement, sketch, neurons=neurons, effects={k: v for k, v in effects.items() if v})
    tokenizer = vocab.tokenizer(context=context)
    tokenizer.init_kwargs["ordinal_classes"] = _ordinals(all_mechanisms, tokenizer, vocab)
    return Planted(model, tokenizer, truth, all_mechanisms, vocab, shape.d_mlp)


def _ordinals(
    mechanisms: Sequence[Mechanism], tokenizer: PreTrainedTokenizerFast, vocab: Vocabulary
) -> dict[str, list[str]]:
    """Classes that a successor head counts in, kept by `save_pretrained`; the default's where none is planted."""
    successors = [m for m in mechanisms if isinstance(m, Successor)] or [Successor()]
    classes = dict.fromkeys(c for m in successors for c in m.classes if max(c) < vocab.n_words)
    return {
        f"class {i}": [str(tokenizer.convert_ids_to_tokens(vocab.word(w))) for w in c] for i, c in enumerate(classes)
    }


def _with_suppliers(mechanisms: Sequence[Mechanism]) -> tuple[Mechanism, ...]:
    """The mechanisms and, first, what they need and the caller left out."""
    have = {m.name for m in mechanisms}
    supplier_names = dict.fromkeys(name for m in mechanisms for name in m.needs if name not in have)
    return (*(SUPPLIERS[name] for name in supplier_names), *mechanisms)


def _subspaces(
    mechanisms: Sequence[Mechanism], vocab: Vocabulary, *, learned: bool, n_heads: int
) -> tuple[Subspaces, int]:
    """Orthogonal parts for all that is written, and a width with some room to spare."""
    sizes: dict[str, int] = {"token": len(vocab), "constant": 1, "copied": vocab.n_words}
    if learned:
        sizes["position"] = 2 * len(RATES)
    for mechanism in mechanisms:
        sizes |= mechanism.claims(vocab)
    dimension = next((m.dimension for m in mechanisms if isinstance(m, MassiveActivation)), None)
    slices: dict[str, slice] = {}
    end = 0
    for name, size in sizes.items():
        if dimension is not None and name == "massive":
            slices[name] = slice(dimension, dimension + 1)
            continue
        if dimension is not None and end <= dimension < end + size:  # this part would cover it: start behind it
            end = dimension + 1
        slices[name] = slice(end, end + size)
        end += size
    enough = max(end, dimension or 0) + SPARE
    if learned:  # a head's share of the doubled stream must hold its features and positions
        enough = max(enough, n_heads * (len(vocab) + 4 * len(RATES)) // 2)
    step = 2 * n_heads
    d_model = -(-enough // step) * step
    return Subspaces(d_model, slices), d_model


def _truth(
    mechanisms: Sequence[Mechanism],
    placement: Sequence[Mapping[str, Place]],
    sketch: Sketch,
    *,
    neurons: Mapping[str, tuple[Place, ...]],
    effects: Mapping[str, Mapping[str, float]],
) -> Truth:
    roles: dict[str, tuple[Place, ...]] = {}
    for places in placement:
        for role, where in places.items():
            roles[role] = (*roles.get(role, ()), where)
    kinds: dict[str, tuple[Place, ...]] = {}
    for slot in dict.fromkeys(slot for m in mechanisms for slot in m.slots):
        for kind in slot.also:
            kinds[kind] = (*kinds.get(kind, ()), *roles[slot.role])
    uses: dict[str, tuple[Edge, ...]] = {}
    named: dict[str, tuple[str, ...]] = {}
    beside: list[Edge] = []
    for mechanism, places in zip(mechanisms, placement, strict=True):
        # Read from the first head of a role planted twice: every later one stands in for it.
        names = {role: head_name(*at[0]) for role, at in roles.items()}
        names |= {role: head_name(*where) for role, where in places.items()}
        own = list(mechanism.edges(names))
        if isinstance(mechanism, MassiveActivation):
            marker = names.get("position_marker", EMBED)
            own.append(Edge(marker, mlp_name(mechanism.layer % sketch.shape.n_layers), "in"))
        uses[mechanism.name] = tuple(dict.fromkeys((*uses.get(mechanism.name, ()), *own)))
        beside += mechanism.beside(names)
        for role, own_names in mechanism.other_parts(names).items():
            named[role] = (*named.get(role, ()), *own_names)
    twins = ((0, 1.0), (sketch.shape.d_model, -1.0)) if sketch.shape.learned else ((0, 1.0),)
    massive = [
        (m.layer % sketch.shape.n_layers, m.position, sketch.parts.slices["massive"].start + shift, sign * m.size)
        for m in mechanisms
        if isinstance(m, MassiveActivation)
        for shift, sign in twins
    ]
    expected = {role: score for m in mechanisms for role, score in m.expected().items()}
    descriptions = "\n".join(dict.fromkeys(f"{m.name}: {(type(m).__doc__ or '').strip()}" for m in mechanisms))
    edges = tuple(dict.fromkeys([*(edge for own in uses.values() for edge in own), *beside]))
    return Truth(
        roles, expected, f"{descriptions}\n{DOCS}", edges, tuple(massive), neurons, effects, kinds, uses, named
    )


DOCS = f"""\
All other heads and MLP neurons are random: near-uniform attention, small outputs.
Expected scores are for `<bos>` and two copies of T = {EXPECTED_PERIOD} distinct words, queries in the
second copy, or for the mechanism's own task where its description says so.
"""
