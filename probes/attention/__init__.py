"""What attention patterns are like, and how far that may be read. Importing this registers the analyses."""

from probes.attention._attention_buckets import attention_buckets, choose_bases, troughs, vote, waveform
from probes.attention._attention_sorting import attention_sorting, sorted_orders
from probes.attention._attention_window import attention_window
from probes.attention._chunk_selection import chunk_selection
from probes.attention._distance_profile import distance_profile
from probes.attention._distraction import Spans, distraction, spans
from probes.attention._entropy import entropy
from probes.attention._funnel import funnel
from probes.attention._icl_score import icl_score
from probes.attention._lag_profile import lag_profile
from probes.attention._offset_profile import offset_profile
from probes.attention._parallel_encoding import parallel_encoding
from probes.attention._plane_removal import plane_removal
from probes.attention._position_calibration import position_calibration
from probes.attention._rotary_planes import rotary_heads
from probes.attention._source_decay import source_decay
from probes.attention._span_attention import span_attention
from probes.attention._span_profile import span_profile
from probes.attention._text_induction import text_induction

__all__ = [
    "Spans",
    "attention_buckets",
    "attention_sorting",
    "attention_window",
    "choose_bases",
    "chunk_selection",
    "distance_profile",
    "distraction",
    "entropy",
    "funnel",
    "icl_score",
    "lag_profile",
    "offset_profile",
    "position_calibration",
    "sorted_orders",
    "parallel_encoding",
    "plane_removal",
    "position_calibration",
    "rotary_heads",
    "sorted_orders",
    "source_decay",
    "span_attention",
    "span_profile",
    "spans",
    "text_induction",
    "troughs",
    "vote",
    "waveform",
]
