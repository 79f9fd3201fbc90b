"""A planted fact is found from subject to answer in one call, and what is found is needed by it alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from probe_cases import named, variant
from sklearn.metrics import roc_auc_score
from tiny_models import D_VOCAB, SPANNING, tiny

import interp
from interp import tasks
from interp.decompose import attribute
from interp.edits import Scale
from interp.errors import TaskError
from interp.measurement.answers import candidates
from interp.measurement.neuron_effects import neuron_names
from interp.patching.case import Case
from interp.tasks.planted_pairs import planted_conflict
from interp.tasks.prompt import collate
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import Fact, Induction, Told
from probes.mlp import factual
from probes.mlp.enrichment import SubjectWrites, attribute_areas, other_token
from probes.mlp.mechanisms import Mechanisms
from probes.mlp.recall_removal import Outcome


@pytest.fixture(scope="module")
def planted():
    made = factory.plant([Fact(), Induction(), Told()], seed=1)
    return made, interp.load(made.model, tokenizer=made.tokenizer)


@pytest.fixture(scope="module")
def facts(planted):
    return tasks.planted_task(planted[0], "fact", n=20, seed=0, corruption="minimal")


@pytest.fixture(scope="module")
def found(planted, facts):
    made, model = planted
    contradicted = planted_conflict(tasks.planted_task(made, "fact", n=24, seed=3), made.vocab)
    skills = {"copying": tasks.planted_task(made, "induction", n=12, seed=1)}
    options = {"n_best": 8, "n_draws": 8, "n_random": 2, "skills": skills, "conflicts": contradicted}
    return factual(model, task=facts, **options)


def value(result, name, component):
    return variant(result, name).loc[component, "value"]


def test_mover_neurons_and_answer_direction_are_those_planted(planted, found):
    made, _ = planted
    mechanisms, neurons = variant(found, "mechanism"), variant(found, "neuron")
    movers, table = named(made, "fact_mover"), set(neuron_names(made.truth.neurons["fact_table"]))
    assert roc_auc_score(mechanisms.index.isin(movers), mechanisms["value"]) == 1.0
    assert list(mechanisms.index[mechanisms["label"].astype(bool)]) == movers
    assert mechanisms.loc[movers[0], "role"] == "subject"
    assert roc_auc_score(neurons.index.isin(table), neurons["value"]) == 1.0
    labelled = set(neurons.index[neurons["label"].astype(bool)])
    assert labelled <= table and len(labelled) >= 5
    assert value(found, "answer_direction", "labelled") == 1.0
    assert variant(found, "answer_direction")["p"].item() < 1e-3
    assert value(found, "answer_direction_rest", "all others") < 0.7
    assert variant(found, "answer_direction")["null"].item() == pytest.approx(0.5, abs=0.1)


def test_it_is_looked_up_at_the_subject_and_nowhere_else(found):
    enrichment, whole = variant(found, "enrichment"), value(found, "source", "logit")
    assert enrichment.loc["M0", "value"] == pytest.approx(whole, rel=0.1)
    assert enrichment.loc["MLPs", "value"] == pytest.approx(whole, rel=0.1)
    assert enrichment.loc["M0", "q"] < 0.01 < enrichment.loc["M1", "q"]
    assert variant(found, "elsewhere")["value"].abs().max() < 0.02 * whole


def test_removal_destroys_the_facts_only(found):
    rows = found.interventions.set_index(["set_id", "metric"])
    sets = found.interventions["set_id"].unique()
    assert len(sets) == 2
    for name in sets:
        facts, copying = rows.loc[(name, "facts: accuracy")], rows.loc[(name, "copying: accuracy")]
        assert (facts["clean"], copying["clean"]) == (1, 1)
        assert facts["edited"] <= 1 / 3
        assert facts["random_mean"] > 0.9
        assert copying["edited"] == 1
        assert rows.loc[(name, "facts: logit"), "edited"] < 0.05 * rows.loc[(name, "facts: logit"), "clean"]


def test_skills_are_measured_under_the_edits(planted, facts):
    _, model = planted
    case = Case.of(model, facts)
    outcome = Outcome(case, {"edits in force": lambda own: float(len(own.edits))})
    assert outcome.measure([Scale("L0.mlp_out", 0.0)])["edits in force: accuracy"] == 1
    assert outcome.measure([])["edits in force: accuracy"] == 0


def test_memory_stands_against_context(planted, found):
    made, _ = planted
    rows = variant(found, "context")
    roles = {name: rows.index[rows["role"] == name].tolist() for name in ("context", "memory")}
    assert roles == {"context": named(made, "told"), "memory": named(made, "fact_mover")}


def test_additive_parts_sum_to_the_logit(planted, facts, found):
    _, model = planted
    source = variant(found, "source")["value"]
    assert source.drop("logit").sum() == pytest.approx(source["logit"], rel=1e-5)
    logits = model.run(facts.clean).logits[:, -1]
    others = candidates(facts.answers)
    margin = logits.gather(1, facts.answers)[:, 0] - logits.gather(1, others).mean(1)
    assert source["logit"] == pytest.approx(float(margin.mean()), rel=1e-4)
    assert found.provenance["data"]["sum_error"] < 1e-5


def random_facts(n=12, length=7, *, vocab=D_VOCAB):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, vocab, (n, length), generator=generator).tolist()
    return collate(
        "random facts",
        [(row, [*row[:2], row[3], *row[3:]]) for row in rows],
        answers=[[3 + i % 5] for i in range(n)],
        wrong=[[3 + (i + 1) % 5] for i in range(n)],
        roles=[{"SUBJECT": 2}] * n,
        templates=["one"] * n,
        corruption="other",
        metric="logit_diff",
    )


@pytest.mark.parametrize("architecture", SPANNING)
def test_the_sum_rule_holds_in_every_architecture(architecture):
    task = random_facts()
    case = Case.of(tiny(architecture), replace(task, wrong=candidates(task.answers)))
    found = Mechanisms.of(case, "SUBJECT", ratio=10.0, n_draws=5, seed=0)
    assert found.sum_error < 1e-5
    values = attribute(case.model, task.clean, task.answers, case.task.wrong)
    for i in (0, found.n_heads - 1):
        np.testing.assert_allclose(found.values[:, i], values[found.names[i]], atol=1e-4)


def test_an_inert_model_knows_nothing_and_says_what_it_left_out(planted, facts):
    made = factory.plant([], seed=0, n_words=planted[0].vocab.n_words)
    result = factual(interp.load(made.model), task=facts, n_best=2, n_draws=5, n_random=1)
    assert not variant(result, "mechanism")["label"].any()
    assert result.provenance["data"]["able"] is False
    assert (variant(result, "mechanism")["p"] == 1).all()
    assert "context" in result.provenance["data"]["left_out"]
    assert "answer_direction" not in set(result.table["variant"])


def test_ranks_and_reads_are_those_of_the_unembedding():
    task, model = random_facts(), tiny("gpt2")
    case = Case.of(model, replace(task, wrong=candidates(task.answers)))
    writes = SubjectWrites.of(case, task.role("SUBJECT"))
    acts = model.run(task.clean, capture=["resid_post", "mlp_out"])
    module = model.torch_module
    for layer, ranks in enumerate(writes.ranks().T):
        stream = acts[f"L{layer}.resid_post"][:, 2]
        read = module.lm_head(module.transformer.ln_f(stream))
        own, others = read.gather(1, task.answers), read.gather(1, case.task.wrong)
        np.testing.assert_array_equal(ranks, (others > own).sum(1))
    (own, *_) = writes.readable(draws=5, seed=0)
    last, norm = acts["L1.resid_post"][:, 2], module.transformer.ln_f
    scale = (last.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    written = acts["L0.mlp_out"][:, 2]
    read = ((written - written.mean(-1, keepdim=True)) / scale * norm.weight) @ module.lm_head.weight.T
    expected = read.gather(1, task.answers)[:, 0] - read.gather(1, case.task.wrong).mean(1)
    np.testing.assert_allclose(own[:, 0], expected.detach(), atol=1e-4)


def test_areas_count_ties_by_half():
    task = replace(random_facts(n=1), answers=torch.tensor([[0]]), wrong=torch.tensor([[1, 2, 3, -1]]))
    logits = torch.zeros(1, D_VOCAB)
    logits[0, 1], logits[0, 2] = -1.0, 1.0
    assert attribute_areas(logits, task).tolist() == [0.5]


def test_the_other_token_is_neither_subject_nor_end():
    task = random_facts()
    other = other_token(task, task.role("SUBJECT"), seed=0)
    assert set(other.tolist()) <= {1, 3, 4, 5}
    short = random_facts(length=4)
    assert set(other_token(short, torch.ones(12, dtype=torch.long) * 2, seed=0).tolist()) == {1}
    assert other_token(task.select([0]), torch.tensor([2]), seed=1) is not None


def test_refusals(planted, facts):
    _, model = planted
    with pytest.raises(TaskError, match="no role for a subject"):
        factual(model, task=replace(facts, roles={"END": facts.end}))
    with pytest.raises(TaskError, match="no role 'S'"):
        factual(model, task=facts, subject="S")
    with pytest.raises(TaskError, match="the same answer"):
        factual(model, task=replace(facts, answers=facts.answers[:1].expand_as(facts.answers)))


@pytest.mark.slow
def test_the_shipped_model_moves_the_subject_and_recalls_at_the_end():
    result = factual(interp.load("zoo:default"))
    rows = variant(result, "mechanism")
    assert set(rows.index[rows["label"].astype(bool)]) == {"L2H6", "L2H11", "M3"}
    assert rows.loc["M3", "value"] > 0.8 * value(result, "source", "logit")
    effects = result.interventions.set_index(["set_id", "metric"])
    heads = effects.loc[("mean: L2H6 L2H11", "facts: accuracy")]
    assert heads["edited"] < 0.5 < heads["random_mean"]
    assert pd.isna(variant(result, "neuron")["label"]).sum() == 0
