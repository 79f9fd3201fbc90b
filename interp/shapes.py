"""Shape annotations, jaxtyping's where it is installed, nothing where it is not; and `brief`, a repr of shapes.

`interp.attention` has to run on a GPU machine that holds torch and transformers and little else. Annotations are
checked in tests only, so on such a machine their names need to exist and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
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

__all__ = ["Bool", "Float", "Int", "brief"]

LONGEST, FIELD, SHOWN = 1500, 240, 4  # characters of a repr and of one field, things named in one


def brief(self: Any) -> str:
    """`repr` of a dataclass with tensors as their shapes and long fields cut, 1,500 characters at most.

    A class that says `__repr__ = brief` keeps it: `dataclass` makes one only where there is none.
    """
    name = type(self).__name__
    parts = ", ".join(f"{f.name}={_short(getattr(self, f.name))}" for f in fields(self) if f.repr)
    return _cut(f"{name}({parts})", LONGEST)


def _short(value: Any) -> str:
    """One field in few characters."""
    if hasattr(value, "shape") and hasattr(value, "ndim"):
        kind = str(getattr(value, "dtype", "table")).removeprefix("torch.")
        return f"<{kind} {' x '.join(map(str, value.shape))}>"
    if isinstance(value, Mapping):
        shown = ", ".join(f"{_cut(str(k), FIELD // 4)}: {_short(x)}" for k, x in list(value.items())[:SHOWN])
        return _cut("{" + shown + _more(len(value)) + "}", FIELD)
    if type(value) in (list, tuple):
        shown = ", ".join(_short(x) for x in value[:SHOWN])
        return _cut(f"[{shown}{_more(len(value))}]", FIELD)
    return _cut(repr(value), FIELD)


def _more(n: int) -> str:
    return f", ... {n} in all" if n > SHOWN else ""


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."
