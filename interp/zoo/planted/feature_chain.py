"""`feature_chain`: a model whose features are known directions, each made of known others by a neuron or a head.

>>> chain = feature_chain(seed=0)
>>> {site: len(rows) for site, rows in chain.directions.items()}
{'L0.resid_pre': 36, 'L0.mlp_out': 24, 'L1.attn_out': 12, 'L1.mlp_out': 24}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

D_MODEL, N_TOKENS, LENGTH = 96, 40, 3
SIZES = {"L0.resid_pre": 36, "L0.mlp_out": 24, "L1.attn_out": 12, "L1.mlp_out": 24}
"""Features by the site at which they are written: of tokens, of the first MLP, moved by a head, of the second MLP."""
ANSWER, WRONG, BLANK = 0, 1, 2
"""The token whose logit every feature of the last MLP raises, one whose logit nothing moves, one without features."""
THRESHOLD = 2.5
"""Of neurons, on inputs whose norm is about sqrt(D_MODEL): an active feature alone is read as about 5."""

Feature = tuple[str, int]


@dataclass(frozen=True, eq=False)
class FeatureChain:
    """A planted model and what is known of it.

    Attributes:
        model: two layers of GPT-2 with ReLU.
        directions: unit directions of the features that are written at each site, [feature d_model].
        edges: (feature, feature that is made of it), each by its site and number.
        seed: that everything was drawn from.
    """

    model: GPT2LMHeadModel
    directions: dict[str, Float[Tensor, "feature d_model"]]
    edges: tuple[tuple[Feature, Feature], ...]
    seed: int

    def prompts(self, n: int, *, seed: int) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"]]:
        """Random tokens, and twins of blanks."""
        random = torch.Generator().manual_seed(1000 * self.seed + seed)
        clean = torch.randint(BLANK + 1, N_TOKENS, (n, LENGTH), generator=random)
        return clean, torch.full_like(clean, BLANK)


@torch.no_grad()
def feature_chain(*, seed: int = 0, noise: float = 0.02) -> FeatureChain:
    """A model drawn from a seed, in four steps.

    A token is two features. A ReLU neuron of the first MLP fires on one or two of these and writes another one. A head
    of uniform attention moves half of them. A neuron of the second MLP fires on moved ones, or on ones of its own
    token, and what it writes raises the answer's logit. Directions are random: every feature is a little of
    every other.

    Args:
        seed: of everything.
        noise: standard deviation of what is added to each entry of the matrices that write, in units of their own.
    """
    random = torch.Generator().manual_seed(seed)
    config = GPT2Config(
        vocab_size=N_TOKENS,
        n_positions=16,
        n_embd=D_MODEL,
        n_layer=2,
        n_head=2,
        n_inner=SIZES["L0.mlp_out"],
        activation_function="relu",
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    weights: dict[str, Tensor] = dict(model.named_parameters())
    for name, parameter in weights.items():
        parameter.fill_(1.0 if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0)
    directions = {site: _directions(n, random) for site, n in SIZES.items()}
    _write_tokens(weights["transformer.wte.weight"], directions["L0.resid_pre"], random)
    edges = _write_layers(weights, directions, random)
    for name in ("h.0.mlp.c_fc", "h.0.mlp.c_proj", "h.1.mlp.c_fc", "h.1.mlp.c_proj", "h.1.attn.c_proj"):
        matrix = weights[f"transformer.{name}.weight"]
        size = float(matrix.norm()) / matrix.numel() ** 0.5
        matrix.add_(noise * size * torch.randn(matrix.shape, generator=random))
    last = directions["L1.mlp_out"]
    weights["lm_head.weight"][ANSWER] = ((0.5 + torch.rand(len(last), 1, generator=random)) * last).sum(0)
    return FeatureChain(model, directions, tuple(edges), seed)


def _directions(n: int, random: torch.Generator) -> Float[Tensor, "feature d_model"]:
    """Unit vectors without a mean, which a layer norm would take away."""
    x = torch.randn(n, D_MODEL, generator=random)
    return torch.nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1)


def _write_tokens(embedding: Tensor, features: Tensor, random: torch.Generator) -> None:
    """Two features a token, and a blank of a direction of its own."""
    strength = 1 + 0.5 * torch.rand(N_TOKENS, 2, generator=random)
    chosen = torch.stack([torch.randperm(len(features), generator=random)[:2] for _ in range(N_TOKENS)])
    embedding.copy_((features[chosen] * strength[..., None]).sum(1))
    embedding[BLANK] = _directions(1, random)[0]


def _write_layers(
    weights: dict[str, Tensor], directions: dict[str, Tensor], random: torch.Generator
) -> list[tuple[Feature, Feature]]:
    """Neurons of both MLPs and the head between; the edges that this makes."""
    names = list(directions)
    tokens, first, moved, last = directions.values()
    edges: list[tuple[Feature, Feature]] = []
    for j, parents in enumerate(_parents(len(first), len(tokens), random)):
        _write_neuron(weights, 0, j, tokens[parents].sum(0), first[j])
        edges += [((names[0], i), (names[1], j)) for i in parents]
    sources = torch.randperm(len(first), generator=random)[: len(moved)].tolist()
    values = slice(2 * D_MODEL, 2 * D_MODEL + len(moved))  # of the first head
    weights["transformer.h.1.attn.c_attn.weight"][:, values] = first[sources].mT
    weights["transformer.h.1.attn.c_proj.weight"][: len(moved)] = 0.5 * moved
    edges += [((names[1], i), (names[2], j)) for j, i in enumerate(sources)]
    pool = [*((names[1], i) for i in range(len(first))), *((names[2], i) for i in range(len(moved)))]
    for j, chosen in enumerate(_parents(len(last), len(pool), random)):
        parents = [pool[i] for i in chosen]
        _write_neuron(weights, 1, j, torch.stack([directions[site][i] for site, i in parents]).sum(0), last[j])
        edges += [(parent, (names[3], j)) for parent in parents]
    return edges


def _parents(n_children: int, n: int, random: torch.Generator) -> list[list[int]]:
    """Every one of n is read, so that each leads to the answer; some children read two."""
    order = torch.cat([torch.randperm(n, generator=random) for _ in range(-(-n_children // n))])
    return [order[i::n_children].tolist() for i in range(n_children)]


def _write_neuron(weights: dict[str, Tensor], layer: int, j: int, read: Tensor, write: Tensor) -> None:
    """Neuron j fires where `read` is above the threshold, and writes about one unit."""
    mlp = f"transformer.h.{layer}.mlp"
    weights[f"{mlp}.c_fc.weight"][:, j] = read
    weights[f"{mlp}.c_fc.bias"][j] = -THRESHOLD
    weights[f"{mlp}.c_proj.weight"][j] = 0.3 * write
