"""Units that may hold the residue of a number: neurons of MLP 0, or features of a dictionary behind layer 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batch import Batch
from interp.components import neuron_name
from interp.decompose.embeddings import effective_embedding
from interp.dictionaries import Clamp, Dictionary, Splice
from interp.edits import Ablate, Apply, Edit
from interp.errors import SchemaError
from interp.measurement.scoring import LEVEL
from interp.model import Model
from interp.sites import Site
from probes.heads import residues
from probes.heads._successor import EMBEDDINGS
from probes.heads.ordinals import Ordinal
from probes.heads.residues import Grid

WRITES = {"full": ("L0.mlp_out", "L0.resid_post"), "ov_mlp0": ("L0.mlp_out", "L0.resid_post"), "ov_embed": ("embed",)}
"""Where a dictionary has to write for its directions to be directions of an embedding."""


@dataclass(frozen=True, eq=False)
class Case:
    """Numbers of a model, as a grid, and where they are read: one of `EMBEDDINGS`, behind `bos` where there is one."""

    model: Model
    numbers: Ordinal
    grid: Grid
    name: str
    bos: int | None

    def embedding(self, name: str, edits: Sequence[Edit] = ()) -> Float[Tensor, "member d_model"]:
        """What heads read for each number, by the name of the embedding."""
        with self.model.editing(edits):
            return effective_embedding(
                self.model, tokens=self.numbers.ids, variant=EMBEDDINGS[name], bos=self.bos
            ).double()

    def heads(self, layer: int) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head member"]]:
        """Two factors of what each head of a layer makes of a vector: logits of all numbers."""
        w = self.model.weights()
        ov = w.ov(layer, fold_norm=True)
        right = ov.right if w.final_norm is None else w.final_norm.linear(ov.right)
        return ov.left.double(), (right @ w.source.columns(self.numbers.ids).T).double()

    def logits(self) -> list[Float[np.ndarray, "head block residue member"]]:
        """Per layer, what each head writes for each number of the grid, as logits of all numbers."""
        raw, deep = self.embedding("ov_embed"), self.embedding(self.name)
        layer_logits = []
        for layer in self.model.weights().layers:
            left, right = self.heads(layer)
            layer_logits.append(((raw if layer == 0 else deep) @ left @ right).numpy()[:, self.grid.at])
        return layer_logits

    def direction_logits(
        self, x: Float[Tensor, "block residue d_model"]
    ) -> list[Float[np.ndarray, "head block residue member"]]:
        """Per layer, logits of all numbers for vectors behind layer 0; zeros for its own heads, which read W_E."""
        layer_logits = []
        for layer in self.model.weights().layers:
            left, right = self.heads(layer)
            read = x[None] * (layer > 0 or self.name == "ov_embed")
            layer_logits.append((read @ left[:, None] @ right[:, None]).numpy())
        return layer_logits

    def read(self, site: Site, what: Callable[[Tensor], Tensor]) -> Float[np.ndarray, "block residue unit"]:
        """`what` of the activation [number ...] of a site at each number, under the case's embedding."""
        ids = self.numbers.ids
        rows = ids[:, None] if self.bos is None else torch.stack([torch.full_like(ids, self.bos), ids], dim=1)
        silent = 0 in self.model.info.attention_layers and EMBEDDINGS[self.name] == "mlp"
        edits = [Ablate(Site("attn_out", 0), "zero")] if silent else []
        run = self.model.run(
            Batch.of(rows), capture={site: lambda x: what(x[:, -1]).double().cpu()}, edits=edits, stop=0
        )
        return run[site].numpy()[self.grid.at]


@dataclass(frozen=True, eq=False)
class Units:
    """Units behind layer 0, at each number.

    Attributes:
        kind: "neuron" or "feature". place: of what, in words.
        names: of each, as components.
        acts: how much of its direction each writes for a number.
        norm: length of these directions.
        at_mean: an edit that holds some of them at what they are on average over the numbers.
    """

    kind: str
    place: str
    names: list[str]
    acts: Float[np.ndarray, "block residue unit"]
    norm: Float[np.ndarray, " unit"]
    at_mean: Callable[[Int[np.ndarray, " k"]], Edit]

    @property
    def spread(self) -> Float[np.ndarray, " unit"]:
        """Standard deviation over numbers of what each writes."""
        return self.acts.std((0, 1)) * self.norm

    def rows(self, *, n_permutations: int, seed: int) -> pd.DataFrame:
        """A row for each unit: share of its variance that is between residues, with its null, and the label."""
        share, p, q = residues.tuning(self.acts, n_permutations=n_permutations, seed=seed)
        return pd.DataFrame(
            {
                "variant": self.kind,
                "unit": "fraction of variance",
                "layer": 0,
                "component": self.names,
                "value": share,
                "null": 1 / len(self.acts),
                "p": p,
                "q": q,
                "n": len(self.acts),
                "label": q < LEVEL,
                "written": self.acts.mean(0).std(0) * self.norm,
            }
        )


