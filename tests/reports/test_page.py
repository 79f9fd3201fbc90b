import re
import shutil
import subprocess
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from plotly.offline import get_plotlyjs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import interp
from interp.attention import Rows
from interp.errors import InterpError, SchemaError, TaskError
from interp.reports import report
from interp.reports.attention import BLOCK, attention, top_heads
from interp.reports.sections import number
from interp.reports.tokens import pieces, visible
from interp.results.results import Result, frame
from interp.studies.findings import count_text
from interp.tokens.texts import token_texts

EVIL = "</script><script>alert(1)</script>&<q>"
NASTY = [EVIL, "a&b", "<i>", "🙂", "שלום", "\n", "two words", "\u202e", "\"quoted'", "{{ 7*7 }}"]
WORDS = NASTY + [f"w{i}" for i in range(30)]


def tiny(*, n_layers=2, n_heads=4, d_model=32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=d_model,
            intermediate_size=32,
            num_hidden_layers=n_layers,
            num_attention_heads=n_heads,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=None,
        )
        return interp.load(LlamaForCausalLM(config).eval())


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")


def rows(n_layers=2, n_heads=4, *, analysis="induction", variant="prefix_matching", seed=0, **columns):
    layer, head = (a.ravel() for a in np.meshgrid(range(n_layers), range(n_heads), indexing="ij"))
    value = np.random.default_rng(seed).uniform(0.1, 0.9, n_layers * n_heads)
    given = {
        "analysis": analysis,
        "variant": variant,
        "layer": layer,
        "head": head,
        "component": [f"L{a}H{b}" for a, b in zip(layer, head, strict=True)],
        "value": value,
        "ci_low": value - 0.05,
        "ci_high": value + 0.05,
        "null": 0.02,
        "p": 0.0001,
        "q": 0.0004,
        "n": 64,
        "unit": "probability",
        "label": value > 0.6,
    }
    return frame(pd.DataFrame(given | columns), extra={"label": "boolean"})


def result(*tables, interventions=(), **provenance):
    table = pd.concat(tables or [rows()], ignore_index=True)
    return Result(
        table, {"packages": {"torch": "2"}, "seed": 3, **provenance}, frame(interventions, interventions=True)
    )


