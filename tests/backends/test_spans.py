"""Named spans of prompts: read from characters, words, tokens and masks; kept by every change of a batch; in edits."""

from __future__ import annotations

import pytest
import torch
from agreement import on
from numpy.testing import assert_allclose
from tiny_models import tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import interp
from interp.attention import KeyMass, Mean, Rows, span_mass
from interp.batch import Batch
from interp.edits import Ablate, KnockOut, Uniform
from interp.errors import SiteError, TaskError
from interp.tasks.needles import hide

IDS = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14]]
SPANS = {"document": [(1, 3), (0, 2)], "question": [(4, 6), (3, 4)]}


def tokenizer(*, spaces: bool = False) -> PreTrainedTokenizerFast:
    """Words as tokens, behind a beginning of text; with the space before each, or without."""
    words = ["<bos>", "the", *(" " * spaces + word for word in ("cat", "sat", "dog"))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<bos>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next") if spaces else pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>")


def columns(batch: Batch, name: str) -> list[list[int]]:
    """Columns of a span in each prompt."""
    return [row.nonzero()[:, 0].tolist() for row in batch.span(name)]


def model_of(backend: str) -> interp.Model:
    """A tiny Llama on a backend."""
    return tiny("llama") if backend == "hf" else on(backend, "llama")


def named(**options) -> Batch:
    """Two prompts of 6 and 4 tokens with a document and a question."""
    return Batch.of(IDS, spans=SPANS, **options)


def test_tokens_are_counted_over_real_ones_on_either_side():
    assert columns(named(), "document") == [[1, 2], [0, 1]]
    assert columns(named(side="left"), "document") == [[1, 2], [2, 3]]
    assert columns(named(side="left"), "question") == [[4, 5], [5]]
    assert named().spans.keys() == SPANS.keys()
    assert Batch.of(IDS).spans == {}
    assert "spans={document: <bool 2 x 6>" in repr(named())


def test_characters_and_words_of_a_text():
    t = tokenizer()  # <bos> the cat sat
    text = "the cat sat"
    for words in (t, tokenizer(spaces=True)):  # spaces around a span are no part of it; half a token is one
        for where in ((4, 7), (3, 8), (4, 5), "cat", [[(4, 7)]]):
            assert columns(Batch.of(text, words, spans={"x": where}), "x") == [[2]]
    assert columns(Batch.of(text, t, bos="none", spans={"x": "cat sat"}), "x") == [[1, 2]]
    two = Batch.of([text, "dog"], t, spans={"x": ["sat", None], "y": [[(0, 3), "sat"], "dog"]})
    assert columns(two, "x") == [[3], []]
    assert columns(two, "y") == [[1, 3], [1]]
    mixed = Batch.of([text, [4, 5]], t, spans={"x": ["cat", (1, 2)]})
    assert columns(mixed, "x") == [[2], [1]]
    assert columns(Batch.of(iter([text]), t, spans={"x": "cat"}), "x") == [[2]]
    assert columns(Batch.of(t(text), t, spans={"x": (2, 3)}), "x") == [[2]]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"x": (3, 3)}, "prompt 0 is empty"),
        ({"x": (5, 3)}, "prompt 0 is empty"),
        ({"x": (4, 7)}, "prompt 0 is tokens 4 to 7, and the prompt has 6"),
        ({"x": (0, 5)}, "prompt 1 is tokens 0 to 5, and the prompt has 4"),
        ({"x": (-1, 2)}, "tokens -1 to 2"),
        ({"x": [(0, 1)]}, "1 for 2 prompts"),
        ({"x": [None, None]}, "empty in every prompt"),
        ({"x": torch.zeros(2, 6, dtype=torch.bool)}, "empty in every prompt"),
        ({"x": torch.ones(2, 6, dtype=torch.bool)}, "padding of prompt 1"),
        ({"x": torch.ones(2, 5, dtype=torch.bool)}, "shape \\(2, 6\\)"),
        ({"x": torch.ones(2, 6)}, "mask of a span is bool"),
        ({"x": 3}, "expected \\(start, stop\\) in tokens; got int 3"),
        ({"x": (0.0, 2.0)}, "whole numbers"),
        ({"x": "cat"}, "this prompt is ids"),
        ({"": (0, 1)}, "a span's name is a text"),
        ({3: (0, 1)}, "a span's name is a text"),
        ((0, 1), "expected \\{name: span\\}"),
    ],
)
def test_what_is_no_span_is_refused(spans, message):
    with pytest.raises(TaskError, match=message):
        Batch.of(IDS, spans=spans)


