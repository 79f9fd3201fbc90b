"""The closed word lists behind the skills: every entry is one token. Names are invented."""

from __future__ import annotations

from itertools import product
from random import Random

DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
MONTHS = tuple("January February March April May June July August September October November December".split())
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
NUMBERS = tuple(str(n) for n in range(100))
YEARS = tuple(f"{n:02d}" for n in range(100))
"""Two digits; 00-09 are tokens of their own beside 0-9. "1732" is read as "17", "32"."""

CLASSES: dict[str, tuple[str, ...]] = {
    "numbers": NUMBERS,
    "days": DAYS,
    "months": MONTHS,
    "letters": LETTERS,
}
"""Ordinal classes, in order."""
CYCLIC = ("days", "months")
"""Classes whose last member is followed by the first."""

_ONSETS = "Bra Dro Fle Gru Kre Lun Mox Nev Plo Qua Riv Sko Thu Vel Wix Zan".split()
_ENDINGS = "bik dor fen gax lim nup rit sov tek zul".split()


def _invented_names() -> list[str]:
    """160 names, two syllables each, in an order that mixes beginnings and endings."""
    names = [onset + ending for onset, ending in product(_ONSETS, _ENDINGS)]
    Random("names").shuffle(names)
    return names


_NAMES = _invented_names()
PEOPLE = tuple(_NAMES[:64])
"""Who gives things to whom in IOI sentences."""
SUBJECTS = tuple(_NAMES[64:112])
"""About whom the table of facts knows something."""
STRANGERS = tuple(_NAMES[112:144])
"""About whom it knows nothing: what is said of them in the context is all there is."""
CITIES = tuple(_NAMES[144:160])

PLACES = tuple("market school farm castle garden church shop tower harbour bridge".split())
OBJECTS = tuple("book ring letter coin apple flute map lamp rope drum cake key".split())
EVENTS = tuple("war siege journey trial festival feud drought reign strike voyage".split())

FOODS = tuple("bread soup rice cheese honey fish cake fruit butter salt peach plum lemon grape egg meat".split())
INSTRUMENTS = tuple("violin piano flute drum bell horn".split())
COLOURS = tuple("red blue green yellow black white brown gray pink gold silver copper".split())

GRAMMAR = tuple(
    """
    , . : ; ( ) " ' = - _
    When Then While After Yesterday Today Later and went to the at in of a an is was has had that this it
    gave handed sent passed brought met visited walked stayed together decided
    lasted ran began from until year between ended some time The In from century
    lives eats plays wears home food instrument colour favourite
    People say As we know Everyone knows Yes Of course Here fact records state true
    Suppose Rumour says Really In truth tale only story
    code Remember hidden opens
    next list then after comes before
    """.split()
)
"""Words of the sentence templates."""
