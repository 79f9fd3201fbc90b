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
    """Tokens are two features each; a ReLU neuron of the first MLP fires on one or two of them and writes another one;
    a head with uniform attention moves half of these; neurons of the second MLP fire on moved ones and on ones of their
    own token, and what they write raises the answer's logit.

    Directions are random, so that every feature is a little of every other one; `noise` is the standard deviation of
    what is added to each entry of the MLPs' and the head's weights, in units of 1 / sqrt(d_model) times their length.
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
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0)
    directions = {site: _directions(n, random) for site, n in SIZES.items()}
    tokens, first, moved, last = directions.values()
    strength = 1 + 0.5 * torch.rand(N_TOKENS, 2, generator=random)
    chosen = torch.stack([torch.randperm(len(tokens), generator=random)[:2] for _ in range(N_TOKENS)])
    model.transformer.wte.weight.copy_((tokens[chosen] * strength[..., None]).sum(1))
    model.transformer.wte.weight[BLANK] = _directions(1, random)[0]

    def parents_of(n_children: int, n: int) -> list[list[int]]:
        """Every one of n is read, so that each leads to the answer; some children read two."""
        order = torch.cat([torch.randperm(n, generator=random) for _ in range(-(-n_children // n))])
        return [order[i::n_children].tolist() for i in range(n_children)]

    names, blocks = list(SIZES), model.transformer.h
    edges: list[tuple[Feature, Feature]] = []
    for j, parents in enumerate(parents_of(len(first), len(tokens))):
        _neuron(blocks[0].mlp, j, tokens[parents].sum(0), first[j])
        edges += [((names[0], i), (names[1], j)) for i in parents]
    sources = torch.randperm(len(first), generator=random)[: len(moved)].tolist()
    values = slice(2 * D_MODEL, 2 * D_MODEL + len(moved))  # of the first head
    blocks[1].attn.c_attn.weight[:, values] = first[sources].mT
    blocks[1].attn.c_proj.weight[: len(moved)] = 0.5 * moved
    edges += [((names[1], i), (names[2], j)) for j, i in enumerate(sources)]
    pool = [*((names[1], i) for i in range(len(first))), *((names[2], i) for i in range(len(moved)))]
    for j, some in enumerate(parents_of(len(last), len(pool))):
        parents = [pool[i] for i in some]
        _neuron(blocks[1].mlp, j, torch.stack([directions[site][i] for site, i in parents]).sum(0), last[j])
        edges += [(parent, (names[3], j)) for parent in parents]
    for matrix in (
        *(w for b in blocks for w in (b.mlp.c_fc.weight, b.mlp.c_proj.weight)),
        blocks[1].attn.c_proj.weight,
    ):
        matrix += noise * float(matrix.norm()) / matrix.numel() ** 0.5 * torch.randn(matrix.shape, generator=random)
    model.lm_head.weight[ANSWER] = ((0.5 + torch.rand(len(last), 1, generator=random)) * last).sum(0)
    return FeatureChain(model, directions, tuple(edges), seed)


def _directions(n: int, random: torch.Generator) -> Float[Tensor, "feature d_model"]:
    """Unit vectors without a mean, which a layer norm would take away."""
    x = torch.randn(n, D_MODEL, generator=random)
    return torch.nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1)


def _neuron(mlp: torch.nn.Module, j: int, read: Tensor, write: Tensor) -> None:
    """Neuron j fires where `read` is above the threshold, and writes about one unit."""
    mlp.c_fc.weight[:, j], mlp.c_fc.bias[j] = read, -THRESHOLD
    mlp.c_proj.weight[j] = 0.3 * write
