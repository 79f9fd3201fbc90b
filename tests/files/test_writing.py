"""Files appear whole or not at all, replace what is ours alone, and keep permissions and links."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from interp import files
from interp.errors import InterpError
from interp.files import WRITER, atomic_write, is_ours, writable_file, writable_folder, write_files, write_folder

PAGE = f'<!doctype html>\n<meta name="generator" content="{WRITER}">\n'


def text(content):
    """Writer of a text."""
    return lambda path: path.write_text(content)


@contextmanager
def mask(value):
    """Another umask meanwhile."""
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def largest_file(size):
    """A disk on which no file grows beyond some bytes: writing fails with EFBIG."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_what_the_umask_leaves(tmp_path, umask, expected):
    with mask(umask):
        atomic_write(tmp_path / "a.html", text(PAGE))
        atomic_write(tmp_path / "t.safetensors", lambda p: save_file({"x": torch.ones(1)}, p))
        write_folder(tmp_path / "made", lambda f: save_file({"x": torch.ones(1)}, f / "t.safetensors"))
    assert {mode(p) for p in tmp_path.rglob("*") if p.is_file()} == {expected}


def test_a_replaced_file_keeps_its_own(tmp_path):
    path = atomic_write(tmp_path / "a.html", text(PAGE))
    path.chmod(0o640)
    atomic_write(path, text(PAGE + "new"))
    assert (mode(path), path.read_text()) == (0o640, PAGE + "new")
    write_files(tmp_path, {"a.html": text(PAGE)})
    assert (mode(path), path.read_text()) == (0o640, PAGE)


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "{}", "[1]", "<!doctype html>\n<p>", "PAR1", "x" * 9000, '{"a": '])
def test_somebody_elses_file_is_not_replaced_without_force(tmp_path, content):
    path = tmp_path / "notes.csv"
    path.write_text(content)
    for attempt in (
        lambda: writable_file(path),
        lambda: atomic_write(path, text("new")),
        lambda: write_files(tmp_path, {"other.csv": text("x"), "notes.csv": text("new")}),
        lambda: writable_folder(tmp_path, ["notes.csv"]),
    ):
        with pytest.raises(InterpError, match="was not written by interp: it is not replaced"):
            attempt()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("notes.csv", content)]
    assert writable_file(path, force=True) == path
    atomic_write(path, text("new"), force=True)
    assert path.read_text() == "new"


def test_an_empty_file_and_one_of_ours_are_replaced(tmp_path):
    for content in ("", PAGE, "analysis,variant,layer,head,component,x\n", f"// {WRITER}\ndigraph circuit {{}}\n"):
        path = tmp_path / "a"
        path.write_text(content)
        atomic_write(path, text(PAGE))
        assert path.read_text() == PAGE


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("failed writing file")]
)
def test_what_stops_a_write_leaves_what_was_there(tmp_path, error):
    def fail(path):
        path.write_text("half")
        raise error

    kept = atomic_write(tmp_path / "a.html", text(PAGE))
    for attempt in (
        lambda: atomic_write(kept, fail),
        lambda: atomic_write(tmp_path / "new.html", fail),
        lambda: write_files(tmp_path / "folder" / "below", {"a.html": text(PAGE), "b.html": fail}),
        lambda: write_files(tmp_path, {"a.html": text("new"), "b.html": fail}),
    ):
        with pytest.raises(InterpError, match="cannot write"):
            attempt()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.html", PAGE)]


def test_a_full_disk(tmp_path):
    writers = {
        "torch": lambda p: torch.save(torch.zeros(100_000), p),
        "safetensors": lambda p: save_file({"x": torch.zeros(100_000)}, p),
        "numpy": lambda p: np.zeros(100_000).tofile(p),
        "text": text("x" * 400_000),
    }
    with largest_file(100_000):
        for name, write in writers.items():
            with pytest.raises(InterpError, match="cannot write"):
                atomic_write(tmp_path / name, write)
            with pytest.raises(InterpError, match="cannot write"):
                write_files(tmp_path / "folder", {"small": text("x"), name: write})
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "real").mkdir()
    target = atomic_write(tmp_path / "real" / "a.html", text(PAGE))
    (tmp_path / "link.html").symlink_to(target)
    (tmp_path / "folder").symlink_to("real")
    atomic_write(writable_file(tmp_path / "link.html"), text(PAGE + "1"))
    assert (tmp_path / "link.html").is_symlink() and target.read_text() == PAGE + "1"
    write_files(tmp_path / "folder", {"a.html": text(PAGE + "2")})
    assert (tmp_path / "folder").is_symlink() and target.read_text() == PAGE + "2"
    (tmp_path / "new.html").symlink_to("real/new.html")
    atomic_write(tmp_path / "new.html", text(PAGE))
    assert (tmp_path / "real" / "new.html").read_text() == PAGE
    (tmp_path / "circle.html").symlink_to("circle.html")
    with pytest.raises(InterpError, match="cannot write"):
        writable_file(tmp_path / "circle.html")


