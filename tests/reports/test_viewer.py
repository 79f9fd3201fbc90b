import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tolerance import assert_equal_to_rounding
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import interp
from interp.attention import Rows
from interp.errors import InterpError, SchemaError, SiteError, TaskError
from interp.plots.frame import TELLER
from interp.reports import rows as rows_module
from interp.reports.rows import HeadRows, packed
from interp.reports.viewer import UNIT, p_str, two

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "attention-viewer.md"


@pytest.fixture(scope="module")
def model():
    return interp.load("zoo:default")


def tiny(*, context):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=500, max_position_embeddings=context, **sizes)
        return interp.load(LlamaForCausalLM(config).eval())


def random_ids(n, *, seed=0):
    return torch.randint(4, 500, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def dense(model, ids, head):
    """All rows of a head from the oracle."""
    layer, number = interp.components.parse_head(head)
    asked = {"rows": Rows(torch.arange(len(ids))[None])}
    return model.attention(ids, asked, method="naive", layers=[layer])["rows"][0, 0, number].double().numpy()


def data(page):
    """The data of the page, as its script reads them."""

    class Reader(HTMLParser):
        found, inside = "", False

        def handle_starttag(self, tag, attrs):
            self.inside = ("type", "application/json") in attrs

        def handle_endtag(self, tag):
            self.inside = False

        def handle_data(self, text):
            self.found += text if self.inside else ""

    reader = Reader()
    reader.feed(page)
    return json.loads(reader.found)


def test_kept_keys_and_the_rest_are_the_pattern_of_the_model(model):
    ids = random_ids(60)
    view = interp.attention_view(model, ids, heads=["L0H1", "L2H3"], keys=8)
    assert view.queries == tuple(range(60))
    for head in view.heads:
        pattern = dense(model, ids, head.name)
        for i, (keys, p) in enumerate(zip(head.keys, head.p, strict=True)):
            kept = keys[keys >= 0]
            assert len(kept) == min(8, i + 1)
            np.testing.assert_allclose(p[: len(kept)], pattern[i, kept], atol=1e-5)
            np.testing.assert_allclose(p[: len(kept)], np.sort(pattern[i])[::-1][: len(kept)], atol=1e-5)
        assert_equal_to_rounding(head.p.sum(1) + head.rest, 1)


def test_the_page_carries_the_same_numbers(model, tmp_path):
    ids = random_ids(40)
    view = interp.attention_view(model, ids, heads="L3H6")
    found = data(view.save(tmp_path / "view.html").read_text(encoding="utf-8"))
    pattern = dense(model, ids, "L3H6")
    assert found["queries"] == list(range(40))
    assert [found["words"][token] for token in found["tokens"]] == [["".join(t)] for t in view.texts]
    for i, flat in enumerate(found["heads"][0]["rows"]):
        shown = dict(zip(flat[::2], flat[1::2], strict=True))
        np.testing.assert_allclose([p / UNIT for p in shown.values()], pattern[i, list(shown)], atol=1e-4)
        assert sum(shown.values()) <= UNIT + len(shown)


def test_induction_on_a_repeat_is_what_the_sentence_says(model):
    block = random_ids(12)
    view = interp.attention_view(model, [0, *block, *block], heads=["L3H6"])
    assert re.match(r"From position 24 \(.*\) L3H6 looks most at position 13 \(.*\), p = (1\.00|0\.9\d)", view.summary)
    assert view.top[0][0] == 13


def test_the_how_to_says_what_its_code_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    names = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    assert (tmp_path / "attention.html").exists()
    assert f"> {names['view'].summary}\n" in page
    keys = dict(names["view"]._row(1, 14))
    assert max(keys.values()) == keys[10]
    assert f"with p = {two(keys[10])}" in page


def test_heads_not_named_are_the_most_peaked(model):
    ids = [0, *random_ids(30)]
    view = interp.attention_view(model, ids)
    peak = {}
    for layer in range(model.info.n_layers):
        for number in range(model.info.n_heads):
            name = f"L{layer}H{number}"
            peak[name] = dense(model, ids, name)[:, 1:].max(1).mean()
    assert {head.name for head in view.heads} == set(sorted(peak, key=lambda name: -peak[name])[: rows_module.HEADS])
    first = [max(head.told(view.queries)) for head in view.heads]
    assert first == sorted(first, reverse=True)


def test_a_long_prompt_keeps_the_last_the_peaked_and_a_spread_of_rows(monkeypatch):
    monkeypatch.setattr(rows_module, "ROWS", 32)
    monkeypatch.setattr(rows_module, "PEAKED", 8)
    model, ids = tiny(context=300), random_ids(300)
    view = interp.attention_view(model, ids, heads=["L0H0", "L1H2"])
    assert view.queries[0] == 0
    assert view.at == 299
    assert 24 <= len(view.queries) <= 32
    peak = np.max([dense(model, ids, name)[:, 1:].max(1) for name in ("L0H0", "L1H2")], axis=0)
    assert set(np.argsort(-peak)[:8]) <= set(view.queries)
    gaps = np.diff(view.queries)
    assert gaps.max() <= 300 / 23 + 1
    with pytest.raises(TaskError, match="position 300 is outside the prompt"):
        interp.attention_view(model, ids, queries=[300])


def test_4096_tokens_and_four_heads_stay_below_a_mebibyte(tmp_path):
    view = interp.attention_view(tiny(context=4096), random_ids(4096))
    assert len(view.heads) == 4
    assert view.save(tmp_path / "view.html").stat().st_size <= 1 << 20
    assert len(view.span) == 256
    assert view.at in view.span


def test_queries_count_from_the_end_too(model):
    view = interp.attention_view(model, random_ids(20), heads="L0H0", queries=[-1, 3, 19])
    assert view.queries == (3, 19)
    assert not view.complete


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"heads": "L9H9"}, SiteError, "no head 'L9H9': heads go from L0H0 to L3H"),
        ({"heads": ["L3H6", "L3H66"]}, SiteError, "did you mean 'L3H6'"),
        ({"heads": "M3"}, SiteError, "'M3' is no head"),
        ({"heads": "three"}, SiteError, "cannot read component 'three'"),
        ({"heads": []}, SiteError, "no heads given"),
        ({"queries": [5]}, TaskError, "position 5 is outside the prompt; positions go from 0 to 4, or -5 to -1"),
        ({"queries": [-6]}, TaskError, "position -6 is outside"),
        ({"queries": []}, TaskError, "no query positions given"),
        ({"keys": 0}, TaskError, "keys is 0"),
    ],
)
def test_what_does_not_exist_is_said_so(model, options, error, said):
    with pytest.raises(error, match=re.escape(said)):
        interp.attention_view(model, [5, 6, 7, 8, 9], **options)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("", "empty prompt"), ([], "empty prompt"), ([[5], [6]], "2 prompts given"), ([10**6], "1000000")],
)
def test_what_is_no_prompt_is_said_so(model, prompt, said):
    with pytest.raises(TaskError, match=said):
        interp.attention_view(model, prompt)