class Page(HTMLParser):
    """Elements, attribute values, ids, and text by kind of element, as a browser's tokeniser sees them."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.text, self.scripts, self.styles, self._open = [], [], "", [], [], ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._open = tag
        if tag == "script":
            self.scripts.append("")
        if tag == "style":
            self.styles.append("")

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open == "style":
            self.styles[-1] += data
        else:
            self.text += data


@pytest.fixture
def write(model, tmp_path):
    def write(found, **options):
        owner = options.pop("model", model)
        return report(owner, results=found, path=tmp_path / "page.html", **options).read_text(encoding="utf-8")

    return write


def named(model, name, tokenizer=None):
    other = interp.load(model.torch_module, tokenizer=tokenizer)
    other.info = replace(other.info, name=name)
    return other


def test_the_page_shows_every_number_of_the_top_heads(write):
    found = result()
    page = Page(write(found))
    text = " ".join(page.text.split())
    for row in found.table.nlargest(10, "value").itertuples():
        line = f"{row.component} {row.value:.3f} {row.ci_low:.3f} to {row.ci_high:.3f} 0.020 <0.001"
        assert line.replace(" ", "") in text.replace(" ", "")
    n = int(found.table["label"].sum())
    assert f"2 layers × 4 heads. Detected: {n} induction heads." in text
    assert "What it does not mean" in text
    assert "Olsson et al. 2022" in text


def test_nothing_is_loaded_from_anywhere(write):
    source = write(result(), command="interp report M")
    page = Page(source.replace(get_plotlyjs(), ""))
    loading = {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}
    targets = [v for _, name, v in page.attributes if name in loading]
    assert targets
    assert all(v.startswith(("#", "data:")) for v in targets)
    assert not re.search(r"url\(|@import", "".join(page.styles) + "".join(v for _, _, v in page.attributes))
    assert "http" not in "".join(page.scripts)
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes


def test_plotly_is_inlined_once_and_the_rest_is_small(write):
    source = write(result())
    assert source.count(get_plotlyjs()) == 1
    assert source.count("* plotly.js v") == 1
    assert len(source.encode()) - len(get_plotlyjs().encode()) < 100_000


def test_names_tokens_prompts_and_commands_are_text(model, tokenizer, write):
    evil = named(model, EVIL, tokenizer)
    table = rows(component=[EVIL, *[f"c{i}" for i in range(7)]], unit="<u>")
    effects = [effect(set_id=f"zero: {EVIL}", metric=EVIL, control=EVIL)]
    provenance = {"device": EVIL, "data": {"task": EVIL}, "call": {"analysis": EVIL}}
    source = write(
        result(table, interventions=effects, **provenance), model=evil, prompt=list(range(12)), command=f"interp {EVIL}"
    )
    page = Page(source)
    assert page.tags.count("script") == 4
    assert not {"q", "u"} & set(page.tags)
    assert page.text.count(EVIL) >= 8
    assert not any("alert" in value for tag, name, value in page.attributes if name.startswith("on"))
    for word in (*NASTY[1:5], "two␣words", "↵", "\\u{202e}", "\"quoted'", "{{␣7*7␣}}"):
        assert word in page.text


def effect(**columns):
    row = {
        "analysis": "induction",
        "set_id": "zero: L1H2 L1H3",
        "k": 2,
        "control": "same layers",
        "metric": "second_copy_loss_nats",
        "clean": 0.125,
        "edited": 4.25,
        "random_mean": 0.25,
        "random_sd": 0.0625,
        "n_random": 20,
    }
    return row | columns


def test_interventions_stand_beside_their_random_sets(write):
    dose = effect(set_id="mean: L1H2", k=1, control="none", random_mean=None, random_sd=None, n_random=0)
    text = " ".join(Page(write(result(interventions=[effect(), dose]))).text.split())
    joined = text.replace(" ", "")
    assert "L1H2 L1H3 2 zero second copy loss nats 0.125 4.250 0.250 ± 0.062 20, same layers".replace(" ", "") in joined
    assert "L1H2 1 mean second copy loss nats 0.125 4.250 – –".replace(" ", "") in joined


def test_results_without_labels_intervals_or_registration_render(write):
    bare = frame(
        [{"analysis": "mine", "variant": "v", "layer": 0, "head": h, "value": -h, "unit": "nats"} for h in (0, 1)]
    )
    text = Page(write(result(bare))).text
    assert "no labels" in text
    assert "−1.000" in text
    assert "What a high score means" not in text


def test_results_that_are_no_heads_have_dots_but_no_map_and_no_attention(write):
    page = Page(write(result(rows(1, 2, analysis="mlp", head=None, component=["M0", "M1"]))))
    ids = {v for _, name, v in page.attributes if name == "id"}
    assert "top-0" in ids
    assert "map-0" not in ids
    assert "Not shown: no analysis of heads" in page.text


def test_no_labelled_head_is_said_so(write):
    text = " ".join(Page(write(result(rows(label=False)))).text.split())
    assert "Detected: no induction heads." in text
    assert "no head was labelled an induction head" in text


def test_only_the_named_analyses_are_shown(write):
    both = result(rows(), rows(analysis="sink", variant="first_token", seed=1))
    text = Page(write(both, analyses=["sink"])).text
    assert "First-token sinks" in text
    assert "Induction heads" not in text
    with pytest.raises(SchemaError, match="did you mean 'sink'"):
        write(both, analyses=["sinc"])


def test_the_first_head_shown_is_the_best_induction_head_and_its_rows_are_the_model_s(model):
    found, ids = result(), [5, 6, 7, 5, 6, 7, 8]
    head = attention(model, found, ids, seed=0).heads[0]
    best = found.table[found.table["label"]].nlargest(1, "value").iloc[0]
    assert head.name == best["component"]
    assert head.note == "The labelled induction head with the highest score."
    asked = model.attention(ids, {"rows": Rows(torch.arange(len(ids))[None])}, method="naive")["rows"]
    pattern = asked[int(best["layer"]), 0, int(best["head"])].numpy()
    for i, (keys, p) in enumerate(zip(head.keys, head.p, strict=True)):
        np.testing.assert_allclose(p[: i + 1], pattern[i, keys[: i + 1]], atol=1e-5)


def test_each_analysis_shows_its_top_head_and_a_head_of_two_is_shown_once():
    same = rows(analysis="sink", variant="first_token", seed=0)
    other = rows(analysis="previous_token", variant="offset_1", seed=1)
    shown = top_heads(result(rows(), same, other))
    assert len(shown) == 2
    first, second = shown.values()
    assert first == "the labelled induction head with the highest score, the highest score under First-token sinks"
    assert second == "the highest score under Previous-token heads"


def test_the_sample_prompt_is_a_repeat_and_the_target_follows_the_earlier_copy(model):
    view = attention(model, result(), None, seed=0)
    assert view.ids[:BLOCK] == view.ids[BLOCK:]
    assert list(view.targets) == list(range(BLOCK, 2 * BLOCK))
    for query, target in view.targets.items():
        assert view.ids[target - 1] == view.ids[query]
        assert target <= query
    assert view.ids == attention(model, result(), None, seed=0).ids
    assert view.ids != attention(model, result(), None, seed=1).ids


def test_one_token_can_be_shown_and_text_needs_a_tokenizer(model):
    assert attention(model, result(), [3], seed=0).queries == (0,)
    with pytest.raises(TaskError):
        attention(model, result(), "text without a tokenizer", seed=0)


def test_results_of_another_model_are_refused(model, tmp_path):
    sizes = model.info.as_dict() | {"n_layers": 7}
    with pytest.raises(SchemaError, match="another model: n_layers is 7 there and 2 here"):
        report(model, results=result(model=sizes), path=tmp_path / "page.html")
    with pytest.raises(SchemaError, match="no head L0H4"):
        report(model, results=result(rows(2, 5)), path=tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["missing/page.html", "."], ids=["no folder", "a folder"])
def test_an_unwritable_path_fails_before_any_work_and_leaves_nothing(model, tmp_path, where, monkeypatch):
    monkeypatch.setattr("interp.measurement.registry.detect", lambda *_, **__: pytest.fail("ran too early"))
    with pytest.raises(InterpError, match="cannot write"):
        report(model, path=tmp_path / where)
    assert list(tmp_path.iterdir()) == []


def test_a_result_without_rows_is_refused(write):
    with pytest.raises(SchemaError, match="no rows"):
        write(Result(frame([]), {}))


def test_the_same_results_give_the_same_page(write):
    assert write(result()) == write(result())


def test_a_model_of_a_thousand_heads_gives_a_page_of_moderate_size(write):
    large = tiny(n_layers=32, n_heads=32, d_model=64)
    tables = [rows(32, 32, analysis=name, variant=None, seed=i) for i, name in enumerate(("induction", "sink"))]
    started = time.perf_counter()
    source = write(result(*tables), model=large)
    assert time.perf_counter() - started < 10
    assert len(source) - len(get_plotlyjs()) < 600_000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "␣the"),
        ("\n\n", "↵↵"),
        ("a\tb", "a⇥b"),
        ("\u202eevil", "\\u{202e}evil"),
        ("\ud800", "\\u{d800}"),
        ("👩\u200d💻", "👩\u200d💻"),
        ("\u200d", "\\u{200d}"),
        ("שלום", "שלום"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_is_written_out(text, shown):
    assert visible(text) == shown


def test_signs_are_told_from_the_characters_they_stand_for():
    assert [(p.text, p.sign) for p in pieces("a ␣")] == [("a", False), ("␣", True), ("␣", False)]


def test_tokens_keep_their_leading_space_and_ids_stand_in_for_missing_text():
    class Fake:
        def convert_ids_to_tokens(self, ids):
            return ["▁the", "<0x0A>", "<0xE2>", None, "Ġcat", "â"][: len(ids)]

        def decode(self, ids, **_):
            return {4: " cat", 5: "\ufffd"}[ids[0]]

    assert token_texts(range(6), Fake()) == [" the", "\n", "<0xE2>", "#3", " cat", "â"]
    assert token_texts([7, 8], None) == ["7", "8"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.12345, "0.123"),
        (0.0, "0.000"),
        (1e-9, "<0.001"),
        (-1e-9, ">−0.001"),
        (-1.5, "−1.500"),
        (12345.6, "1.235e+04"),
    ],
)
def test_numbers_are_written_for_reading(value, shown):
    assert number(value) == shown
    assert number(float("nan")) == "–"


def test_counting_things():
    assert count_text([], "Induction heads") == "no induction heads"
    assert count_text(["L0H1"], "First-token sinks") == "1 first-token sink"
    assert count_text(["L0H1", "L0H2", "L1H0"], "Induction heads") == "3 induction heads"
    assert count_text(["L0H1", "L0H2"], "Direct attribution by source") == "2 heads (direct attribution by source)"
    assert count_text(["M1"], "Direct attribution by source") == "1 component (direct attribution by source)"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on PATH")
def test_a_browser_draws_the_figures_and_runs_nothing_else(model, tokenizer, tmp_path):
    evil = named(model, EVIL, tokenizer)
    path = report(
        evil, results=result(rows(component=[EVIL] + ["c"] * 7)), path=tmp_path / "page.html", prompt=[0, 1, 2]
    )
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    flags += f" --disable-component-update --virtual-time-budget=4000 --user-data-dir={tmp_path / 'profile'} --dump-dom"
    run = subprocess.run(
        ["chromium", *flags.split(), path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    page = Page(run.stdout)
    classes = [value for tag, name, value in page.attributes if tag == "svg" and name == "class"]
    assert classes.count("main-svg") >= 4
    assert page.text.count("L1H0") == 0
    assert EVIL in page.text
    assert page.tags.count("script") == 4
