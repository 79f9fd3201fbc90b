"""Train the rich zoo model: `python -m interp.zoo.trained.train default --out DIR`, or `sibling`.

Copying first, then everything: mixed from the start, copying and retrieval are not learned at all.
A stage ends when its loss is low enough. What a step sees depends on the
seed, the step and the stage alone, so an interrupted run goes on where it was:
the same command continues from `DIR/training.pt`, and ends with the same weights.
"""

from __future__ import annotations

import argparse
import logging
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from interp.zoo.trained.penalty import head_penalty
from interp.zoo.trained.skills import CONTEXT, SKILLS, export
from interp.zoo.trained.skills.judge import skill_accuracy
from interp.zoo.trained.skills.plan import (
    PENALTY_UNTIL,
    REST,
    SIZES,
    STAGES,
    Options,
    Progress,
    checkpoint_steps,
    learning_rate,
)
from interp.zoo.trained.skills.report import describe, measure
from interp.zoo.trained.skills.rows import GROUPS, Stage, batch, skill_losses
from interp.zoo.trained.skills.vocabulary import index, tokenizer

__all__ = ["Options", "add_arguments", "build", "make", "skill_accuracy", "steps_for", "train"]

log = logging.getLogger(__name__)


def build(size: str, *, seed: int) -> LlamaForCausalLM:
    """The untrained model, in float32."""
    torch.manual_seed(seed)
    known = index()
    config = LlamaConfig(
        **SIZES[size],
        vocab_size=len(known),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=known["<bos>"],
        eos_token_id=known["<eos>"],
        pad_token_id=known["<pad>"],
    )
    return LlamaForCausalLM(config)


