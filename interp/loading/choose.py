"""Backends by name, from entry points of the group `interp.backends`, and the choice of one for a source."""

from __future__ import annotations

import functools
import logging
from importlib import metadata
from typing import Any

from interp.backends import Backend, Checkpoint
from interp.errors import ModelLoadError, UnknownModel, nearest

GROUP = "interp.backends"
DEFAULT = "hf"
log = logging.getLogger("interp")


@functools.cache
def backends() -> dict[str, Backend]:
    """Every backend by name, those of other packages included; one that cannot be had is left out with a warning."""
    by_name: dict[str, Backend] = {}
    for entry in metadata.entry_points(group=GROUP):
        try:
            backend = entry.load()
        except Exception as error:  # whatever a broken plug-in raises must not take the others down
            log.warning("backend %s is left out: %s: %s", entry.name, type(error).__name__, error)
            continue
        if not isinstance(backend, Backend):
            log.warning("backend %s is left out: %s is no interp.backends.Backend", entry.name, entry.value)
        elif backend.name in by_name:
            log.warning("backend %s is left out: there is another of the name %r", entry.value, backend.name)
        else:
            by_name[backend.name] = backend
    return by_name


def owner(source: Any) -> Backend | None:
    """Backend of an object that is a peer library's model already, None for everything else.

    >>> owner("zoo:planted-induction") is None
    True
    """
    return next((b for b in backends().values() if b.owns(source)), None)


def backend_for(source: Any, backend: str | None = None, *, remote: bool | str = False) -> Backend:
    """Backend to use for a source: the object's own, or the one asked for, "hf" by default.

    Raises:
        ModelLoadError: an unknown backend, another than the object's own, or `remote` where it cannot be taken.
    """
    name = DEFAULT if backend is None else backend
    if not isinstance(name, str) or name not in backends():
        raise UnknownModel(f"unknown backend {name!r}; {_choices(str(name))}")
    own = owner(source)
    if own is not None and backend not in (None, own.name):
        raise ModelLoadError(f"a {type(source).__name__} is run by backend {own.name!r}, not {backend!r}; leave it out")
    if remote and (own is None or not own.remote):
        raise ModelLoadError(f"remote={remote!r} is for models that {_elsewhere(source)}")
    return own or backends()[name]


def other_backends(checkpoint: Checkpoint, refused: Backend) -> str:
    """Half a sentence that names the backends which can run a checkpoint that one has refused; empty without any."""
    able = []
    for backend in backends().values():
        try:
            if backend is not refused and backend.fits is not None and backend.fits(checkpoint):
                able.append(f'backend="{backend.name}"')
        except Exception as error:  # a backend that cannot be imported, say, is none to recommend
            log.debug("backend %s is not recommended: %s", backend.name, error)
    return f"; load it with {' or '.join(able)}" if able else ""


def _choices(name: str) -> str:
    """The nearest backend, or what to do where there is none at all."""
    if not backends():
        return f"nothing is installed under the entry points {GROUP!r}: install the package (again)"
    return nearest(name, backends())


def _elsewhere(source: Any) -> str:
    """Which backends run models elsewhere, that this is not one, and what would be."""
    able = {b.name: b.remote for b in backends().values() if b.remote}
    text = repr(source) if isinstance(source, str) else f"a {type(source).__name__}"
    return f"{' or '.join(able)} runs elsewhere, not for {text}; pass {' or '.join(able.values())}"
