"""Everything the toolkit raises on purpose, as one tree.

Errors are raised where the reason is known and carry it whole: the value given, what was expected, and the
nearest valid choice. The command line prints them as one line; in Python they are ordinary exceptions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InterpError(Exception):
    """Root of the tree: catch this to catch every expected failure."""


class SiteError(InterpError):
    """A place in the model that does not parse, does not exist, or is out of range."""


class ModelLoadError(InterpError):
    """A checkpoint that cannot be found, read, or understood as a causal decoder."""


class TaskError(InterpError):
    """Prompts or tokens that the model cannot be run on."""


class NotApplicable(TaskError):  # noqa: N818  (a state of affairs, not a mistake)
    """An analysis that means nothing on this model: too short a context, too few tokens, no class it asks about.

    `interp.measurement.registry.detect` leaves such an analysis out, and says why, unless it was asked for by name.
    """


class SchemaError(InterpError):
    """A table, an option or a file that does not have the declared form."""


class UnknownName(InterpError):  # noqa: N818  (a state of affairs)
    """A name, or the value of an option, that there is none of: what was typed has to be corrected.

    The command line ends with 2 for every error of this class, with 1 for others.
    """


class UnknownEntry(UnknownName, SchemaError):  # noqa: N818
    """Of an analysis, a method, a table, a column."""


class UnknownTask(UnknownName, TaskError):  # noqa: N818
    """Of a task, a split, a metric."""


class UnknownSite(UnknownName, SiteError):  # noqa: N818
    """Of a kind of place."""


class UnknownModel(UnknownName, ModelLoadError):  # noqa: N818
    """Of a model or checkpoint in the package, a dtype, a device, a backend."""


class CheckError(InterpError):
    """An extension that does not keep what is promised of all of its kind; says which promises, and how."""


class BackendError(InterpError):
    """The model ran, but not in a way that can be measured."""


class NotFinite(BackendError):  # noqa: N818  (a state of affairs)
    """NaN or infinity where numbers are due: bad weights or edits, or overflow; what follows would be no numbers."""


class PromptWarning(UserWarning):
    """Prompts that were read in another way than they were written; says how."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def nearest(given: str, valid: Iterable[str]) -> str:
    """Sentence naming the closest of `valid` to `given`, or all of them when none is close."""
    choices = sorted(valid)
    close = difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "valid choices: " + ", ".join(choices)
