"""The residual stream taken apart: into what each component wrote, what that does to a logit, what is read off early.

`decompose` gives vectors, `attribute` their effect on a logit, `logit_lens` the logits that each layer would give.
"""

from interp.decompose.attribution import Attribution, attribute
from interp.decompose.lens import LogitLens, logit_lens, read_out
from interp.decompose.stream import Decomposition, decompose
from interp.decompose.terms import Term

__all__ = ["Attribution", "Decomposition", "LogitLens", "Term", "attribute", "decompose", "logit_lens", "read_out"]
