"""Training on planted dictionaries, and how many of their features are recovered.

The table of the docs: `python -m interp.dictionaries.training.planted`.
"""

from __future__ import annotations

import argparse
import sys
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
from interp.sites import Site
from interp.zoo.planted.dictionary import CASES, PlantedDictionary

PIECE = 2**14
"""Tokens of one piece."""
LIKE = 0.9
"""Cosine from which a planted feature is recovered."""
SETTINGS: dict[str, Any] = dict(n_features=192, k=4, steps=1000, batch_size=512, learning_rate=5e-3, dead_after=10_000)
"""Of the table: half as many features again as are planted."""
SPARSITY: dict[str, dict[str, Any]] = {"standard": {"sparsity": 0.2}, "gated": {"sparsity": 0.5}}
"""Kind -> its own."""


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


def best_cosines(planted: PlantedDictionary, dictionary: Dictionary) -> Float[Tensor, " feature"]:
    """Largest cosine of each planted direction with a decoder direction."""
    learned = torch.nn.functional.normalize(dictionary.w_dec.flatten(1).cpu(), dim=1)
    return (planted.directions @ learned.mT).max(1).values


def recovery(planted: PlantedDictionary, dictionary: Dictionary) -> float:
    """Share of planted features whose largest cosine is .9 or more."""
    return float((best_cosines(planted, dictionary) >= LIKE).double().mean())


def recovery_table(
    kinds: tuple[str, ...] = KINDS, cases: tuple[str, ...] = CASES, seeds: int = 3, **settings: Any
) -> pd.DataFrame:
    """A row for each kind, case and seed: share recovered, mean largest cosine, L0 and FVU on new tokens."""
    rows = []
    for case in cases:
        for kind in kinds:
            for seed in range(seeds):
                planted = PlantedDictionary.of(case, seed=seed)
                d = train(
                    PlantedPieces(planted), kind=kind, seed=seed, **{**SETTINGS, **SPARSITY.get(kind, {}), **settings}
                )
                assert isinstance(d, Dictionary)
                x, _ = planted.draw(PIECE, seed=10**6 + seed)
                f = d.encode(x)
                missed = float((x - d.decode(f, x)).square().sum() / (x - x.mean(0)).square().sum())
                rows.append(
                    {
                        "case": case,
                        "kind": kind,
                        "seed": seed,
                        "recovered": recovery(planted, d),
                        "cosine": float(best_cosines(planted, d).mean()),
                        "l0": float((f > 0).sum(1).float().mean()),
                        "fvu": missed,
                    }
                )
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> None:
    """Print the table in markdown, means over seeds with the least of the shares recovered."""
    parser = argparse.ArgumentParser(prog="python -m interp.dictionaries.training.planted", description=__doc__)
    parser.add_argument("--kind", action="append", choices=KINDS, help="repeatable")
    parser.add_argument("--case", action="append", choices=CASES, help="repeatable")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    head = "| case | kind | seeds | recovered, mean | least | mean cosine | L0 | FVU |"
    sys.stdout.write(f"{head}\n{'|---' * 8}|\n")
    for case in options.case or CASES:
        for kind in options.kind or KINDS:
            rows = recovery_table((kind,), (case,), options.seeds)
            means = rows[["recovered", "cosine", "l0", "fvu"]].mean()
            sys.stdout.write(
                f"| {case} | {kind} | {options.seeds} | {means['recovered']:.3f} | {rows['recovered'].min():.3f} "
                f"| {means['cosine']:.3f} | {means['l0']:.1f} | {means['fvu']:.3f} |\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
