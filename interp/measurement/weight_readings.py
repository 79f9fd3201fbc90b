"""What analyses of attention read off the weights beside it; where weights cannot be read, the attention stays."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from interp.errors import BackendError, NotApplicable
from interp.model import Model
from interp.weights import ov

READ = "read"


def copying_ratios(model: Model) -> tuple[Float[np.ndarray, "layer head"], str]:
    """`interp.weights.ov.copying_ratio` of every head, and `READ`, or the reason why it is NaN throughout.

    Weights cannot be read where a norm or a projection has a form that is not understood, where the model is spread
    over processes or served elsewhere, or where tokens are embedded in another width than the stream's.
    """
    try:
        return ov.copying_ratio(model.ov_circuits()).double().numpy(), READ
    except (BackendError, NotApplicable) as error:
        shape = (len(model.info.attention_layers), model.info.n_heads)
        return np.full(shape, np.nan), f"not read off the weights: {error}"