def test_words_that_do_not_stand_once_are_refused():
    for words, count in (("dog", 0), ("t", 3), ("", 0)):
        with pytest.raises(TaskError, match=f"stands {count} times"):
            Batch.of("the cat sat", tokenizer(), spans={"x": words})
    with pytest.raises(TaskError, match="no token stands for these characters"):
        Batch.of("the cat sat", tokenizer(), spans={"x": (3, 4)})
    with pytest.raises(TaskError, match="no span 'documant'; did you mean 'document'"):
        named().span("documant")
    with pytest.raises(TaskError, match="it has none"):
        Batch.of(IDS).span("document")
    with pytest.raises(TaskError, match="padding of prompt 1"):
        Batch(named().ids, named().mask, spans={"x": torch.ones(2, 6, dtype=torch.bool)}).checked()


def test_every_change_of_a_batch_keeps_them():
    batch = named()
    assert columns(batch.to("cpu"), "question") == columns(batch, "question")
    assert columns(batch.padded_on("left"), "question") == [[4, 5], [5]]
    assert columns(batch.padded_on("left").padded_on("right"), "question") == columns(batch, "question")
    assert columns(batch.select([1]), "document") == [[0, 1]]
    assert columns(batch.select(slice(1, None)).repeat(2), "document") == [[0, 1], [0, 1]]
    assert columns(batch.cut(1, 5), "question") == [[3], [2]]
    assert columns(batch.joined(Batch.of(IDS)), "document") == [[1, 2], [0, 1], [], []]
    assert columns(Batch.of(batch, spans={"more": (0, 1)}), "more") == [[0], [0]]
    assert columns(Batch.of(batch, spans={"more": (0, 1)}), "document") == columns(batch, "document")
    with pytest.raises(TaskError, match="'question' of prompt 0 has no token in columns 0 to 4"):
        batch.cut(0, 4)


@pytest.mark.parametrize("method", ["naive", "fused"])
def test_mass_on_a_span_is_the_patterns(method):
    model, batch = tiny("llama"), named()
    rows = torch.arange(6).expand(2, 6)
    questions = {
        "pattern": Rows(rows),
        "as it is": KeyMass(batch.span("document")),
        "rows": span_mass(batch, "document"),
        "mean": span_mass(batch, "document", "question"),
        "by hand": Mean(KeyMass(batch.span("document")), batch.span("question")),
    }
    values = model.attention(batch, questions, method=method)
    dense = (values["pattern"].nan_to_num() * batch.span("document")[:, None, None]).sum(-1)  # layer batch head query
    keep = batch.span("question")[:, None]
    assert_allclose(values["rows"].nan_to_num(), dense * batch.mask[:, None], atol=1e-6)
    assert torch.equal(values["as it is"].nan_to_num(), values["rows"].nan_to_num())
    assert_allclose(values["mean"], (dense * keep).sum(-1) / keep.sum(-1), atol=1e-6)
    assert torch.equal(values["mean"], values["by hand"])


