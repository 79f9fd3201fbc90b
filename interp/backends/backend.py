"""`Backend`: what `interp.load` has to know of a way to run models; an entry point of the group `interp.backends`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from interp.errors import ModelLoadError

if TYPE_CHECKING:
    from interp.backends.checkpoint import Checkpoint
    from interp.model import Model


@runtime_checkable
class Make(Protocol):
    """Makes a model of a checkpoint."""

    def __call__(self, checkpoint: Checkpoint, *, ours: bool) -> Model:
        """The model; `ours` says that nobody else holds the checkpoint's module, so that it may be changed.

        Raises:
            BackendError: the architecture is none that the backend can run; names what was looked for.
        """
        ...


@runtime_checkable
class Adopt(Protocol):
    """Makes a model of an object that is the backend's own."""

    def __call__(self, source: Any, *, remote: bool | str) -> Model:
        """The model; `remote` as the user gave it, False unless the backend takes it.

        Raises:
            BackendError: the object cannot be run.
        """
        ...


@dataclass(frozen=True)
class Backend:
    """A way to run models; its functions import what they need when called, so that listing backends is cheap.

    Attributes:
        name: what it is called in `interp.load(..., backend=)`.
        make: model of a checkpoint.
        packages: those whose objects are the backend's own: what is an instance of a class from there is adopted.
        adopt: model of such an object.
        fits: whether it can run a checkpoint, as far as that is known without trying; None where it is not known.
        remote: what to pass so that `remote=` can be taken, in words; empty where it cannot.
    """

    name: str
    make: Make
    packages: tuple[str, ...] = ()
    adopt: Adopt | None = None
    remote: str = ""
    fits: Callable[[Checkpoint], bool] | None = None

    def __post_init__(self) -> None:
        """Refuse packages without a way to adopt what comes from them, and the other way round."""
        if bool(self.packages) != (self.adopt is not None):
            raise ModelLoadError(f"backend {self.name!r}: `packages` and `adopt` come together")

    def owns(self, source: Any) -> bool:
        """Whether an object is the backend's own; told by the packages of its classes, none of which is imported."""
        return any(kind.__module__.partition(".")[0] in self.packages for kind in type(source).__mro__)
