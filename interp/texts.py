"""Plain text and code that every machine has: sources of the running Python's standard library."""

from __future__ import annotations

import hashlib
import sysconfig
from functools import cache
from pathlib import Path

MODULES = tuple(
    """
    argparse ast base64 bdb bisect calendar cmd code codecs codeop collections/__init__ configparser
    contextlib copy csv dataclasses datetime decimal difflib dis doctest email/message email/header
    enum filecmp fileinput fnmatch fractions ftplib functools gettext glob gzip heapq html/parser
    http/client http/cookiejar http/server imaplib inspect ipaddress json/decoder json/encoder
    linecache locale logging/__init__ logging/config logging/handlers mailbox mimetypes numbers
    optparse os pathlib pdb pickle pickletools platform plistlib poplib posixpath pprint profile
    pstats pydoc queue random reprlib sched selectors shelve shlex shutil smtplib socket
    socketserver ssl statistics string subprocess symtable tarfile tempfile textwrap threading
    timeit tokenize trace traceback turtle types typing unittest/case unittest/mock urllib/parse
    urllib/request uuid warnings weakref zipfile asyncio/base_events asyncio/events asyncio/streams
    xml/dom/minidom xml/etree/ElementTree xmlrpc/client
    """.split()
)
"""Modules read, where the running Python has them; order matters to the seeds."""
HELD_OUT_SHARE = 10
"""One module in so many is never trained on."""
MAX_CHARS = 120_000
"""Of each module, so that no long one dominates."""


def held_out(module: str) -> bool:
    """Whether a module belongs to the held-out split: decided by its name alone."""
    return hashlib.sha256(module.encode()).digest()[0] % HELD_OUT_SHARE == 0


@cache
def sources(split: str) -> dict[str, str]:
    """Module -> its source, ASCII lines only, for one split."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, str] = {}
    for module in MODULES:
        path = root / f"{module}.py"
        if held_out(module) is (split == "held-out") and path.is_file():
            lines = path.read_text(encoding="utf-8", errors="ignore")[:MAX_CHARS].splitlines()
            found[module] = "\n".join(line.rstrip() for line in lines if line.isascii())
    return found