@pytest.mark.parametrize("backend", ["hf", "lens", "nnsight"])
def test_edits_at_a_span_are_edits_at_its_mask(backend):
    model, batch = model_of(backend), named()
    document, question = batch.span("document"), batch.span("question")
    for by_name, by_mask in (
        (Ablate("L0.z", positions="document"), Ablate("L0.z", positions=document)),
        (
            KnockOut("L1.pattern", keys="document", queries="question"),
            KnockOut("L1.pattern", keys=document, queries=question),
        ),
        (Uniform("L1H0.pattern", queries="question"), Uniform("L1H0.pattern", queries=question)),
    ):
        expected = model.run(batch, edits=[by_mask]).logits
        assert torch.equal(model.run(batch, edits=[by_name]).logits, expected)
        assert not torch.allclose(expected[batch.mask], model.run(batch).logits[batch.mask])
        with model.editing([by_name]):
            assert torch.equal(model.run(batch).logits, expected)
        with pytest.raises(SiteError, match="is a span, and the batch that is run has none"):
            model.run(IDS[0], edits=[by_name])
    with pytest.raises(SiteError, match="'documents' is a span.*did you mean 'document'"):
        model.run(batch, edits=[Ablate("L0.z", positions="documents")])


@pytest.mark.parametrize("backend", ["hf", "lens"])
def test_generation_edits_the_prompts_span(backend):
    model, batch = model_of(backend), named()
    left = batch.padded_on("left")
    by_name = KnockOut("L1.pattern", keys="document")
    by_mask = KnockOut("L1.pattern", keys=left.span("document"))
    expected = model.generate(left, edits=[by_mask], max_new_tokens=3)
    assert torch.equal(model.generate(batch, edits=[by_name], max_new_tokens=3), expected)
    at_once = {0: [Ablate("L0.z", positions="question")]}
    by_hand = {0: [Ablate("L0.z", positions=left.span("question"))]}
    assert torch.equal(
        model.generate(batch, steps=at_once, max_new_tokens=3), model.generate(left, steps=by_hand, max_new_tokens=3)
    )


def test_a_module_s_own_call_has_no_spans():
    model = tiny("llama")
    with (
        model.editing([Ablate("L0.z", positions="document")]),
        pytest.raises(SiteError, match="the batch that is run has none"),
    ):
        model.torch_module(torch.tensor(IDS[:1]))


def test_tasks_carry_them():
    model = tiny("llama")
    clean = Batch.of(IDS[:1] * 2, spans={"document": [(0, 3), (1, 3)]})
    corrupt = [[5, 6, 9, 8, 9, 10]] * 2
    task = interp.pair(model, clean, corrupt, 6, 8)
    for side in (task.clean, task.corrupt, task.select([1, 0]).select([1, 0]).corrupt, task.to("cpu").clean):
        assert columns(side, "document") == [[0, 1, 2], [1, 2]]
    other = interp.pair(model, clean.ids, corrupt, 6, 8, spans={"document": (0, 3)})
    assert columns(other.corrupt, "document") == [[0, 1, 2]] * 2
    assert len({task.sha256, other.sha256, interp.pair(model, clean.ids, corrupt, 6, 8).sha256}) == 3


def test_needles_name_document_needle_question_and_answer():
    model = interp.load("zoo:planted-induction")
    hidden = hide(model, n=2, length=60)
    batch, answers = hidden.batch, [a for a in hidden.answers if a.prompt == 1]
    start = (
        60 - int(batch.span("document")[1].sum()) - sum(len(a.keys) + a.question[1] - a.question[0] for a in answers)
    )
    assert columns(batch, "document")[1] == list(range(start, hidden.context[1]))
    assert columns(batch, "question")[1] == sorted(i for a in answers for i in range(*a.question))
    assert set(columns(batch, "needle")[1]) >= {k for a in answers for k in a.keys}
    assert torch.equal(batch.span("needle") & batch.span("document"), batch.span("needle"))
    assert not bool((batch.span("needle") & hidden.hay).any())
    assert columns(batch, "answer")[1] == sorted(a.question[1] + i for a in answers for i in range(len(a.keys)))
    assert columns(hidden.first(1).batch, "needle") == columns(batch, "needle")[:1]
