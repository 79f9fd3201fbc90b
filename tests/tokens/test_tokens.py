"""Tokens, their texts and places, next tokens and the loss; one BOS rule on every backend."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tolerance import assert_equal_to_rounding
from torch.nn.functional import cross_entropy

import interp
from interp import tasks
from interp.decompose.answers import token_ids
from interp.errors import NotApplicable, PromptWarning, TaskError

BOS = 256
TEXTS = ["ab c", "abc", "<|endoftext|>ab"]


def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({**{c: i for i, c in enumerate(alphabet)}, "<|endoftext|>": BOS}, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return transformers.GPT2TokenizerFast(tokenizer_object=words, **special)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GPT-2 whose tokenizer puts nothing in front."""
    sizes = {"vocab_size": 257, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    path = tmp_path_factory.mktemp("gpt2")
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=BOS)).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def gpt2(folder):
    return interp.load(str(folder))


@pytest.fixture(scope="module")
def every(folder, gpt2):
    """The folder on each backend, and as objects of TransformerLens and nnsight."""
    from transformer_lens.model_bridge import TransformerBridge

    backends = {name: interp.load(str(folder), backend=name) for name in ("lens", "nnsight")}
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    assert bridge.tokenizer("ab c")["input_ids"][0] == BOS  # what TransformerLens makes of it
    return {"hf": gpt2, **backends, "bridge": interp.load(bridge)}


RULES = {
    "default": [[64, 65, 220, 66], [64, 65, 66], [BOS, 64, 65]],
    "forced": [[BOS, 64, 65, 220, 66], [BOS, 64, 65, 66], [BOS, 64, 65]],
    "none": [[64, 65, 220, 66], [64, 65, 66], [BOS, 64, 65]],
}


@pytest.mark.parametrize("bos", RULES)
def test_every_backend_reads_a_text_alike_under_each_rule(every, bos):
    for name, model in every.items():
        batch = model.tokens(TEXTS, bos=bos)
        rows = [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]
        assert rows == RULES[bos], name
        ran, ids = model.run(TEXTS, bos=bos).logits, model.run(batch).logits
        torch.testing.assert_close(ran, ids, rtol=0, atol=0)
        policy = tasks.bos_id(model, bos)  # the rule of random prompts is the same
        assert rows[0][0] == (64 if policy is None else policy)


def test_a_tokenizer_that_adds_a_bos_adds_one(folder):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", BOS)]
    )
    model = interp.load(str(folder), tokenizer=tokenizer)
    assert [model.tokens("ab", bos=b).ids[0].tolist() for b in RULES] == [[BOS, 64, 65], [BOS, 64, 65], [64, 65]]
    assert model.tokens("<|endoftext|>ab", bos="none").ids[0].tolist() == [BOS, 64, 65]  # written in the text
    with pytest.warns(PromptWarning, match="one is kept"):
        assert model.tokens("<|endoftext|>ab", bos="forced").ids[0].tolist() == [BOS, 64, 65]


def test_a_bridge_whose_tokenizer_is_not_to_be_had_says_so(folder, tmp_path):
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    bridge.tokenizer.name_or_path = str(tmp_path / "gone")
    with pytest.warns(PromptWarning, match="begins every text with '<|endoftext|>'.*cannot be read again"):
        assert interp.load(bridge).tokens("a").ids.tolist() == [[BOS, 64]]
    assert interp.load(bridge, tokenizer=byte_tokenizer()).tokens("a").ids.tolist() == [[64]]


def test_rules_refuse(gpt2):
    with pytest.raises(TaskError, match="unknown BOS policy 'force'; did you mean 'forced'"):
        gpt2.tokens("a", bos="force")
    with pytest.raises(TaskError, match="bos='none' is about text"):
        gpt2.run([[1, 2]], bos="none")
    with pytest.raises(TaskError, match="has no tokenizer"):
        tiny("gpt2").tokens("a", bos="forced")


