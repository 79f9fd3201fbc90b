"""Neurons that a task needs, what they say, and late components that push the first choice down, on planted models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from mlp_written import linear_mlp, prompts
from sklearn.metrics import roc_auc_score
from tiny_models import tiny

import interp
from interp import tasks
from interp.errors import SiteError
from interp.measurement.neuron_effects import neuron_names
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import AntiCopy, Copy, Fact, Induction
from interp.zoo.planted.mechanisms.base import Slot
from probes.mlp import neuron_examples, neurons, overconfidence, skill_table, value_vectors


@pytest.fixture(scope="module")
def planted():
    made = factory.plant([Fact(), Induction()], seed=1)
    return made, interp.load(made.model, tokenizer=made.tokenizer)


@pytest.fixture(scope="module")
def found(planted):
    made, model = planted
    return neurons(model, task=tasks.planted_task(made, "fact", n=48, seed=0), n_best=8, n_random=8, n_sets=1)


def test_planted_facts_are_the_neurons_found(planted, found):
    names = set(neuron_names(planted[0].truth.neurons["fact_table"]))
    rows = found.table[found.table["variant"] == "removal"].set_index("component")
    assert set(rows.index[rows["label"].astype(bool)]) == names
    assert roc_auc_score(rows.index.isin(names), rows["value"]) == 1.0
    assert set(rows["value"].nlargest(len(names)).index) == names
    shares = found.table[found.table["variant"].isin(["carried", "lost"])].set_index(["variant", "k"])
    assert shares.loc[("lost", 8), "value"] == pytest.approx(1, abs=0.15)
    assert abs(shares.loc[("lost", 8), "null"]) < 0.1
    assert shares.loc[("carried", 8), "value"] == pytest.approx(1, abs=0.15)
    removed = found.interventions.iloc[0]
    assert removed["edited"] < 0.3 * removed["clean"] < removed["random_mean"]
    agreement = found.table.set_index("variant").loc["agreement_first_order", "value"]
    assert agreement > 0.5


def test_their_removal_destroys_the_facts_only(planted):
    made, model = planted
    own = {name: tasks.planted_task(made, name, n=24, seed=1) for name in ("fact", "induction")}

    def metric(task):
        return lambda m: float(task.value(m.run(task.clean).logits).mean())

    skills = {name: metric(task) for name, task in own.items()}
    table = skill_table(
        model, made.truth.neurons["fact_table"], skills, own["fact"].clean, n_random=2, how="zero"
    ).set_index("skill")
    assert table.loc["fact", "edited"] < 0.05 * table.loc["fact", "clean"]
    assert table.loc["induction", "edited"] == pytest.approx(table.loc["induction", "clean"], rel=0.02)
    assert (table["random_mean"] > 0.9 * table["clean"]).all()
    accuracy = skill_table(model, ["M0N0"], own, own["fact"].clean, n_random=1).set_index("skill")
    assert (accuracy["clean"] > 0.95).all()


def test_a_skill_without_wrong_answers_is_a_first_choice():
    model = tiny("llama")
    task = prompts(model, 16)
    bare = replace(task, answers=task.answers.roll(1, 0), wrong=torch.full_like(task.wrong, -1))
    logits = model.run(task.clean).logits[:, -1]
    first = float((logits.argmax(-1) == bare.answers[:, 0]).double().mean())
    assert first < 1
    assert skill_table(model, ["M0N0"], {"bare": bare}, task.clean, n_random=1)["clean"].item() == first


def test_every_neuron_of_a_small_mlp():
    """Where all are among the best there is no control, and that is said."""
    model = linear_mlp(torch.ones(64))
    table = neurons(model, task=prompts(model, 8), n_best=128, n_sets=1).table
    rows = table[table["variant"] == "removal"]
    assert len(rows) == 128
    assert rows["p"].isna().all()
    assert rows["label"].isna().all()


def test_value_vectors_are_rows_through_the_unembedding():
    model = tiny("llama")
    module = model.torch_module
    found = value_vectors(model, ["M1N3"], k=3)
    vector = module.model.layers[1].mlp.down_proj.weight[:, 3] * module.model.norm.weight
    logits = (module.lm_head.weight @ vector).detach()
    logits = logits - logits.mean()
    up, down = found[found["side"] == "up"], found[found["side"] == "down"]
    assert up["token"].tolist() == logits.topk(3).indices.tolist()
    assert down["token"].tolist() == (-logits).topk(3).indices.tolist()
    np.testing.assert_allclose(up["value"], logits.topk(3).values, rtol=1e-4)
    assert (down["null"] < 0).all() and (up["null"] > 0).all()
    with pytest.raises(SiteError, match="no neuron"):
        value_vectors(model, ["L1H3"])


@torch.no_grad()
def test_examples_of_an_expert_have_its_weight():
    model, texts = tiny("gpt_oss"), [[1, 2, 3, 4, 9], [5, 6, 7, 8, 10]]
    found = neuron_examples(model, "M1N3", texts, k=3, per_prompt=3).rows
    from interp.measurement.neuron_effects import activations

    a = activations(model, model.batch(texts), [1])[1][..., 3]
    np.testing.assert_allclose(found[found["sample"] == "top"]["value"], a.flatten().topk(3).values, atol=1e-6)


@dataclass(frozen=True, kw_only=True)
class Doubt(AntiCopy):
    """Takes down what `Copy` says, where it says it, by less than that."""

    name: ClassVar[str] = "doubt"
    cue: ClassVar[str] = "<copy>"
    strength: ClassVar[float] = -0.4
    slots: ClassVar[tuple[Slot, ...]] = (Slot("doubt"),)


def test_the_head_that_doubts_is_found_and_recall_rises_without_it():
    made = factory.plant([Copy(), Doubt()], seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    task = tasks.planted_task(made, "copy", n=16, seed=0)
    result = overconfidence(model, task=task, depth=1.0, factors=(0.0,))
    rows = result.table[result.table["variant"] == "push"].set_index("component")
    (doubt,), (copy,) = (made.truth.roles[role] for role in ("doubt", "copy"))
    assert list(rows.index[rows["label"].astype(bool)]) == ["L{}H{}".format(*doubt)]
    assert rows["value"].idxmax() == "L{}H{}".format(*copy)
    assert rows.loc["L{}H{}".format(*doubt), "value"] == pytest.approx(-0.4 * rows["value"].max(), rel=0.05)
    effects = result.interventions.set_index("metric")
    logit = effects.loc["top_logit"]
    assert logit["edited"] > 1.2 * logit["clean"]
    assert logit["random_mean"] <= logit["clean"]  # one of the others is the head that copies
    assert effects.loc["answer_log_prob", "edited"] > effects.loc["answer_log_prob", "clean"]
    assert np.isfinite(effects.loc["text_loss_nats", "edited"])