def test_devices_pipes_sockets_and_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    os.mkfifo("pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        kinds = {"/dev/null": "a device", "pipe": "a pipe", "socket": "a socket", "folder": "a folder"}
        for name, kind in kinds.items():
            for attempt in (writable_file, lambda name: atomic_write(Path(name), text("x"), force=True)):
                with pytest.raises(InterpError, match=f"it is {kind}"):
                    attempt(name)
        with pytest.raises(InterpError, match="it is a pipe; name a folder"):
            writable_folder("pipe", [])


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "none/x", "~no-such-user/x", "file/x"])
def test_no_place_to_write_is_known_before(tmp_path, name):
    (tmp_path / "file").write_text("x")
    path = name if name.startswith("~") else tmp_path / name
    with pytest.raises(InterpError, match="cannot write"):
        writable_file(path)
    if not name.startswith(("none", "~")):
        with pytest.raises(InterpError, match="cannot write"):
            writable_folder(path, [])


def test_no_permission_is_known_before():
    """In a process of another user where this is root, who may write everywhere."""
    code = """
import os, pathlib, tempfile
from interp.files import writable_file, writable_folder
from interp.errors import InterpError
root = pathlib.Path(tempfile.mkdtemp()); root.chmod(0o755)
for name in ("closed", "open"): (root / name).mkdir()
(root / "open").chmod(0o777); (root / "closed").chmod(0o555)
kept = root / "open" / "kept.csv"
kept.write_text("analysis,variant,layer,head,component\\n"); kept.chmod(0o444)
if os.getuid() == 0: os.seteuid(65534)
for path in ("closed/a.csv", "closed/b/c", "open/kept.csv"):
    for attempt in (lambda p: writable_file(p), lambda p: writable_folder(p, [])):
        try: attempt(root / path)
        except InterpError as error: print(error)
        else: print("written", path)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert "Permission denied" in lines[0] and "Permission denied" in lines[3]
    assert "write-protected" in lines[4]  # a file in a folder where another may be made
    assert not any(line.startswith("written") for line in lines)


def test_a_folder_of_ours_is_exchanged_whole_and_its_stale_files_go(tmp_path):
    folder = tmp_path / "circuit"
    write_files(folder, {"a.html": text(PAGE), "below/b.html": text(PAGE)})
    before = folder.stat().st_ino
    (folder / "state.pt").write_text("x")
    paths = write_files(folder, {"a.html": text(PAGE + "2"), "below/b.html": text(PAGE)}, obsolete=["state.pt"])
    assert folder.stat().st_ino != before
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")) == ["a.html", "below/b.html"]
    assert paths["a.html"].read_text() == PAGE + "2"
    assert [p.name for p in tmp_path.iterdir()] == ["circuit"]


def test_other_files_of_a_folder_stay(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    write_files(tmp_path, {"a.html": text(PAGE)}, obsolete=["gone"])
    assert {p.name for p in tmp_path.iterdir()} == {"notes.txt", "a.html"}
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    inode = here.stat().st_ino
    write_files(".", {"a.html": text(PAGE)})
    assert here.stat().st_ino == inode and [p.name for p in here.iterdir()] == ["a.html"]


def test_marks_of_a_kind_are_seen_and_others_not(tmp_path):
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    save_file({"x": torch.ones(1)}, ours, metadata={"writer": WRITER})
    save_file({"x": torch.ones(1)}, theirs, metadata={"format": "pt"})
    assert (is_ours(ours), is_ours(theirs), is_ours(tmp_path / "none")) == (True, False, False)


HEADER = "analysis,variant,layer,head,component\n"
VICTIM = f"""
import pathlib, sys
from interp.files import atomic_write, write_folder
root, n = pathlib.Path(sys.argv[1]), 0
print("ready", flush=True)
while True:
    n += 1
    text = {HEADER!r} + f"{{n}}\\n" * 200_000
    def fill(folder):
        for name in "abc":
            (folder / name).write_text(text)
    write_folder(root / "folder", fill)
    write_folder(root / f"new{{n}}", fill)
    atomic_write(root / "one", lambda p: p.write_text(text))
"""


def content(path):
    """The number that a whole file holds, on every line of it."""
    header, *numbers = path.read_text().splitlines()
    assert header + "\n" == HEADER and len(numbers) == 200_000 and len(set(numbers)) == 1
    return numbers[0]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_fifty_kills_leave_nothing_half_written(tmp_path):
    leftovers = 0
    for kill in range(50):
        root = tmp_path / str(kill)
        root.mkdir()
        victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(root)], stdout=subprocess.PIPE)
        assert victim.stdout.readline() == b"ready\n"
        time.sleep(0.005 + 0.011 * kill)
        victim.kill()
        victim.wait()
        victim.stdout.close()
        for path in (p for p in root.iterdir() if not p.name.startswith(files.HIDDEN)):
            if path.is_dir():
                assert sorted(p.name for p in path.iterdir()) == ["a", "b", "c"]
            assert len({content(p) for p in (path.iterdir() if path.is_dir() else [path])}) == 1
        leftovers += any(p.name.startswith(files.HIDDEN) for p in root.iterdir())
    assert leftovers > 10  # it was while writing that they were killed