def test_texts_and_places_of_tokens(gpt2):
    assert gpt2.str_tokens("ab c", bos="forced") == ["<|endoftext|>", "a", "b", " ", "c"]
    assert gpt2.str_tokens(["ab c", "a"]) == [["a", "b", " ", "c"], ["a"]]
    assert gpt2.str_tokens(["a"]) == [["a"]]
    assert gpt2.single_token("b") == gpt2.single_token(65) == 65
    assert gpt2.position_of("ab cb", "a", bos="forced") == 1
    assert [gpt2.position_of("ab cb", "b", which=w) for w in ("first", "last")] == [1, 4]
    assert gpt2.position_of("ab cb", " cb") == 4  # the last of three tokens
    padded = {"input_ids": [[0, 0, 64, 65]], "attention_mask": [[0, 0, 1, 1]]}
    assert gpt2.position_of(padded, 65) == 1
    for prompt, token, reason in (
        ("ab", "c", r"'c' is not in the prompt, whose tokens are \['a', 'b'\]"),
        ("abb", "b", r"'b' stands at positions \[1, 2\]: say which"),
        (["a", "b"], "a", "2 prompts"),
    ):
        with pytest.raises(TaskError, match=reason):
            gpt2.position_of(prompt, token)
    with pytest.raises(TaskError, match="'ab' is 2 tokens: 'a' . 'b'"):
        gpt2.single_token("ab")
    with pytest.raises(TaskError, match="answer 'ab' is 2 tokens"):
        token_ids(gpt2, "ab", 1)
    with pytest.raises(TaskError, match="token id 300 is outside"):
        gpt2.single_token(300)


def test_the_loss_is_cross_entropy_without_padding(gpt2):
    rows = [gpt2.tokens(text, bos="forced").ids[0] for text in ("ab cabd", "ca")]
    with torch.no_grad():
        logits = [gpt2.torch_module(row[None]).logits[0, :-1] for row in rows]
    want = [cross_entropy(x, row[1:], reduction="none") for x, row in zip(logits, rows, strict=True)]
    ours = gpt2.loss(["ab cabd", "ca"], per_token=True, bos="forced")
    assert ours.shape == (2, 7)
    assert ours.isnan().sum() == 5
    for row, losses in zip(ours, want, strict=True):
        assert_equal_to_rounding(row[: len(losses)], losses)
    left = {"input_ids": [[0] * 5 + rows[1].tolist(), rows[0].tolist()]}
    left["attention_mask"] = [[0] * 5 + [1] * 3, [1] * 8]
    for prompts in (["ab cabd", "ca"], left):
        mean = gpt2.loss(prompts, **({} if prompts is left else {"bos": "forced"}))
        assert_equal_to_rounding(mean, torch.cat(want).mean())
    ablated = gpt2.loss("ab", edits=[interp.Ablate("L0.z")])
    assert abs(float(ablated - gpt2.loss("ab"))) > 1e-6
    with pytest.raises(TaskError, match="two tokens at least"):
        gpt2.loss("a")


def test_the_likeliest_next_tokens(gpt2):
    with torch.no_grad():
        p = torch.stack([gpt2.torch_module(gpt2.tokens(t).ids).logits[0, -1].softmax(-1) for t in ("ab", "c")])
    table = gpt2.top_next(["ab", "c"], 3, answer="a")
    first = table[table["prompt"] == 0]
    assert list(table.columns) == ["prompt", "rank", "token", "text", "probability"]
    assert first["token"][:3].tolist() == p[0].topk(3).indices.tolist()
    last = table[table["prompt"] == 1].iloc[-1]
    assert (last["token"], last["rank"], last["text"]) == (64, int((p[1] > p[1, 64]).sum()), "a")
    assert_equal_to_rounding(torch.tensor(table["probability"]), p[table["prompt"], table["token"]].double())
    with pytest.raises(TaskError, match="from 1 on"):
        gpt2.top_next("a", 0)


def test_models_without_a_next_token_refuse():
    from tiny_models import encoder

    with pytest.raises(NotApplicable, match="sees later tokens"):
        interp.load(encoder()).loss([1, 2, 3])
