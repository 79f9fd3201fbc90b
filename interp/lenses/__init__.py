"""Lenses that are fitted: what a layer's stream will come to be, by a learned affine map or by a mean Jacobian.

Each is a function (layer, stream) -> stream, which `interp.logit_lens(..., translate=lens)` reads. `table()` and
`plot()` say how far from the model's own distribution it is on prompts not fitted on, beside the plain lens.
"""

from interp.lenses._jacobian import jacobian_lens
from interp.lenses._tuned import tuned_lens
from interp.lenses.lens import Lens

__all__ = ["Lens", "jacobian_lens", "tuned_lens"]
