"""The tokenizer of the rich zoo model: whole words where it matters, pieces and characters elsewhere.

One convention for spaces: they are not tokens and leave no mark on tokens, so "Monday" is the same
single token at the start of a text, after a space and after a bracket; a line break and four spaces
of indentation are tokens. Numbers are read two digits at a time ("1732" is "17", "32").
"""

from __future__ import annotations

import re
import string
import sys
from collections import Counter
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from interp import texts as corpus
from interp.zoo.trained.skills import lexicon
from interp.zoo.trained.tokenizer import SPECIALS
from interp.zoo.trained.words import WORDS

NEWLINE, INDENT = "\n", "    "
PATTERN = r"\n| {4}|[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[A-Z]|[0-9]{1,2}|[^\sA-Za-z0-9]"
"""What one word is; everything else (single spaces, tabs) is dropped."""
N_FREQUENT, N_PIECES = 600, 160
_FREQUENT = Path(__file__).with_name("frequent.txt")


@cache
def tokens() -> tuple[str, ...]:
    """The vocabulary in id order: specials, ordinary words, closed classes, frequent words, pieces."""
    closed_classes = (
        *lexicon.NUMBERS,
        *lexicon.YEARS,
        *lexicon.DAYS,
        *lexicon.MONTHS,
        *lexicon.LETTERS,
        *lexicon.PEOPLE,
        *lexicon.SUBJECTS,
        *lexicon.STRANGERS,
        *lexicon.CITIES,
        *lexicon.PLACES,
        *lexicon.OBJECTS,
        *lexicon.EVENTS,
        *lexicon.FOODS,
        *lexicon.INSTRUMENTS,
        *lexicon.COLOURS,
        *lexicon.GRAMMAR,
    )
    characters = (NEWLINE, INDENT, *string.punctuation, *string.ascii_lowercase)
    rest = (*_FREQUENT.read_text().split(), *(f"##{c}" for c in string.ascii_letters))
    return tuple(dict.fromkeys((*SPECIALS, *WORDS, *closed_classes, *characters, *rest)))


@cache
def index() -> dict[str, int]:
    """Token -> id."""
    return {token: i for i, token in enumerate(tokens())}


@cache
def ordinary() -> tuple[int, ...]:
    """Ids fit for random sequences: neither special nor white space."""
    return tuple(i for i, token in enumerate(tokens()) if i >= len(SPECIALS) and not token.isspace())


@cache
def nouns() -> tuple[int, ...]:
    """Ids of the plain English words, which mean nothing to the skills."""
    return tuple(index()[word] for word in WORDS)


def encode(text: str) -> tuple[int, ...]:
    """Ids of words written with spaces between them, without BOS; KeyError where one is no token."""
    vocab = index()
    return tuple(vocab[word] for word in text.split())


def tokenizer(*, max_length: int = 512) -> PreTrainedTokenizerFast:
    """The same vocabulary as an ordinary fast tokenizer; `<bos>` is added in front by itself."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    ids = index()
    fast = Tokenizer(models.WordPiece(ids, unk_token="<unk>", continuing_subword_prefix="##"))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True)
    fast.decoder = decoders.WordPiece(prefix="##", cleanup=False)
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


def frequent() -> list[str]:
    """The most frequent words of the training corpus, and endings of the words that are not among them."""
    counts = Counter(
        word
        for text in corpus.sources("train").values()
        for word in re.findall(PATTERN, text)
        if len(word) > 1 and word.isalpha()
    )
    words = [word for word, _ in counts.most_common(N_FREQUENT)]
    pieces: Counter[str] = Counter()
    for word, count in counts.items():
        if word not in words:
            for length in range(2, min(5, len(word))):
                pieces[word[-length:].lower()] += count * (length - 1)
    return [*words, *(f"##{piece}" for piece, _ in pieces.most_common(N_PIECES))]


if __name__ == "__main__":  # run as a module, > frequent.txt; a new Python gives other words
    sys.stdout.write("\n".join(frequent()) + "\n")
