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
from interp.files import atomic_write, read_json
from interp.results.files import writable

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class AttributionGraph(FeatureGraph):
    """What acts on the logits of one prompt through which features; see `FeatureGraph` for its fields."""

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write JSON in Neuronpedia's graph schema, with what `load` needs beside it.

        `force` replaces a file that is not an earlier graph.
        """
        target = writable(path, force=force)
        text = json.dumps(document(self))
        return atomic_write(target, lambda p: p.write_text(text, encoding="utf-8"), force=force)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AttributionGraph:
        """The graph of a file that `save` wrote.

        Raises:
            SchemaError: no such file, no JSON, or a graph that other software wrote and that lacks what is needed.
        """
        return cls(**parts_of(read_json(Path(path), error=SchemaError)))

    def draw(self, *, title: str = "") -> go.Figure:
        """Figure: tokens along x, layers upwards; the strongest edges."""
        return draw_graph(self, title=title)
