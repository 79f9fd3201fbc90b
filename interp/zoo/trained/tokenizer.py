"""A word-level tokenizer over a handful of ordinary English words, saved as any fast tokenizer."""

from transformers import PreTrainedTokenizerFast

from interp.zoo.trained.words import WORDS

SPECIALS = ("<bos>", "<eos>", "<pad>", "<unk>")
"""Ids 0-3; the ordinary words follow. `<eos>` is never produced by the zoo's models, but tools
that find none would add one and so outgrow the embedding."""


def word_tokenizer(
    *, words: tuple[str, ...] = WORDS, n_words: int | None = None, max_length: int = 512
) -> PreTrainedTokenizerFast:
    """Tokenizer of the first `n_words` of some words (all of them): one word is one token, `<bos>` comes first.

    Ids `len(SPECIALS) .. len(SPECIALS) + n_words - 1` are the words. Raises ValueError where
    `n_words` is not between 1 and the length of the word list.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    n_words = len(words) if n_words is None else n_words
    if not 1 <= n_words <= len(words):
        raise ValueError(f"n_words must be between 1 and {len(words)}, got {n_words}")
    ids = {token: i for i, token in enumerate(SPECIALS + words[:n_words])}
    fast = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
