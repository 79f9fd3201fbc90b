"""What attention patterns are like, and how far that may be read. Importing this registers the analyses."""

from probes.attention._chunk_selection import chunk_selection
from probes.attention._distraction import Spans, distraction, spans
from probes.attention._entropy import entropy
from probes.attention._funnel import funnel
from probes.attention._icl_score import icl_score
from probes.attention._lag_profile import lag_profile
from probes.attention._offset_profile import offset_profile
from probes.attention._parallel_encoding import parallel_encoding
from probes.attention._source_decay import source_decay
from probes.attention._span_profile import span_profile
from probes.attention._text_induction import text_induction

__all__ = [
    "Spans",
    "chunk_selection",
    "distraction",
    "entropy",
    "funnel",
    "icl_score",
    "lag_profile",
    "offset_profile",
    "parallel_encoding",
    "source_decay",
    "span_profile",
    "spans",
    "text_induction",
]
