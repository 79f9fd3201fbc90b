"""The command line: one module a command; `main` is the program."""

import os
import signal
import sys
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun yet."""
    os.write(2, b"interp: interrupted\n")
    os._exit(130)


# Of the program `interp` alone, until `main` takes over: Ctrl-C while modules are imported is no traceback.
if os.path.basename(sys.argv[0] if sys.argv else "") in ("interp", "interp.exe"):  # noqa: PTH119  (pathlib is an import)
    signal.signal(signal.SIGINT, _leave)