def test_one_token_is_a_prompt(model):
    view = interp.attention_view(model, [5], heads="L0H0")
    assert view.queries == (0,)
    assert "looks most at position 0" in view.summary
    assert view.about == "A prompt of 1 token."


def test_a_file_that_cannot_be_written_is_said_so(model, tmp_path):
    with pytest.raises(InterpError, match="cannot write"):
        interp.attention_view(model, [5, 6]).save(tmp_path / "missing" / "view.html")
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_gets_a_frame_that_cannot_reach_out(model):
    view = interp.attention_view(model, [5, 6, 7])
    shown = view._repr_html_()
    frame, script = shown.split("<script>")
    assert frame.startswith('<iframe title="Attention" sandbox="allow-scripts" ')
    assert frame.count("<") == 2
    assert script == f"{TELLER}</script>"  # nothing of the prompt
    assert repr(view).startswith("<View of L")


def test_a_page_is_the_same_each_time(model, tmp_path):
    first, second = (interp.attention_view(model, [5, 6, 7, 8]).save(tmp_path / name) for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()


def test_text_of_a_prompt_cannot_end_the_script_or_become_markup(tmp_path):
    evil = "</script><script>alert(1)</script>"
    words = Tokenizer(WordLevel({evil: 4, "x": 0}, unk_token="x"))
    words.decoder = Fuse()
    model = interp.load(
        tiny(context=16).torch_module, tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, unk_token="x")
    )
    page = interp.attention_view(model, [4, 4, 0]).save(tmp_path / "view.html").read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert page.count("</script>") == 2
    assert data(page)["words"] == [[evil], ["x"]]


@pytest.mark.parametrize(
    ("p", "short", "whole"),
    [
        (0, "0.00", "0.00"),
        (7, "0.00", "0.0007"),
        (50, "0.01", "0.0050"),
        (1250, "0.13", "0.13"),
        (10_000, "1.00", "1.00"),
    ],
)
def test_halves_are_rounded_up_as_the_script_does(p, short, whole):
    assert two(p) == short
    assert p_str(p) == whole


def test_heads_are_written_by_name_by_place_by_layer_or_all(model):
    def names(heads):
        return [head.name for head in interp.attention_view(model, [5, 6, 7], heads=heads).heads]

    n_layers, n_heads = model.info.n_layers, model.info.n_heads
    layer = [f"L3H{h}" for h in range(n_heads)]
    assert names("L3") == layer
    assert names((3, 6)) == names("L3H6") == names([(3, 6)]) == ["L3H6"]
    assert names("all") == [f"L{i}H{h}" for i in range(n_layers) for h in range(n_heads)]
    assert names(["L2H1", "L3", (3, 6)]) == ["L2H1", *layer]
    assert "36 more" in repr(interp.attention_view(model, [5, 6, 7], heads="all"))
    for heads, message in (
        ("L9", "no heads in layer 9"),
        ((9, 1), "no head 'L9H1'"),
        (3, "got int 3"),
        ([1.0], "got float 1.0"),
    ):
        with pytest.raises(SiteError, match=message):
            names(heads)


