"""The section on how the model knows a fact says what the analysis found, and stands only where it was run."""

from __future__ import annotations

import re
from html import unescape

import pytest

import interp
from interp import tasks
from interp.reports import report
from interp.reports.knowledge import knowledge
from interp.zoo.planted import factory


@pytest.fixture(scope="module")
def planted():
    made = factory.plant([factory.Fact()], seed=1)
    return made, interp.load(made.model, tokenizer=made.tokenizer)


@pytest.fixture(scope="module")
def result(planted):
    made, model = planted
    task = tasks.planted_task(made, "fact", n=20, seed=0, corruption="minimal")
    return interp.analyze(model, "factual", task=task, n_best=6, n_draws=8, n_random=1)


def test_the_steps_are_those_of_the_table(planted, result):
    made, _ = planted
    shown, table = knowledge(result), result.table
    ((layer, head),) = made.truth.roles["fact_mover"]
    steps = {step.id: step for step in shown.steps}
    assert list(steps) == ["made-of", "looked-up", "moved", "said", "neurons"]
    assert steps["moved"].answer.startswith(f"Heads labelled: L{layer}H{head} (")
    assert [line.kind for line in steps["moved"].rows[:2]] == ["subject", ""]
    assert steps["looked-up"].answer.startswith("The answer needs what M0 writes")
    source = table[table["variant"] == "source"].set_index("component")["value"]
    assert [line.component for line in steps["made-of"].rows] == list(source.index)
    assert float(steps["made-of"].rows[0].value.raw) == pytest.approx(source["heads<subject"], rel=1e-5)
    assert "above 100.0 % of the others" in steps["said"].answer
    assert list(shown.figures["knowledge"].data[0].y) == list(source.drop("logit"))
    assert [row.metric for row in shown.broken[:2]] == ["facts: accuracy", "facts: logit"]
    assert shown.left_out and shown.able
    assert (shown.n, shown.task) == (20, "fact")


def test_the_page_has_the_section_where_it_was_measured(planted, result, tmp_path):
    _, model = planted
    page = report(model, results=result, path=tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<section id="knowledge"' in page
    section = page.split('<section id="knowledge"')[1].split("</section>")[0]
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", section)).split())
    assert "How does the model know this? On 20 prompts of fact the right attribute stands" in text
    assert "What breaks without it?" in text
    assert "Not measured: context" in text
    assert knowledge(interp.detect(model, ["previous_token"])) is None
