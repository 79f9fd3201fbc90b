"""Checkpoint folders as people have them: tiny random decoders, each with one of the kinds of tokenizer in use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SENTENCES = (
    "When Mary and John went to the store, John gave a drink to Mary.",
    "The Eiffel Tower stands in Paris, and the Colosseum stands in Rome.",
    "one two three four five six seven eight nine ten",
    "My question: where does the attention of this model rest?",
)
SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
NO_END: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}


def _words() -> list[str]:
    return sorted({word for text in SENTENCES for word in text.replace(",", " ,").replace(".", " .").split()})


def _merges(vocabulary: dict[str, int], space: str) -> list[tuple[str, str]]:
    """Pairs that make every word of its letters, one after another; what they make is added to the vocabulary."""
    merges = []
    for word in _words():
        piece = space
        for letter in word:
            if piece + letter not in vocabulary:
                merges.append((piece, letter))
                vocabulary[piece + letter] = len(vocabulary)
            piece += letter
    return merges


def sentencepiece() -> Any:
    """Pieces that begin with a mark for the space, bytes for the rest, and a BOS: as Llama's."""
    letters = sorted({letter for text in SENTENCES for letter in text} - {" "})
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *letters]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = _merges(vocabulary, "\u2581")
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    words.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    words.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def byte_pairs() -> Any:
    """Merged bytes, the space being one of them, and no BOS of its own: as GPT-2's."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = _merges(vocabulary, "\u0120")
    vocabulary["<|endoftext|>"] = len(vocabulary)
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    end = "<|endoftext|>"
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token=end, eos_token=end, unk_token=end)


def wordpiece() -> Any:
    """Lower-cased words and their continuations, between [CLS] and [SEP]: as BERT's."""
    letters = sorted({letter for text in SENTENCES for letter in text.lower()} - {" "})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *(word.lower() for word in _words())]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    words = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words.decoder = decoders.WordPiece()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **dict(zip(names, special, strict=True)))


def single_bytes() -> Any:
    """One token a byte, written in Python and not as one file: ByT5's."""
    return transformers.ByT5Tokenizer()


def llama(tokenizer: Any) -> Any:
    """A model of the shape of Llama, heads sharing keys."""
    config = transformers.LlamaConfig(**SHAPE, num_key_value_heads=2, vocab_size=len(tokenizer), **NO_END)
    return transformers.LlamaForCausalLM(config)


def gpt2(tokenizer: Any) -> Any:
    """A model of the shape of GPT-2."""
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=len(tokenizer), **NO_END)
    return transformers.GPT2LMHeadModel(config)


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "llama": (sentencepiece, llama),
    "gpt2": (byte_pairs, gpt2),
    "wordpiece": (wordpiece, gpt2),
    "bytes": (single_bytes, llama),
}
"""Name -> its tokenizer and its model."""


def write_folder(kind: str, place: Path) -> Path:
    """A folder with configuration, weights and tokenizer, as `save_pretrained` writes them."""
    tokenizer, model = KINDS[kind]
    torch.manual_seed(0)
    words = tokenizer()
    model(words).save_pretrained(place)
    words.save_pretrained(place)
    return place
