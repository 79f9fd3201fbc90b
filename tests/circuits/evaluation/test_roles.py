"""Circuits of heads at roles: against hooks of plain PyTorch, on planted truth, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import D_VOCAB, N_HEADS, N_LAYERS, tiny

import interp
from circuits import role_ablation, role_faithfulness
from interp.errors import SiteError, TaskError
from interp.tasks import planted_task
from interp.tasks.prompt import collate
from interp.zoo.planted import factory


def pairs(lengths=(6, 6, 8, 8, 8)):
    """Random prompts of two lengths, each a group; the role MIDDLE is another token in each, one prompt has none."""
    generator = torch.Generator().manual_seed(0)
    clean = [torch.randint(3, D_VOCAB, (n,), generator=generator).tolist() for n in lengths]
    roles = [{"MIDDLE": 2 + i % 3} if i else {} for i in range(len(lengths))]
    return collate(
        "pairs",
        [(row, [(7 * x + 3) % D_VOCAB for x in row]) for row in clean],
        answers=[[5]] * len(lengths),
        wrong=[[20]] * len(lengths),
        roles=roles,
        templates=["random"] * len(lengths),
        corruption="all",
        metric="logit_diff",
    )


CIRCUIT = {"L0H3": ("MIDDLE", "END"), "L1H6": "END"}


def by_hand(task, circuit):
    """GPT-2's own modules: z is the input of `c_proj`; means are those of the corrupted prompts of the same length."""
    model, values = tiny("gpt2"), []
    blocks = model.torch_module.transformer.h
    for row in range(len(task)):
        one, group = task.select([row]), task.select((task.lengths == task.lengths[row]).nonzero()[:, 0])
        means: list[torch.Tensor] = []
        hooks = [
            b.attn.c_proj.register_forward_pre_hook(lambda _, args, m=means: m.append(args[0].mean(0))) for b in blocks
        ]
        with torch.no_grad():
            model.torch_module(group.corrupt.ids)
        for hook in hooks:
            hook.remove()

        def ablate(layer, means=means, one=one):
            def hook(_, args):
                z, mean = (x.unflatten(-1, (N_HEADS, -1)).clone() for x in (args[0], means[layer]))
                kept = z.clone()
                z[:] = mean
                for head in range(N_HEADS):
                    roles = circuit.get(f"L{layer}H{head}", ())
                    for role in (roles,) if isinstance(roles, str) else roles:
                        at = int(one.roles[role][0])
                        if at >= 0:
                            z[0, at, head] = kept[0, at, head]
                return (z.flatten(-2),)

            return hook  # noqa: B023

        hooks = [b.attn.c_proj.register_forward_pre_hook(ablate(i)) for i, b in enumerate(blocks)]
        with torch.no_grad():
            logits = model.torch_module(one.clean.ids).logits[0, -1]
        for hook in hooks:
            hook.remove()
        values.append(float(logits[5] - logits[20]))
    return np.array(values)


def test_the_circuit_keeps_its_heads_at_their_roles_and_means_stand_elsewhere():
    model, task = tiny("gpt2"), pairs()
    logits = model.run(task.clean, edits=role_ablation(model, task, CIRCUIT)).logits
    circuit, empty = by_hand(task, CIRCUIT), by_hand(task, {})
    np.testing.assert_allclose(task.value(logits).numpy(), circuit, atol=1e-4)
    row = role_faithfulness(model, task, CIRCUIT, n_random=0, batch_size=2).table.iloc[0]
    full = task.value(model.run(task.clean).logits).mean().item()
    expected = (circuit.mean() - empty.mean()) / (full - empty.mean())
    assert row["value"] == pytest.approx(expected, abs=1e-3)
    assert (row["metric_full"], row["metric_empty"]) == pytest.approx((full, empty.mean()), abs=1e-4)
    assert (row["pairs"], row["n"]) == (3, 5)
    every = {f"L{layer}H{head}": "END" for layer in range(N_LAYERS) for head in range(N_HEADS)}
    whole = role_faithfulness(model, task, {"some": CIRCUIT, "all at END": every}, n_random=0).table
    assert whole["component"].tolist() == ["some", "all at END"]
    assert whole["value"][0] == pytest.approx(row["value"], abs=1e-5)


def test_planted_heads_at_their_tokens_are_the_whole_circuit_and_at_others_none():
    planted = factory.plant([factory.Induction()], seed=1, noise=0.0)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    task = planted_task(planted, "induction", n=8)
    previous, induction = ("L{}H{}".format(*planted.truth.roles[r][0]) for r in ("previous_token", "induction"))
    circuits = {"right": {previous: "B1", induction: "END"}, "swapped": {previous: "END", induction: "B1"}}
    result = role_faithfulness(model, task, circuits)
    right, swapped = result.table.itertuples()
    assert right.value == pytest.approx(1, abs=0.02)
    assert right.null < 0.5 and right.p < 0.3
    assert abs(swapped.value) < 0.1
    assert result.provenance["circuits"]["right"] == {previous: ["B1"], induction: ["END"]}
    result.plot()


def test_refusals():
    model, task = tiny("gpt2"), pairs()
    with pytest.raises(SiteError, match="no head 'L9H0': heads go from L0H0 to L1H7"):
        role_faithfulness(model, task, {"L9H0": "END"})
    with pytest.raises(TaskError, match="no role 'MIDDEL'; did you mean 'MIDDLE'"):
        role_ablation(model, task, {"L0H0": "MIDDEL"})
    with pytest.raises(TaskError, match="no reference prompt of 8 tokens"):
        role_faithfulness(model, task, {"L0H0": "END"}, reference=task.select([0, 1]))
