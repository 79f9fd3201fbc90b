"""Training on planted dictionaries, and how many of their features are recovered: a part of the scoreboard.

The table of the docs: `interp zoo verify --dictionaries`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.training.run import train
from interp.dictionaries.training.settings import KINDS, generator
from interp.dictionaries.training.streams import Activations
from interp.errors import UnknownEntry, nearest
from interp.parallel import each
from interp.sites import Site
from interp.zoo.planted.dictionary import CASES, PlantedDictionary

PIECE = 2**14
"""Tokens of one piece."""
LIKE = 0.9
"""Cosine from which a planted feature is recovered."""
CONTROLS = ("random", "pca")
"""Directions that were not learned: random ones, as many as features; principal components of what is read."""
PROMISED, LEAST, CHANCE = ("topk", "batchtopk"), 0.95, 0.05
"""Kinds that recover a share of `LEAST` where features are uncorrelated; most that a control may."""
SETTINGS: dict[str, Any] = dict(n_features=192, k=4, steps=1000, batch_size=512, learning_rate=5e-3, dead_after=10_000)
"""Of the table: half as many features again as are planted."""


@dataclass(frozen=True)
class PlantedPieces:
    """Activations of a planted dictionary, drawn piece by piece without end.

    Attributes:
        planted: the dictionary. device: where they are put.
    """

    planted: PlantedDictionary
    device: torch.device | str = "cpu"

    @property
    def sites_in(self) -> tuple[Site | None, ...]:
        """No model, no site."""
        return (None,)

    @property
    def sites_out(self) -> tuple[Site | None, ...]:
        """No model, no site."""
        return (None,)

    @property
    def outs(self) -> tuple[tuple[int, ...], ...]:
        """An autoencoder."""
        return ((0,),)

    @property
    def identity(self) -> str:
        """Sizes and sums of the dictionary."""
        p = self.planted
        return f"planted {tuple(p.directions.shape)} {float(p.rates.sum()):.6g} seed {p.seed}"

    def __len__(self) -> int:
        """Without end."""
        return 0

    def read(self, number: int) -> Activations:
        """Activations of a piece."""
        seed = int(torch.randint(2**62, (), generator=generator("planted", self.planted.seed, number)))
        x = self.planted.draw(PIECE, seed=seed)[0].to(self.device)
        return Activations((x,), (x,))


def best_cosines(planted: PlantedDictionary, learned: Float[Tensor, "learned d"]) -> Float[Tensor, " feature"]:
    """Largest cosine of each planted direction with a learned one."""
    return (planted.directions @ torch.nn.functional.normalize(learned.cpu(), dim=1).mT).max(1).values


def recovery(planted: PlantedDictionary, learned: Float[Tensor, "learned d"]) -> float:
    """Share of planted features whose largest cosine is .9 or more."""
    return float((best_cosines(planted, learned) >= LIKE).double().mean())


def scoreboard(
    *,
    kinds: Sequence[str] | None = None,
    cases: Sequence[str] = CASES,
    seeds: int = 3,
    jobs: int = 1,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    **settings: Any,
) -> pd.DataFrame:
    """One row per (case, kind, seed): how well planted features are recovered.

    Columns: `recovered`, the share with a cosine of .9 or more; `mmcs`, the mean of the largest cosines; `l0` and `fvu`
    on new tokens, NaN of controls. The controls stand last in each case: "random", as many random directions, and
    "pca", the principal components with either sign.

    Raises:
        SchemaError: an unknown kind.
    """
    known = (*KINDS, *CONTROLS)
    for name in kinds or ():
        if name not in known:
            raise UnknownEntry(f"unknown kind {name!r} of a dictionary; {nearest(name, known)}")
    every = [(case, kind, seed) for case in cases for kind in kinds or known for seed in range(seeds)]
    return pd.DataFrame(each(lambda one: _row(*one, settings), every, jobs=jobs, progress=progress))


def _row(case: str, kind: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    planted, options = PlantedDictionary.of(case, seed=seed), {**SETTINGS, **settings}
    place = {"case": case, "kind": kind, "seed": seed}
    x, _ = planted.draw(PIECE, seed=10**6 + seed)
    if kind in CONTROLS:
        learned = _control(kind, x, options["n_features"], seed=seed)
        quality = {"l0": float("nan"), "fvu": float("nan")}
    else:
        d = train(PlantedPieces(planted), kind=kind, seed=seed, **options)
        assert isinstance(d, Dictionary)
        learned, f = d.w_dec, d.encode(x)
        missed = (x - d.decode(f, x)).square().sum() / (x - x.mean(0)).square().sum()
        quality = {"l0": float((f > 0).sum(1).float().mean()), "fvu": float(missed)}
    cosines = best_cosines(planted, learned)
    return {**place, "recovered": recovery(planted, learned), "mmcs": float(cosines.mean()), **quality}


def _control(kind: str, x: Float[Tensor, "token d"], n: int, *, seed: int) -> Float[Tensor, "learned d"]:
    if kind == "random":
        return torch.randn(n, x.shape[1], generator=generator("random directions", seed))
    components = torch.linalg.eigh(torch.cov(x.mT)).eigenvectors.mT
    return torch.cat([components, -components])


def summary(board: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds and the least share recovered, per case and kind."""
    groups = board.groupby(["case", "kind"], sort=False)
    return groups.agg(
        seeds=("seed", "size"),
        recovered=("recovered", "mean"),
        least=("recovered", "min"),
        mmcs=("mmcs", "mean"),
        l0=("l0", "mean"),
        fvu=("fvu", "mean"),
    ).reset_index()


def failed(board: pd.DataFrame) -> bool:
    """Whether "topk" or "batchtopk" recovers less than .95 of uncorrelated features, or a control more than .05."""
    promised = (board["case"] == "uncorrelated") & board["kind"].isin(PROMISED)
    missed = board.loc[promised, "recovered"] < LEAST
    return bool(missed.any() or (board.loc[board["kind"].isin(CONTROLS), "recovered"] > CHANCE).any())
