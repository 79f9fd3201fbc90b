"""What several commands share: progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.measurement.registry import Analysis


def progress(analyses: Sequence[Analysis]) -> Iterator[Analysis]:
    """A bar on stderr while analyses run, where that is a terminal."""
    from tqdm.auto import tqdm

    with tqdm(analyses, disable=None, file=sys.stderr, leave=False) as bar:
        for spec in bar:
            bar.set_description(spec.name)
            yield spec
