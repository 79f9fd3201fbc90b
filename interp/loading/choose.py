"""Which backend runs a source, and the model that it makes of it."""

from __future__ import annotations

from typing import Any

from interp.errors import ModelLoadError, nearest

BACKENDS = ("hf", "lens", "nnsight")


_PACKAGES = {"transformer_lens": "lens", "nnsight": "nnsight"}


def belongs(source: Any) -> str | None:
    """Backend of an object that is a peer library's model already, None for everything else.

    >>> belongs("zoo:planted-induction") is None
    True
    """
    for kind in type(source).__mro__:
        backend = _PACKAGES.get(kind.__module__.partition(".")[0])
        if backend is not None:
            return backend
    return None


def choose(source: Any, backend: str | None) -> str:
    """Backend to use for a source: the object's own, or the one asked for, "hf" by default.

    Raises:
        ModelLoadError: an unknown backend, or another than the object's own.
    """
    if backend is not None and backend not in BACKENDS:
        raise ModelLoadError(f"unknown backend {backend!r}; {nearest(backend, BACKENDS)}")
    own = belongs(source)
    if own is None:
        return backend or "hf"
    if backend not in (None, own):
        raise ModelLoadError(f"a {type(source).__name__} is run by backend {own!r}, not {backend!r}; leave it out")
    return own


def adopt(source: Any, backend: str, *, tokenizer: Any = None, remote: bool | str = False) -> Any:
    """Model of an object for which `belongs` names the backend; `remote` as nnsight takes it."""
    found: Any
    if backend == "lens":
        from interp.backends.lens.model import LensModel

        found = LensModel(source)
    elif remote:
        from interp.backends.nnsight.remote import RemoteModel

        found = RemoteModel(source, remote)
    else:
        from interp.backends.nnsight.model import NNsightModel

        found = NNsightModel(source)
    found.tokenizer = tokenizer or found.tokenizer
    return found


def check_remote(source: Any, remote: bool | str) -> None:
    """Refuse `remote` for anything but an nnsight model.

    Raises:
        ModelLoadError: names what was given.
    """
    if remote and belongs(source) != "nnsight":
        given = repr(source) if isinstance(source, str) else f"a {type(source).__name__}"
        raise ModelLoadError(
            f"remote={remote!r} is for models that nnsight runs elsewhere, not for {given}; pass "
            "nnsight.TransformersModel(name), which needs no weights here"
        )


def make(checkpoint: Any, backend: str, *, ours: bool = False) -> Any:
    """Model of a checkpoint that has been read, by the backend named; `ours` says that nobody else holds its module."""
    if backend == "lens":
        from interp.backends.lens import boot

        return boot(checkpoint, ours=ours)
    if backend == "nnsight":
        from interp.backends.nnsight.wrapping import wrap

        return wrap(checkpoint)
    from interp.backends.hf.model import HFModel

    return HFModel(checkpoint)
