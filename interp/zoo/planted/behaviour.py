"""Behaviour of planted models: accuracy with a mechanism, without it, and without something inert.

>>> table = behaviour(seeds=1, architectures=["llama"], mechanisms=["copy"])
>>> failed(table)
False
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import UnknownName, nearest
from interp.parallel import each
from interp.zoo.planted.factory import ALL, ARCHITECTURES, STAND_INS, Mechanism, Planted, PlantedRole, plant
from interp.zoo.trained.measure import streams, zeroed

CLEAN, UNCHANGED, SIGMAS = 0.95, 0.02, 3.0
"""What is promised: accuracy with the mechanism, how far an inert component may move it, and how many standard
deviations of a guesser's accuracy it may stand above chance without it."""
SETTINGS = ("alone", "together")
PROMPTS, AGAIN = 64, 4
"""Prompts of a row; one that breaks a promise is judged again, on so many times as many others: of hundreds of rows a
few of a guesser's stand above three standard deviations."""
WORDS = 20
"""Different answers from which they count as words, and not as the options of a choice."""
STANDS, ELSEWHERE = 1 / 4, 1 / 10
"""How far a massive activation may be from its size, and anything else from nought, in shares of that size. What other
heads leave at its position changes the norm in front of its neuron, and so the size, by up to a seventh."""


def behaviour(
    *,
    seeds: int = 10,
    architectures: Sequence[str] | None = None,
    mechanisms: Sequence[str] | None = None,
    n: int = PROMPTS,
    jobs: int = 1,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> pd.DataFrame:
    """One row per (mechanism, setting, architecture, seed): accuracies on `n` fresh prompts of the mechanism's task.

    `clean` as it is; `ablated` the best that is left when one component is zeroed (every head, the neurons, and the
    heads it reads from, one role at a time), `role` which; `inert` the accuracy furthest from clean when a random
    head, or the random neurons of a layer, are zeroed; `chance` of a guess, and `ceiling`, `SIGMAS` above it. A massive
    activation has no task: its accuracy is the share of prompts in which it stands where, and only where, it was put.

    `jobs` architectures and seeds are judged at a time, in processes.

    Raises:
        InterpError: an architecture or mechanism that does not exist.
    """
    by_name = {m.name: m for m in (*ALL, *STAND_INS)}
    for names, catalogue in ((architectures or (), ARCHITECTURES), (mechanisms or (), by_name)):
        for name in names:
            if name not in catalogue:
                raise UnknownName(f"unknown name {name!r}; {nearest(name, tuple(catalogue))}")
    subjects = [by_name[name] for name in mechanisms or by_name]
    cases = [(a, seed) for a in ARCHITECTURES if a in (architectures or ARCHITECTURES) for seed in range(seeds)]
    groups = each(lambda case: list(_case(subjects, *case, n=n)), cases, jobs=jobs, progress=progress)
    return pd.DataFrame([row for rows in groups for row in rows])


def _case(mechanisms: Sequence[Mechanism], architecture: Any, seed: int, *, n: int) -> Iterator[dict[str, Any]]:
    """Rows of all mechanisms on the models of one architecture and seed."""
    together = plant(ALL, architecture=architecture, seed=seed)
    for mechanism in mechanisms:
        models = {"alone": plant([mechanism], architecture=architecture, seed=seed)}
        if mechanism in ALL:  # what stands in for another cannot be tested beside it
            models["together"] = together
        for setting, planted in models.items():
            judgement = _judgement(planted, mechanism, seed=1000 + seed, n=n)
            if not judgement["kept"]:
                judgement = _judgement(planted, mechanism, seed=2000 + seed, n=AGAIN * n)
            yield {
                "mechanism": mechanism.name,
                "setting": setting,
                "architecture": architecture,
                "seed": seed,
            } | judgement


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The worst over architectures and seeds, and how many rows keep all promises, per mechanism and setting."""
    shifts = table.assign(moved=(table["inert"] - table["clean"]).abs())
    groups = shifts.groupby(["mechanism", "setting"], sort=False)
    return groups.agg(
        models=("seed", "size"),
        chance=("chance", "first"),
        ceiling=("ceiling", "first"),
        clean=("clean", "min"),
        ablated=("ablated", "max"),
        inert_moved=("moved", "max"),
        kept=("kept", "sum"),
    ).reset_index()


def failed(table: pd.DataFrame) -> bool:
    """Whether a model of the table does not keep a promise."""
    return not bool(table["kept"].all())


def _judgement(planted: Planted, mechanism: Mechanism, *, seed: int, n: int) -> dict[str, Any]:
    accuracy, chance, guesses = _measurement(planted, mechanism, seed=seed, n=n)
    clean = accuracy(None)
    accuracies = {role.name: accuracy(role) for role in planted.roles(mechanism.name)}
    worst = max(accuracies, key=lambda name: accuracies[name])
    inert = max((accuracy(role) for role in planted.inert(seed=seed)), key=lambda value: abs(value - clean))
    ceiling = chance + SIGMAS * (chance * (1 - chance) / guesses) ** 0.5
    return {
        "n": n,
        "chance": chance,
        "ceiling": ceiling,
        "clean": clean,
        "ablated": accuracies[worst],
        "role": worst,
        "inert": inert,
        "kept": clean >= CLEAN and accuracies[worst] <= ceiling and abs(inert - clean) <= UNCHANGED,
    }


def _measurement(
    planted: Planted, mechanism: Mechanism, *, seed: int, n: int
) -> tuple[Callable[[PlantedRole | None], float], float, int]:
    """Accuracy as a function of what is zeroed, chance, and how many independent guesses the prompts ask for.

    What is left of a zeroed model is a fixed function of what is asked: where answers are words, each word is guessed
    once, however many prompts ask for it.
    """
    if mechanism.name == "massive_activation":
        words = planted.vocab.draw(n, 24, generator=torch.Generator().manual_seed(seed))
        tokens = torch.cat([torch.full((n, 1), planted.vocab.bos), words], 1)
        return lambda role: _standing_share(planted, tokens, role), 0.0, n
    task = planted.task(mechanism.name, seed=seed, n=n)

    def accuracy(role: PlantedRole | None) -> float:
        with torch.no_grad(), _without(planted, role):
            return task.accuracy(planted.model(task.tokens, use_cache=False).logits)

    distinct = len(task.answers.unique())
    return accuracy, task.chance, distinct if distinct >= WORDS else n


def _without(planted: Planted, role: PlantedRole | None):
    target = role or PlantedRole("nothing")
    return zeroed(planted.model, target.heads, neurons=target.neurons)


@torch.no_grad()
def _standing_share(planted: Planted, tokens: Int[Tensor, "prompt pos"], role: PlantedRole | None) -> float:
    """Share of prompts with the massive values in place from their layer on, and nowhere else."""
    with _without(planted, role):
        states = streams(planted.model, tokens)
    massive = torch.zeros_like(states)
    for layer, position, dimension, size in planted.truth.massive:
        massive[layer:, :, position, dimension] = size
    tolerance = torch.where(massive != 0, STANDS, ELSEWHERE) * massive.abs().max()
    near = (states - massive).abs() <= tolerance
    return near.all(-1).all(-1).all(0).double().mean().item()
