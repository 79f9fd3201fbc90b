"""Prompts of the user's own: taken apart exactly, refused early, shown as text."""

import re

import pytest
import torch
from plotly.offline import get_plotlyjs
from tiny_models import build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import interp
from interp.errors import InterpError, NotApplicable, TaskError
from interp.reports import report
from interp.reports.cells import cell, interval, percent, signed, small
from interp.reports.direct import HEADS, SPLIT, direct
from interp.reports.feeders import NAMED, feeders
from interp.reports.questions import LONGEST, Question, token_questions
from interp.results.results import Result, frame

HOSTILE = ["<script>alert(1)</script>", "a&b", "🙂", "שלום", "\u202e", "\n", "{{7*7}}", "'\"", "two words"]
WORDS = ["<unk>", *HOSTILE, *(f"w{i}" for i in range(20))]


@pytest.fixture(scope="module")
def model():
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.Fuse()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(WORDS), bos_token_id=None, eos_token_id=None, **sizes)
        bare = LlamaForCausalLM(config).eval()
    return interp.load(bare, tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"))


def scored(model):
    """Results of one analysis, so that nothing has to be detected."""
    rows = [
        {"analysis": "induction", "variant": "prefix_matching", "layer": layer, "head": head, "value": 0.1 * head}
        | {"component": f"L{layer}H{head}", "unit": "probability", "label": False}
        for layer in range(2)
        for head in range(4)
    ]
    return Result(frame(rows, extra={"label": "boolean"}), {})


def page_of(model, folder, *prompts):
    path = report(model, results=scored(model), prompts=prompts, path=folder / "page.html")
    return path.read_text(encoding="utf-8").replace(get_plotlyjs(), "")


def words_of(source):
    return " ".join(re.sub(r"<[^>]*>", " ", source).split())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("wrong", [None, 9], ids=["mean of all", "one token"])
def test_the_parts_sum_to_the_model_s_own_logits(architecture, wrong):
    model = interp.load(build(architecture))
    ids, answer = [3, 1, 4, 1, 5, 9, 2, 6], 7
    found = direct(model, token_questions(model, [(ids, answer, wrong)])[0])
    logits = model.run(ids).logits[0, -1].double()
    of = logits[answer] - (logits.mean() if wrong is None else logits[wrong])
    total = sum(float(part.value.raw) for part in found.parts)
    if found.softcap is None:
        assert float(found.given.replace("−", "-")) == pytest.approx(float(of), abs=2e-3)
    assert float(found.total.replace("−", "-")) == pytest.approx(total, abs=1e-3)
    assert found.rank == int((logits > logits[answer]).sum())
    assert [float(p.raw) for _, p, _ in found.likely] == pytest.approx(
        logits.softmax(0).topk(5).values.tolist(), rel=1e-3, abs=1e-6
    )
    assert len(found.layers) == model.info.n_layers
    assert found.layers[-1].rank.text == str(found.rank + 1)


def test_heads_and_their_sources_are_those_of_the_attribution(model):
    ids = [10, 11, 12, 13, 14]
    found = direct(model, token_questions(model, [(ids, 15, 16)])[0])
    own = interp.attribute(model, ids, 15, 16).heads[:, :, 0]
    assert len(found.heads) == min(HEADS, own.numel())
    for line in found.heads:
        layer, head = map(int, re.fullmatch(r"L(\d+)H(\d+)", line.component).groups())
        assert float(line.value.raw) == pytest.approx(float(own[layer, head]), abs=1e-5)
        parts = [float(source.value.raw) for source in line.sources] + [float(line.rest.raw)]
        assert sum(parts) == pytest.approx(float(line.value.raw), abs=1e-5)
    assert sum(float(chip.value.raw) for chip in found.chips) == pytest.approx(float(own.sum()), abs=1e-5)


@pytest.mark.parametrize(("architecture", "wrong"), [("llama", None), ("gpt2", 9), ("gpt_neox", None)])
def test_what_wrote_into_the_largest_mlp_is_what_it_loses_without(architecture, wrong):
    """A component is taken off what the MLP's norm is given; the logit's change is read through the final norm."""
    model = interp.load(build(architecture))
    ids, answer = [3, 1, 4, 1, 5, 9, 2, 6], 7
    found = direct(model, token_questions(model, [(ids, answer, wrong)])[0])
    sizes = {p.name: abs(float(p.value.raw)) for p in found.parts if p.name.startswith("MLP")}
    best = max(sizes, key=sizes.get)
    layer = int(best.split()[1])
    assert found.feeders.mlp == f"M{layer}"
    assert abs(float(found.feeders.value.raw)) == pytest.approx(sizes[best])
    assert 1 <= len(found.feeders.names) <= NAMED
    raw = [float(x.raw) for x in found.feeders.losses]
    assert raw == sorted(raw, key=abs, reverse=True)
    parts, run = interp.decompose.decompose(model, ids), model.run(ids, capture=["resid_post"])
    last = run[f"L{model.info.n_layers - 1}.resid_post"][0, -1].double()
    reads, norm, w_u = model.reads(layer), model.weights().final_norm, model.weights().w_u.double()
    w = w_u[:, answer] - (w_u.mean(1) if wrong is None else w_u[:, wrong])
    before = model.run(ids, capture=[f"L{layer}.resid_mid" if architecture != "gpt_neox" else f"L{layer}.resid_pre"])
    x = next(iter(before.acts.values()))[0, -1]

    def logits_of(y):
        with torch.no_grad():
            out = reads.mlp_of(reads.mlp(y[None]))[0].double()
        return float(w @ (norm.linear(out.float()).double() / norm.divisor(last.float()).double()))

    for name, loss in zip(found.feeders.names, raw, strict=True):
        assert loss == pytest.approx(logits_of(x) - logits_of(x - parts[name][0]), abs=1e-4), name


def test_a_model_without_mlps_has_none_that_is_fed(model):
    assert feeders(model, [10, 11], 12, None, {"embedding": 1.0, "attention 0": 2.0}) is None


def test_an_mlp_that_cannot_be_run_alone_says_why(model, monkeypatch):
    def refuse(*_):
        raise NotApplicable("it is no chain")

    monkeypatch.setattr("interp.reports.feeders._losses", refuse)
    found = feeders(model, [10, 11], 12, None, {"MLP 0": -2.0, "MLP 1": 1.0})
    assert (found.mlp, found.names, found.why) == ("M0", [], "it is no chain")


def test_a_prompt_too_long_to_split_is_still_summed(model, monkeypatch):
    monkeypatch.setattr("interp.reports.direct.SPLIT", 1)
    assert SPLIT > 1
    found = direct(model, token_questions(model, [([10, 11, 12], 15)])[0])
    assert not found.split
    assert all(not line.sources and line.rest is None for line in found.heads)


def test_the_page_prints_the_sum_and_its_error(model, tmp_path):
    source = page_of(model, tmp_path, ("w1 w2 w3", "w4", "w5"))
    found = direct(model, token_questions(model, [("w1 w2 w3", "w4", "w5")])[0])
    text = words_of(source)
    assert f"The parts sum to {found.total} , the model says {found.given} : off by {found.missed}" in text
    assert f"({found.relative} of its largest logit)" in text
    assert "Prompt 1: w4 over w5" in text
    assert "No answer was given" not in text
    assert 'id="depth-0"' in source
    assert 'id="heads-0"' in source
    assert "direct attribution own prompt 1 3" in text


def test_without_answers_the_likeliest_token_is_explained_and_said_so(model, tmp_path):
    text = words_of(page_of(model, tmp_path, "w1 w2", Question("w1 nosuch", "w2")))
    assert text.count("No answer was given: this is the model’s likeliest next token.") == 1
    assert text.count("No wrong answer was given") == 2
    assert "1 of 2 tokens are unknown to this tokenizer" in text
    assert direct(model, token_questions(model, ["w1 w2"])[0]).rank == 0


def test_prompts_are_shown_as_text(model, tmp_path):
    ids = [WORDS.index(word) for word in HOSTILE]
    source = page_of(model, tmp_path, (ids, WORDS.index(HOSTILE[0]), WORDS.index("a&b")))
    assert "<script>alert" not in source
    assert source.count("<script") == page_of(model, tmp_path, ("w1 w2", "w3", "w4")).count("<script")
    for shown in ("&lt;script&gt;alert(1)&lt;/script&gt;", "a&amp;b", "🙂", "שלום", "<i>↵</i>", "{{7*7}}"):
        assert shown in source
    assert "<i>\\u{202e}</i>" in source
    assert "two<i>␣</i>words" in source
    assert "\u202e" not in source


def test_no_prompts_no_section(model, tmp_path):
    source = page_of(model, tmp_path)
    assert 'id="prompts"' not in source
    assert 'id="circuits"' not in source
    assert "A direct contribution leaves out" not in source


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (("w1 w2", "w1 w2"), r"answer 'w1 w2' is 2 tokens: 'w1' \+ 'w2'; one is needed"),
        (("w1", ""), "answer '' is 0 tokens; one is needed"),
        (("w1", "nosuch"), "answer 'nosuch' is not in this model's vocabulary: it is read as <unk>"),
        (("w1", 99), "expected ids from 0 to 29"),
        (("w1", "w2", "w2"), "the wrong answer 'w2' is the right one"),
        ((["w1", "w2"], "w3"), "2 prompts where one was expected"),
        (("", "w3"), "empty prompt"),
        (("w1", "w2", "w3", "w4"), "a question of 4 parts"),
        (([10] * (LONGEST + 1), "w3"), f"{LONGEST + 1} tokens"),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else None,
)
def test_what_cannot_be_asked_is_refused_before_the_work(model, tmp_path, monkeypatch, question, message):
    monkeypatch.setattr("interp.measurement.registry.detect", lambda *_, **__: pytest.fail("ran too early"))
    with pytest.raises(TaskError, match=message):
        report(model, prompts=[question], path=tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_text_needs_a_tokenizer(tmp_path):
    with pytest.raises(InterpError, match="no tokenizer"):
        token_questions(interp.load(build("llama")), [([1, 2], "w1")])


def test_numbers_say_what_they_are():
    assert [signed(x).text for x in (1.5, -1.5, 1e-9, 0.0)] == ["+1.500", "−1.500", "≈0", "0.000"]
    assert signed(1e-9).raw == "1e-09"
    assert (cell(float("nan")), bool(cell(float("nan"))), bool(cell(0.0))) == (("–", ""), False, True)
    assert interval(0.1, 0.2) == ("0.100 to 0.200", "0.1")
    assert percent(0.0187) == "1.9\u00a0%"
    assert (small(0.0), small(3.2e-5)) == ("0", "3e-05")
