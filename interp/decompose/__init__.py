"""The residual stream taken apart: into what each component wrote, what that does to a logit, what is read off early.

`decompose` gives vectors, `attribute` their effect on a logit, `score_parts` on an attention score, `logit_lens` the
logits that each layer would give, `head_writes` how much heads write and along what.
"""

from interp.decompose.attribution import Attribution, attribute
from interp.decompose.lens import LogitLens, logit_lens, read_out
from interp.decompose.scores import ScoreParts, score_parts
from interp.decompose.stream import Decomposition, decompose
from interp.decompose.terms import Term
from interp.decompose.written import HeadWrites, head_writes

__all__ = [
    "Attribution",
    "Decomposition",
    "HeadWrites",
    "LogitLens",
    "ScoreParts",
    "Term",
    "attribute",
    "decompose",
    "head_writes",
    "logit_lens",
    "read_out",
    "score_parts",
]
