"""What attention patterns are like, and how far that may be read. Importing this registers the analyses."""

from probes.attention._distance_profile import distance_profile
from probes.attention._distraction import Spans, distraction, spans
from probes.attention._entropy import entropy
from probes.attention._icl_score import icl_score
from probes.attention._lag_profile import lag_profile
from probes.attention._offset_profile import offset_profile
from probes.attention._plane_removal import plane_removal
from probes.attention._rotary_planes import rotary_heads
from probes.attention._span_attention import span_attention
from probes.attention._text_induction import text_induction

__all__ = [
    "Spans",
    "distance_profile",
    "distraction",
    "entropy",
    "icl_score",
    "lag_profile",
    "offset_profile",
    "plane_removal",
    "rotary_heads",
    "span_attention",
    "spans",
    "text_induction",
]