def optimizer_for(model: LlamaForCausalLM, options: Options) -> torch.optim.AdamW:
    """AdamW; gains are not decayed."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.peak, betas=(0.9, 0.98), weight_decay=options.weight_decay)


def take_step(
    model: LlamaForCausalLM, optimizer: torch.optim.AdamW, *, step: int, stage: Stage, options: Options
) -> Tensor:
    """One update; returns the mean loss of each group, in nats."""
    rows = batch(Random(f"{options.seed} {step}"), stage, n_tokens=options.tokens_per_step)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bfloat16):
        logits = model(rows.tokens, use_cache=False).logits
    losses, counts = skill_losses(logits, rows)
    present = (counts[1:] > 0).sum().clamp(min=1)
    loss = losses[1:].sum() / present + REST * losses[0]
    if options.penalty and stage.mixed and step / options.steps < PENALTY_UNTIL:
        loss = loss + options.penalty * head_penalty(model)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, options)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return losses.detach()


def save_half(model: LlamaForCausalLM, folder: Path) -> None:
    """A Hugging Face folder in float16; the model in memory stays as it is."""
    deepcopy(model).half().save_pretrained(folder)
    # safetensors writes a file that its owner alone can read; a package has to be readable by all.
    (folder / "model.safetensors").chmod(0o644)


def accuracies(model: LlamaForCausalLM, *, n: int = 16) -> str:
    """Held-out accuracy of every skill on a few items."""
    model.eval()
    scores = {name: skill_accuracy(model, None, name, n=n, seed=1)["accuracy"] for name in SKILLS}
    model.train()
    return "  ".join(f"{name} {score:.2f}" for name, score in scores.items())


@dataclass
class Run:
    """A training run in memory: everything that an interrupted one needs to go on."""

    options: Options
    model: LlamaForCausalLM
    optimizer: torch.optim.AdamW
    progress: Progress
    step: int = 0
    """Steps taken."""
    seconds: float = 0.0
    """Time they took."""

    def save(self, path: Path) -> None:
        """Write the state; a crash in between leaves the one before."""
        state = {key: getattr(self, key).state_dict() for key in ("model", "optimizer")}
        state |= {key: vars(getattr(self, key)) for key in ("options", "progress")}
        torch.save({**state, "step": self.step, "seconds": self.seconds}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)


def start(options: Options, saved: Path) -> Run:
    """A new run, or the saved one; ValueError where what is saved is another."""
    model = build(options.size, seed=options.seed).train()
    run = Run(options, model, optimizer_for(model, options), Progress())
    if saved.is_file():
        state = torch.load(saved, weights_only=True)
        if state["options"] != vars(options):
            raise ValueError(f"{saved} belongs to another run: {state['options']}, not {vars(options)}")
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.progress, run.step, run.seconds = Progress(**state["progress"]), state["step"], state["seconds"]
    return run


def train(
    options: Options, *, out: Path, checkpoints: int = 0, log_every: float = 120.0, stop_after: int | None = None
) -> tuple[LlamaForCausalLM, float]:
    """Train, or go on from `out/training.pt`; returns the model in eval mode and the minutes it took.

    Every `log_every` seconds the skills are measured and the state is saved. `stop_after` ends the
    run at that step, as an interruption would, with the state saved.
    """
    out.mkdir(parents=True, exist_ok=True)
    saved = out / "training.pt"
    run = start(options, saved)
    marks = checkpoint_steps(checkpoints, steps=options.steps)
    reported = run.seconds
    while run.step < min(options.steps, stop_after or options.steps):
        began = time.perf_counter()
        if run.step in marks:
            save_half(run.model, out / f"step-{run.step:05d}")
        stage = run.progress.stage_at(run.step)
        losses = take_step(run.model, run.optimizer, step=run.step, stage=stage, options=options)
        run.step += 1
        run.progress.advance(run.step / options.steps, losses[GROUPS.index("repeats")].item())
        run.seconds += time.perf_counter() - began
        if run.seconds - reported > log_every:
            log.info("step %d/%d  stage %d  %.1f min", run.step, options.steps, run.progress.stage, run.seconds / 60)
            log.info("  loss: %s", "  ".join(f"{g} {x:.2f}" for g, x in zip(GROUPS, losses.tolist(), strict=True) if x))
            log.info("  accuracy: %s", accuracies(run.model))
            run.save(saved)
            reported = run.seconds
    run.save(saved)
    if run.step in marks:
        save_half(run.model, out / f"step-{run.step:05d}")
    return run.model.eval(), run.seconds / 60


def steps_for(minutes: float, options: Options) -> int:
    """How many steps fit, from the time of a few throw-away steps of the mixed stage."""
    model = build(options.size, seed=options.seed).train()
    optimizer = optimizer_for(model, options)
    times = []
    for step in range(options.steps - 6, options.steps):
        start = time.perf_counter()
        take_step(model, optimizer, step=step, stage=STAGES[-1], options=options)
        times.append(time.perf_counter() - start)
    return max(1, int(minutes * 60 / sorted(times)[len(times) // 2]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a training run."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write, or to go on with")
    parser.add_argument("--seed", type=int, default=0)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=Options.steps)
    length.add_argument("--minutes", type=float, help="as many steps as fit, measured before the first")
    parser.add_argument("--checkpoints", type=int, default=0, help="folders step-NNNNN along the way, dense early")
    parser.add_argument("--penalty", type=float, default=0.0, help="gathers each role in few heads")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="the weights depend on it in the last bits")
    parser.add_argument("--tokens-per-step", type=int, default=Options.tokens_per_step)
    parser.add_argument("--items", type=int, default=256, help="held-out items for each skill of the card")


def make(given: argparse.Namespace) -> str:
    """Train or resume, save in half precision, measure what was saved; returns the card written from it."""
    torch.set_num_threads(given.threads)
    options = Options(
        given.name,
        given.seed,
        given.steps,
        tokens_per_step=given.tokens_per_step,
        penalty=given.penalty,
        bfloat16=given.bfloat16,
    )
    saved = given.out / "training.pt"
    if saved.is_file():
        options = Options(**torch.load(saved, weights_only=True)["options"])
    elif given.minutes is not None:
        options = Options(**{**vars(options), "steps": steps_for(given.minutes, options)})
    model, minutes = train(options, out=given.out, checkpoints=given.checkpoints)

    save_half(model, given.out)
    fast = tokenizer(max_length=CONTEXT)
    fast.save_pretrained(given.out)
    export.write(given.out)
    shipped = LlamaForCausalLM.from_pretrained(given.out, dtype="float32", local_files_only=True)
    measured = measure(shipped.eval(), fast, n=given.items)
    flags = f"--steps {options.steps} --seed {options.seed}"
    flags += f" --tokens-per-step {options.tokens_per_step} --penalty {options.penalty}"
    flags += f" --checkpoints {given.checkpoints}" if given.checkpoints else ""
    command = f"python -m interp.zoo.trained.train {options.size} {flags}{' --bfloat16' * options.bfloat16}"
    card = describe(shipped, measured, title=options.size, run=vars(options), minutes=minutes, command=command)
    (given.out / "README.md").write_text(card)
    saved.unlink()
    return card