def test_patterns_of_ones_own_are_viewed_as_those_of_a_model(model):
    ids = random_ids(20)
    pattern = model.run(ids, capture=["L2.pattern"])["L2.pattern"][0]
    words = [str(i) for i in ids]
    own = interp.pattern_view(pattern, words, names=[f"L2H{h}" for h in range(len(pattern))], keys=8)
    theirs = interp.attention_view(model, ids, heads="L2", keys=8)
    for a, b in zip(own.heads, theirs.heads, strict=True):
        np.testing.assert_allclose(a.p, b.p, atol=1e-5)
        assert a.name == b.name
    assert own.heads[0].keys[0].tolist() == [0, *[-1] * 7]
    assert data(own._page())["heads"][3]["name"] == "L2H3"
    for bad, tokens, message in (
        (pattern - 0.5, words, "no probabilities"),
        (pattern, words[1:], "20 queries and 20 keys for 19 tokens"),
        (pattern[0, 0], words, "a pattern: expected numbers"),
    ):
        with pytest.raises(SchemaError, match=message):
            interp.pattern_view(bad, tokens)


def unpacked(text, width):
    """Rows of (key, p) as the script reads them."""
    data, rows, at = base64.b64decode(text), [], 0
    while at < len(data):
        n, at = data[at], at + 1
        step = width + 1
        cells = [data[at + i * step : at + (i + 1) * step] for i in range(n)]
        rows.append({int.from_bytes(cell[:width], "little"): cell[width] / rows_module.STEPS for cell in cells})
        at += n * step
    return rows


def test_all_other_heads_travel_as_a_few_keys_in_steps(model):
    ids = random_ids(40)
    view = interp.attention_view(model, ids, heads=["L3H6", "L0H0"])
    every = {f"L{i}H{h}" for i in range(4) for h in range(12)}
    found = data(view._page())
    assert [head["name"] for head in found["heads"]] == ["L3H6", "L0H0"]
    assert {head["name"] for head in found["others"]} == every - {"L3H6", "L0H0"}
    assert found["other_queries"] == list(range(40))
    packed = next(head for head in found["others"] if head["name"] == "L2H10")
    pattern = dense(model, ids, "L2H10")
    for i, row in enumerate(unpacked(packed["packed"], found["key_bytes"])):
        largest = np.sort(pattern[i])[::-1][: rows_module.MANY]
        np.testing.assert_allclose(list(row.values()), [p for p in largest if p >= 0.5 / 255], atol=0.5 / 255 + 1e-6)
        np.testing.assert_allclose(list(row.values()), pattern[i, list(row)], atol=0.5 / 255 + 1e-6)
    assert "at most 16 keys of a row, in steps of 1/255" in view._page()


def test_keys_beyond_two_bytes_take_four():
    head = HeadRows("x", "", np.array([[70_000, 3]]), np.array([[0.6, 0.4]]))
    assert unpacked(packed(head, 2, 4), 4) == [{70_000: 153 / 255, 3: 102 / 255}]


@pytest.mark.parametrize(("n", "entries"), [(48, 20_000), (48, 1_000), (512, 300_000)])
def test_what_all_heads_keep_is_bounded(model, n, entries):
    shown = [(3, 6)]
    others, queries = rows_module.glance(model, random_ids(n), shown, list(range(n)), entries=entries)
    assert len(others) == 47
    assert sum(head.p.size for head in others) <= max(entries, 2 * 47 * rows_module.FEW)
    assert queries[0] == 0 and queries[-1] == n - 1
    assert all(head.p.shape[0] == len(queries) for head in others)


def test_512_tokens_and_48_heads_are_a_small_page(model, tmp_path):
    ids = random_ids(512)
    for heads, most in ((None, 2 << 20), ("all", 5 << 19)):
        view = interp.attention_view(model, ids, heads=heads)
        assert view.save(tmp_path / f"{heads}.html").stat().st_size <= most
        found = data(view._page())
        assert len(found["heads"]) + len(found["others"]) == 48


def test_the_row_shown_first_has_something_to_see():
    """Not the first token, not the query itself, not what an even row would give; of like rows the latest."""
    pattern = np.zeros((6, 6))
    pattern[0, 0] = pattern[1, 0] = pattern[5, 5] = pattern[4, 0] = 1
    pattern[2, :3] = 1 / 3
    pattern[3, 1], pattern[3, 3] = 0.7, 0.3
    assert interp.pattern_view(pattern, list("abcdef")).at == 3
    pattern[4] = [0, 0, 0.66, 0, 0.34, 0]  # less, by less than a hundredth of what is above even
    assert interp.pattern_view(pattern, list("abcdef")).at == 4
    even = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    assert interp.pattern_view(even, list("abcd")).at == 3


def test_heads_not_named_open_with_the_one_that_has_most_to_see(model):
    block = random_ids(16)
    view = interp.attention_view(model, [0, *block, *block])
    assert view.top[0][2] > 9_000
    assert view.top[0][0] not in (0, view.at)
