"""Shape annotations: jaxtyping's where it is installed, nothing where it is not.

`interp.attention` has to run on a GPU machine that holds torch and transformers and little else. Annotations are
checked in tests only, so on such a machine their names need to exist and no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _Shape:
            def __class_getitem__(cls, item: Any) -> Any:
                return Any

        Bool = Float = Int = _Shape

__all__ = ["Bool", "Float", "Int"]
