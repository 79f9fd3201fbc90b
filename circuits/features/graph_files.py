"""`AttributionGraph`: a feature graph that is written, read back and drawn."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.features.feature_graph import FeatureGraph
from circuits.features.picture import draw as draw_graph
from circuits.features.schema import document, parts_of
from interp.errors import SchemaError
from interp.results.files import atomic_write, writable

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class AttributionGraph(FeatureGraph):
    """What acts on the logits of one prompt through which features; see `FeatureGraph` for its fields."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write JSON in Neuronpedia's graph schema, with what `load` needs beside it."""
        target = writable(path)
        text = json.dumps(document(self))
        atomic_write(target, lambda p: p.write_text(text, encoding="utf-8"))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AttributionGraph:
        """The graph of a file that `save` wrote.

        Raises:
            SchemaError: no such file, no JSON, or a graph that other software wrote and that lacks what is needed.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SchemaError(f"{os.fspath(path)!r} cannot be read as JSON: {error}") from error
        return cls(**parts_of(content))

    def draw(self, *, title: str = "") -> go.Figure:
        """Figure: tokens along x, layers upwards; the strongest edges."""
        return draw_graph(self, title=title)
