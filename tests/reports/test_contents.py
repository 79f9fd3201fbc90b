"""The atlas, the sinks and the circuits of the page; how its tables are sorted; that headings nest."""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

import interp
from circuits import circuit
from interp import tasks
from interp.errors import SchemaError, TaskError
from interp.measurement.ability import Ability
from interp.reports import report
from interp.reports.circuits import dips, task_circuit
from interp.reports.roles import roles
from interp.reports.sections import sections
from interp.reports.sinks import sinks
from interp.reports.templates import counted


@pytest.fixture(scope="module")
def model():
    return interp.load("zoo:planted-induction")


@pytest.fixture(scope="module")
def result(model):
    names = ("previous_token", "sink", "duplicate_token")
    return interp.Result.concat([interp.analyze(model, name, n_prompts=8) for name in names])


@pytest.fixture(scope="module")
def found(model):
    finding, judging = (tasks.task("induction", model, n=3, seed=0, split=split) for split in tasks.SPLITS)
    return circuit(model, finding, held_out=judging, edges=4, n_random=3)


@pytest.fixture(scope="module")
def source(model, result, found, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "page.html"
    prompt = ([0, 21, 22, 23, 21, 22], 23, 24)
    report(model, results=result, tasks=[found], prompts=[prompt], path=path, command="interp report M")
    return path.read_text(encoding="utf-8").replace(get_plotlyjs(), "")


class Outline(HTMLParser):
    """Levels of headings, ids, and the targets of links inside the page."""

    def __init__(self, source):
        super().__init__()
        self.levels, self.ids, self.targets, self.labelled, self.unnamed = [], [], [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        self.ids += [own["id"]] if "id" in own else []
        if tag == "a":
            self.targets.append(own["href"].removeprefix("#"))
        self.labelled += own.get("aria-labelledby", "").split()
        if own.get("role") in {"img", "region", "group"} and not own.get("aria-label"):
            self.unnamed.append((tag, own))


def words_of(source):
    return " ".join(re.sub(r"<[^>]*>", " ", source).split())


def test_headings_nest_ids_are_unique_and_links_lead_somewhere(source):
    page = Outline(source)
    assert page.levels[0] == 1
    assert page.levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(page.levels, page.levels[1:], strict=False))
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.targets) | set(page.labelled) <= set(page.ids)
    assert page.unnamed == []


def test_sections_stand_in_order(source):
    titles = re.findall(r"<h2 id=\"([\w-]+)-title\"", source)
    asked, found, known = ["prompts", "circuits"], ["atlas", "sinks", "analyses"], ["attention", "provenance", "limits"]
    assert titles == ["reading", *asked, *found, *known]


def test_the_circuit_stands_beside_its_verdict_and_random_circuits(source, found):
    text = words_of(source)
    row = found.table().iloc[0]
    assert found.finding() in html.unescape(text)
    assert f"Faithfulness {row['faithfulness']:.3f} 95&nbsp;% interval" in text
    assert f"{row['n']} held-out prompts" in text
    assert "mean of 3 of the same size" in text
    assert found.provenance["data"]["judged_on"]["sha256"] in text
    for edge in found.graph.table().to_dict("records"):
        assert f"{edge['sender']} {edge['receiver']}" in text
    assert source.count("data-circuit>") == 1
    assert "A faithful circuit is one of possibly many" in text


def test_a_circuit_s_numbers_are_those_of_the_library(found):
    shown, row = task_circuit(found), found.table().iloc[0]
    assert [row.score for row in shown.view.rows] == [f"{x:.4g}" for x in found.graph.table()["score"]]
    assert (shown.p, np.isnan(row["p"])) == ("", True)  # three random circuits give no p
    assert shown.ability == found.ability.sentence()
    assert len({size.edges for size in shown.sizes}) == len(shown.sizes)
    heads = pd.DataFrame([("L1H1", "previous token", "attention pattern")], columns=["component", "role", "stage"])
    assert task_circuit(found, roles=heads).view.roles == {"L1H1": ("previous token",)}