def tuned(rows: pd.DataFrame) -> Int[np.ndarray, " k"]:
    """Numbers of the labelled units, those first that write most about residues."""
    chosen = np.flatnonzero(rows["label"].to_numpy(dtype=bool))
    return chosen[np.argsort(-rows["written"].to_numpy()[chosen], kind="stable")]


def neurons(case: Case) -> Units:
    """Neurons of MLP 0."""
    site = Site("mlp_post", 0)
    acts, write = case.read(site, lambda x: x), case.model.writes(0).mlp
    if write is None:
        raise RuntimeError("neurons of a layer that has none")
    mean = torch.tensor(acts.mean((0, 1)))

    def at_mean(chosen: Int[np.ndarray, " k"]) -> Edit:
        at = torch.tensor(chosen)

        def set_to_mean(x: Tensor) -> Tensor:
            new = x.clone()
            new[..., at.to(x.device)] = mean[at].to(x)
            return new

        return Apply(site, set_to_mean)

    norm = write.matrix(acts.shape[-1]).double().norm(dim=-1).cpu().numpy()
    return Units("neuron", "M0", [neuron_name(0, i) for i in range(len(norm))], acts, norm, at_mean)


def check_place(dictionary: Dictionary, name: str) -> None:
    """Refuse a dictionary whose directions are none of the embedding.

    Raises:
        SchemaError: it reads above layer 0, or writes elsewhere than `WRITES` has it.
    """
    first, last = dictionary.site_in, dictionary.sites_out
    low = first is not None and first.first in (None, 0)
    if not low or len(last) != 1 or str(last[0]) not in WRITES[name]:
        raise SchemaError(
            f"{dictionary!r}: behind {name!r} heads read what is written at {' or '.join(WRITES[name])}, from layer 0; "
            "train a dictionary there"
        )


def features(case: Case, dictionary: Dictionary) -> Units:
    """Features of a dictionary that `check_place` lets through."""
    site, undo = dictionary.site_in, dictionary.normalisation.undo
    assert site is not None  # checked
    own = dictionary.to(case.model.device)

    def written(x: Tensor) -> Tensor:
        x = x.to(own.w_enc)
        _, _, factor = own.normalisation.apply(x)
        return own.encode(x) * factor if undo else own.encode(x)

    acts = case.read(site, written)
    mean = case.read(site, own.encode).mean((0, 1))

    def at_mean(chosen: Int[np.ndarray, " k"]) -> Edit:
        return Splice(dictionary, [Clamp(int(i), float(mean[i])) for i in chosen])

    norm = dictionary.directions(list(range(dictionary.n_features))).double().norm(dim=-1).cpu().numpy()
    names = [f"{site}:{i}" for i in range(dictionary.n_features)]
    return Units("feature", str(site), names, acts, norm, at_mean)


def directions(
    units: Units, dictionary: Dictionary, chosen: Int[np.ndarray, " k"]
) -> dict[str, Float[Tensor, "block residue d_model"]]:
    """What features write for each residue, for use in a block: means over the other blocks, less that of all residues.

    Variants: "dictionary", of the chosen features; "dictionary_one", of one feature a residue, the one that writes most
    more for it than for the others, as in Gould et al. 2023.
    """
    f = residues.features(units.acts)
    d = dictionary.directions(list(range(dictionary.n_features))).double().cpu()
    several = np.zeros_like(f)
    several[..., chosen] = f[..., chosen]
    best = (f * units.norm).argmax(-1)[..., None]
    one = np.zeros_like(f)
    np.put_along_axis(one, best, np.take_along_axis(f, best, -1), -1)
    return {"dictionary": torch.tensor(several) @ d, "dictionary_one": torch.tensor(one) @ d}
