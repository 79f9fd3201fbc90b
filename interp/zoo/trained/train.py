"""Train a shipped zoo model from a seed: `python -m interp.zoo.trained.train NAME --out DIR`.

What a model learns, from what and at which rate is a `Recipe`: `interp.zoo.trained.curriculum` makes those of `default`
and `sibling`, which are taught many skills, `interp.zoo.trained.copying` those of models that learn to copy,
`interp.zoo.trained.modular` those of models that add modulo a number, `interp.zoo.trained.paragraphs` those of models
that know paragraphs by heart, `interp.zoo.trained.backcopy` those of models whose head has work at triggers alone;
`interp.zoo.trained.loop` runs them. An
interrupted run goes on where it was: the same command continues from `DIR/training.pt`, and ends with the same weights.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from interp.files import atomic_write
from interp.zoo.trained import backcopy, copying, curriculum, modular, paragraphs
from interp.zoo.trained.backcopy import BACKCOPY
from interp.zoo.trained.loop import STATE, TrainingRun, save_half, train, update
from interp.zoo.trained.modular import MODULAR
from interp.zoo.trained.paragraphs import PARAGRAPHS
from interp.zoo.trained.plan import COPYING
from interp.zoo.trained.recipe import B, M, Recipe, add_arguments, from_arguments
from interp.zoo.trained.skills.plan import SIZES


def steps_for(minutes: float, recipe: Recipe[M, B]) -> int:
    """Number of steps that fit into `minutes`, by the time of a few throw-away steps at the end of the recipe."""
    run = TrainingRun.begin(recipe, progress=1.0)
    run.step = max(0, recipe.steps - 6)
    times = []
    while run.step < recipe.steps:
        start = time.perf_counter()
        update(run)
        times.append(time.perf_counter() - start)
    return max(1, int(minutes * 60 / sorted(times)[len(times) // 2]))


def train_and_save(recipe: Recipe[Any, B], out: Path) -> str:
    """Train or go on, save in half precision, measure what was saved; returns the card written from it."""
    model, minutes = train(recipe, out=out)
    save_half(model, out)
    card = recipe.publish(out, minutes) if recipe.publish else ""
    atomic_write(out / "README.md", lambda p: p.write_text(card, encoding="utf-8"), force=True)
    (out / STATE).unlink()
    return card


def recipe_of(arguments: argparse.Namespace) -> Recipe[Any, Any]:
    """The recipe that a command line names; where its folder holds the state of a run, the recipe of that run."""
    rooms = {**dict.fromkeys(MODULAR, modular), **dict.fromkeys(PARAGRAPHS, paragraphs)}
    room = {**rooms, **dict.fromkeys(BACKCOPY, backcopy)}.get(arguments.name, copying)
    named = partial(from_arguments, room.recipe)
    make: Callable[..., Recipe[Any, Any]] = curriculum.from_arguments if arguments.name in SIZES else named
    state = arguments.out / STATE
    if state.is_file():
        return make(arguments, torch.load(state, weights_only=True)["facts"])
    recipe = make(arguments, None)
    if arguments.minutes is None:
        return recipe
    return make(arguments, {**recipe.facts, "steps": steps_for(arguments.minutes, recipe)})


def main(arguments: list[str] | None = None) -> None:
    """Train, save in half precision, measure what was saved, write the card from it."""
    parser = argparse.ArgumentParser(prog="python -m interp.zoo.trained.train", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for size in SIZES:
        curriculum.add_arguments(names.add_parser(size, help="taught many skills"))
    for name in COPYING:
        add_arguments(names.add_parser(name, help="taught to copy"))
    for name in MODULAR:
        add_arguments(names.add_parser(name, help="taught to add modulo a number"))
    for name in PARAGRAPHS:
        add_arguments(names.add_parser(name, help="taught some paragraphs by heart"))
    for name in BACKCOPY:
        add_arguments(names.add_parser(name, help="taught bigrams, and to copy back at triggers"))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    sys.stdout.write(train_and_save(recipe_of(options), options.out))


if __name__ == "__main__":
    main()