def test_the_atlas_has_the_roles_and_maps_what_was_labelled(result, source):
    atlas, shown = interp.atlas(result), roles(result)
    table = atlas.roles()
    last = table["stage"] == "attention pattern"
    ordered = pd.concat([table[~last], table[last]])
    assert [(row.component, row.role) for row in shown.rows] == list(
        ordered[["component", "role"]].itertuples(index=False, name=None)
    )
    assert shown.n_pairs == len(atlas.agreement())
    assert any("previous token" in str(trace.name) for trace in shown.figures["roles"].data)
    table = words_of(source.split("Every role a head was labelled with")[1].split("</table>")[0])
    assert f"{shown.rows[0].component} previous token in-context identification Previous-token heads" in table


def test_how_well_the_model_does_a_task_stands_with_the_analysis_that_asks_it(model, result, tmp_path):
    """An explanation of what a model cannot do must not be read as one of what it does."""
    asked = {"facts": Ability.of_counts(10, 10, 0.5).as_dict(), "ioi": Ability.of_counts(5, 10, 0.5).as_dict()}
    provenance = {"calls": [{"call": {"analysis": "sink"}, "ability": asked}, {"call": {"analysis": "previous_token"}}]}
    own = interp.Result(result.table, provenance, result.interventions)
    told = {section.name: [task for task, _ in section.ability] for section in sections(own)}
    assert told == {"previous_token": [], "sink": ["facts", "ioi"], "duplicate_token": []}
    said = words_of(report(model, results=own, path=tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "facts: the model is right in 1.00 of 10 prompts (chance 0.5)" in said
    assert "The model does not do this task better than chance: what it does instead" in said
    assert said.count("the model is right in") == 2


def test_one_analysis_makes_no_atlas(model, result):
    assert roles(interp.detect(model, ["previous_token"])) is None
    assert sinks(interp.detect(model, ["previous_token"])) is None


def test_sinks_are_what_the_analysis_says(result):
    shown, table = sinks(result).first, result.table
    own = table[(table["analysis"] == "sink") & (table["variant"] == "first_token")]
    assert shown.n_heads == len(own)
    assert shown.labelled == int(own["label"].sum())
    assert float(shown.heads[0].first.raw) == pytest.approx(own["value"].max())


def test_numbers_are_sorted_by_what_they_are(source):
    cells = re.findall(r'<td class="n" data-value="([^"]*)">([^<]*)</td>', source)
    assert len(cells) > 100
    for raw, text in cells:
        assert (raw == "") == (text == "–")
        if raw and re.fullmatch(r"[+−]?[\d.]+", text):
            assert float(text.replace("−", "-")) == pytest.approx(float(raw), abs=0.6)
    assert "<button" not in source.split("<table")[1].split("</table>")[0]  # without scripts there is nothing to press


def test_provenance_has_a_line_for_everything(source):
    text = words_of(source.split('id="provenance"')[1])
    for line in ("previous_token", "sink", "duplicate_token", "direct attribution own prompt", "circuit induction"):
        assert line in text
    assert "3 + 3 held out" in text
    assert "interp report M" in text


def test_a_circuit_of_another_model_and_what_is_no_task_are_refused(found, tmp_path):
    with pytest.raises(SchemaError, match="this circuit is of another model: \\w+ is"):
        report(interp.load("zoo:planted-sink"), tasks=[found], path=tmp_path / "page.html")
    with pytest.raises(SchemaError, match="3: expected a task, its name"):
        report(interp.load("zoo:planted-sink"), tasks=[3], path=tmp_path / "page.html")


def test_an_unknown_task_is_refused_before_the_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr("interp.measurement.registry.detect", lambda *_, **__: pytest.fail("ran too early"))
    with pytest.raises(TaskError, match="unknown task 'inductoin'; did you mean 'induction'"):
        report(model, tasks=["inductoin"], path=tmp_path / "page.html")
    with pytest.raises(TaskError, match="ioi"):
        report(model, tasks=["ioi"], path=tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_every_kind_of_key_and_massive_activations_stand_in_the_section():
    from interp.zoo.planted import factory
    from interp.zoo.planted.mechanisms import FirstTokenSink, MassiveActivation

    made = factory.plant([MassiveActivation(layer=0), FirstTokenSink(at=(1, 2))], seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    options = {"n_prompts": 8, "length": 32, "n_random": 2, "bos": "forced"}
    found = [interp.analyze(model, name, **options) for name in ("sinks", "massive_activations")]
    shown = sinks(interp.Result.concat(found))
    assert shown.first is None
    rows = {(row.component, row.place, row.input): row for row in shown.places}
    assert {("L1H2", "first", "random"), ("L1H2", "first", "repeated")} == set(rows)
    table = found[0].table
    own = table[(table["component"] == "L1H2") & (table["input"] == "random") & (table["place"] == "first")]
    value = own.set_index("variant")["value"]
    row = rows["L1H2", "first", "random"]
    for cell, variant in (
        (row.share, "share"),
        (row.norm, "value_norm_ratio"),
        (row.gap, "gap"),
        (row.length, "gap_norm"),
    ):
        assert float(cell.raw) == pytest.approx(value[variant], rel=1e-4)
    dimension = made.truth.massive[0][2]
    assert [(m.component, m.place, m.born, m.erased) for m in shown.massive] == [
        (f"L0.resid_post[{dimension}]", "first", "M0", "–")
    ]
    assert float(shown.massive[0].activation.raw) > 150
    assert len(shown.effects) == sum(len(r.interventions) for r in found)
    assert float(shown.effects[0].edited.raw) == pytest.approx(found[0].interventions["edited"].iloc[0], rel=1e-4)


def curve(*values, width=0.05):
    """Rows of faithfulness by size."""
    return [
        {"edges": 10 * i, "faithfulness": v, "ci_low": v - width, "ci_high": v + width} for i, v in enumerate(values, 1)
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.1, 0.87, 0.16, 0.98), ["0.160 at 30 edges, between 0.870 at 20 edges and 0.980 at 40 edges"]),
        ((0.9, 0.3, 0.2, 0.8, 1.0), ["0.200 at 30 edges, between 0.900 at 10 edges and 1.000 at 50 edges"]),
        ((0.8, 0.1, 0.5, 0.85, 1.0), ["0.100 at 20 edges, between 0.800 at 10 edges and 0.850 at 40 edges"]),
        ((0.1, 0.5, 0.9, 1.0), []),  # it rises
        ((0.1, 0.9, 0.85, 1.0), []),  # too little
        ((0.9, 0.5, 0.2), []),  # nothing larger is better
        ((0.8, 0.5, 0.9, 0.4, 1.0), ["0.500 at 20", "0.400 at 40"]),
    ],
)
def test_a_fall_of_faithfulness_between_sizes_is_said(values, said):
    found = dips(curve(*values))
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))


def test_a_fall_within_its_interval_is_not_said():
    assert dips(curve(0.9, 0.6, 0.95, width=0.35)) == []
    assert len(dips(curve(0.9, 0.6, 0.95, width=0.2))) == 1


def test_every_table_says_how_many_rows_it_holds(source):
    tables = re.findall(r"<table.*?</table>", source, re.DOTALL)
    assert len(tables) > 8
    for table in tables:
        body = "".join(re.findall(r"<tbody.*?</tbody>", table, re.DOTALL))
        shown, of = re.search(r"(\d+)(?: of (\d+))? rows?</caption>", table).groups()
        assert int(shown) == len(re.findall("<tr", body))
        assert of is None or int(of) > int(shown)
    assert "10 of 16 rows" in source  # heads of the planted model


def test_rows_are_counted_where_a_caption_is_seen_already():
    table = "<table><caption>Up</caption><tr><td>a</td></tr><tr><td>b</td></tr></table>"
    assert "<caption>Up, 2 rows</caption>" in counted(table)
    assert counted('<table data-of="2"><tbody><tr></tr></tbody></table>').count("1 of 2 rows") == 1
