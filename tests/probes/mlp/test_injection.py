"""Injected tokens raise their own logits by the law of a toy without norms, at the tokens and prompts asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mlp_written import linear_mlp, prompts
from probe_cases import variant
from tiny_models import tiny

from interp.edits import Add
from interp.errors import SchemaError, SiteError, TaskError
from interp.tasks.metrics import logit_diff
from probes.mlp import memory_injection
from probes.mlp._memory_injection import memory_ids


@pytest.fixture(scope="module")
def toy():
    """One layer whose MLP writes nothing and no norms: what is added to the stream is read by the unembedding alone."""
    model = linear_mlp(torch.zeros(64))
    return model, prompts(model, 12)


def test_the_law_of_the_toy(toy):
    model, task = toy
    result = memory_injection(model, task=task, memory="answer", strengths=(1.0, 3.0), n_random=6)
    rows = model.weights().w_u.mT
    for tau in (1.0, 3.0):
        expected = tau * rows[task.answers[:, 0]].square().sum(1)
        assert variant(result, "token").loc[f"A0 x{tau:g}", "value"] == pytest.approx(float(expected.mean()), rel=1e-5)
        gain = expected - tau * (rows[task.answers[:, 0]] * rows[task.wrong[:, 0]]).sum(1)
        injected = variant(result, "injected").loc[f"A0 x{tau:g}"]
        assert injected["value"] == pytest.approx(float(gain.mean()), rel=1e-4)
        assert injected["null"] < 0.2 * injected["value"]
        assert injected["q"] < 0.01
        assert injected["label"]


def test_random_tokens_do_not_help(toy):
    model, task = toy
    random = torch.randint(3, 64, (12, 2), generator=torch.Generator().manual_seed(5))
    result = memory_injection(model, task=task, memory=random, strengths=(2.0,), n_random=8)
    row = variant(result, "injected").iloc[0]
    assert not row["label"]
    assert row["p"] > 0.01


def test_where_and_into_what_it_is_written(toy):
    model, task = tiny("llama"), toy[1]
    ids = torch.tensor([[5, -1]] * len(task))
    ids[0, 1] = 9
    value = model.weights().w_u.mT[[5] * len(task)][:, None].clone()
    value[0, 0] += model.weights().w_u.mT[9]
    for tokens, into in (("all", "clean"), ("END", "corrupt")):
        result = memory_injection(
            model, task=task, memory=ids, strengths=(2.0,), layers=[0], tokens=tokens, into=into, n_random=5
        )
        batch = task.clean if into == "clean" else task.corrupt
        added = 2.0 * (value if tokens == "all" else value[:, 0])
        edit = Add("L0.attn_out", added, positions=None if tokens == "all" else -1)
        after, before = model.run(batch, edits=[edit]).logits, model.run(batch).logits
        change = logit_diff(after, task) - logit_diff(before, task)
        row = variant(result, "injected").iloc[0]
        assert row["value"] == pytest.approx(float(change.mean()), abs=1e-4)
        answer = (after.log_softmax(-1) - before.log_softmax(-1))[:, -1].gather(1, task.answers)
        assert variant(result, "log_prob")["value"].item() == pytest.approx(float(answer.mean()), abs=1e-4)
    embedded = memory_injection(model, task=task, memory=ids, strengths=(2.0,), layers=[0], space="embed", n_random=5)
    assert variant(embedded, "injected")["value"].item() != pytest.approx(row["value"], abs=1e-3)


def test_memories_are_tokens_of_roles_answers_or_ids(toy):
    _, task = toy
    role = next(r for r in task.roles if r != "END")
    at = task.role(role)
    np.testing.assert_array_equal(memory_ids(task, role)[:, 0], task.clean.ids[torch.arange(len(task)), at])
    assert torch.equal(memory_ids(task, "answer"), task.answers)
    with pytest.raises(TaskError, match=r"expected ids \[batch k\]"):
        memory_ids(task, torch.zeros(3, 1, dtype=torch.long))


def test_refusals(toy):
    model, task = toy
    with pytest.raises(SchemaError, match="space='logits'"):
        memory_injection(model, task=task, memory="answer", space="logits")
    with pytest.raises(SchemaError, match="finite numbers"):
        memory_injection(model, task=task, memory="answer", strengths=(float("nan"),))
    with pytest.raises(SiteError, match="layers \\[3\\]"):
        memory_injection(model, task=task, memory="answer", layers=[3])
    with pytest.raises(TaskError, match="at least 5"):
        memory_injection(model, task=task, memory="answer", n_random=1)
