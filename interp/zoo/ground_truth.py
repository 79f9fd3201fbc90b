"""`Truth`: roles, scores, edges and effects of a planted model, known from its construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from interp.components import Edge, head_names, neuron_name


@dataclass(frozen=True)
class Truth:
    """The mechanism of a planted model: which heads play which role, and the scores that follow."""

    roles: Mapping[str, tuple[tuple[int, int], ...]]
    """Role -> its (layer, head) pairs; every head not named has no part in the mechanism."""
    expected: Mapping[str, float]
    """Role -> score in closed form (mean attention probability on the role's key), for the
    sequences that `docs` describes."""
    docs: str
    """The mechanism in words: what each role reads and writes, and what the other heads do."""
    edges: tuple[Edge, ...] = ()
    """Every connection that carries a mechanism, once each; constants of the embedding left out."""
    massive: tuple[tuple[int, int, int, float], ...] = ()
    """Massive activations: (layer after which it stands, position, dimension of the stream, size). Two for one in
    `gpt2`, which keeps every dimension twice with opposite signs."""

    neurons: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Role -> (layer, neuron) pairs of the MLP neurons that a mechanism is written into."""
    effects: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Mechanism -> role -> how many logits its task's `logit_difference` falls when that role's heads (or neurons) are
    zeroed: the mean over prompts, in closed form from the weights as written. Only where norms are the identity
    (`llama-nonorm`): a norm shrinks the whole stream by what a head adds, which depends on all that others write."""

    kinds: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """What heads of several roles do alike -> all of them. "copying": by their weights any word says itself; "repeats":
    needed to continue a repeated text; "conflict": they answer where a text contradicts a fact."""

    uses: Mapping[str, tuple[Edge, ...]] = field(default_factory=dict)
    """Mechanism -> those of `edges` that its own task needs: without what a head does beside, for another mechanism, or
    to be silent at another's cue."""

    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Role -> names of what plays it where that is neither a head nor a neuron: an input of an MLP (`L1H4 -> M1`),
    tokens of a role that feed one by attention of its own layer (`M1<TIME`)."""

    def heads(self, name: str) -> tuple[tuple[int, int], ...]:
        """(layer, head) pairs of a role, or of all roles of a kind; none where the model has neither."""
        return (*self.roles.get(name, ()), *self.kinds.get(name, ()))

    def parts(self, name: str) -> tuple[str, ...]:
        """Names of the components of a role or kind: its heads, its neurons, and what else plays it."""
        neurons = (neuron_name(*place) for place in self.neurons.get(name, ()))
        return (*head_names(self.heads(name)), *neurons, *self.named.get(name, ()))

    @property
    def nodes(self) -> tuple[str, ...]:
        """Components that the edges join, `embed` and `logits` included, in order of first mention."""
        return tuple(dict.fromkeys(name for edge in self.edges for name in edge[:2]))
