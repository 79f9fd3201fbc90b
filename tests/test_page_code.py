"""Code in pages: every Python block runs, every `$ interp` command, and both print what the page says.

A block is Python or `console`; what a `text` block behind a Python block says, and what stands under a command, is
compared with what was printed: words and whole numbers exactly, others to 0.02 or 5 %, since sums differ between
machines; `...` stands for anything. Blocks of a page are one script. In front of a block a comment may say

    <!-- slow: REASON -->     run by `make slow` alone
    <!-- not run: REASON -->  such as a model on the hub
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "docs/how-to/own-analysis.md": "a package: tests/measurement/test_plugin.py",
    "docs/how-to/i-want-to.md": "made from tests/curriculum, which runs it",
}
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>slow|not run): (?P<why>.+?) -->\n+)?"
    r"^(?P<indent> *)```(?P<kind>python|console)\n(?P<code>.*?)^(?P=indent)```$"
    r"(?:\n+(?P=indent)```text\n(?P<said>.*?)^(?P=indent)```$)?",
    flags=re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"-?\d+(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+)")  # whole numbers are words
WIDTH = "100"  # columns of the terminal


@dataclass(frozen=True)
class Block:
    """A block of a page: its kind, code, the output shown under it, and whether and why it is not run as a rule."""

    kind: str
    code: str
    said: str
    mark: str
    why: str


def blocks(path):
    """Blocks of a page, in order."""
    return [
        Block(m["kind"], m["code"], m["said"] or "", m["mark"] or "", m["why"] or "")
        for m in FENCE.finditer(path.read_text(encoding="utf-8"))
    ]


def commands(block):
    """(words, output shown under it) of each line that begins with `$ interp`; other commands are left to readers."""
    for part in re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]:
        line, _, said = part.partition("\n")
        if line.startswith("interp "):
            yield shlex.split(line.split(" | ")[0], comments=True)[1:], said


def pages():
    """Every page with something to run, and whether a block of it is left to `make slow`."""
    for path in sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]):
        name = path.relative_to(ROOT).as_posix()
        here = [] if name in ELSEWHERE or "docs/notebooks" in name else [b for b in blocks(path) if b.mark != "not run"]
        if [b for b in here if b.kind == "python" or list(commands(b))]:
            yield name, any(b.mark == "slow" for b in here)


PAGES = dict(pages())


def compare(printed, said, of):
    """Assert that what was printed is what a page says; `...` stands for anything."""
    skeleton, numbers = [], []
    for word in said.split():
        numbers += [] if word == "..." else [float(x) for x in NUMBER.findall(word)]
        parts = NUMBER.split(word)
        skeleton.append(".*?" if word == "..." else f"({NUMBER.pattern})".join(map(re.escape, parts)))
    pattern = r"\s+".join(skeleton).replace(r"\s+.*?", r"\s*.*?").replace(r".*?\s+", r".*?\s*")
    match = re.fullmatch(rf"\s*{pattern}\s*", printed, flags=re.DOTALL)
    assert match, f"{of}\nprinted\n{printed}\nand the page says\n{said}"
    assert [float(x) for x in match.groups()] == pytest.approx(numbers, rel=0.05, abs=0.02), f"{of}\n{printed}"


def run_python(block, folder, number, names):
    """What a block prints; its source is a file, because nnsight reads that of a trace's block."""
    script = folder / f"block_{number}.py"
    script.write_text(block.code, encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.code, str(script), "exec"), names)
    return printed.getvalue()


def run_command(words, run):
    """What a command prints."""
    code, out, err = run(*words)
    assert code == 0, f"interp {shlex.join(words)}\n{err}"
    return out


def run_page(name, folder, run, *, slow):
    names = {"__name__": Path(name).stem}
    for number, block in enumerate(blocks(ROOT / name)):
        if block.mark == "not run" or (block.mark == "slow" and not slow):
            continue
        if block.kind == "python":
            printed = run_python(block, folder, number, names)
            if block.said:
                compare(printed, block.said, block.code)
        for words, said in commands(block) if block.kind == "console" else ():
            printed = run_command(words, run)
            if said.strip():
                compare(printed, said, shlex.join(words))


@pytest.mark.parametrize("name", PAGES)
def test_page_runs(name, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", WIDTH)
    run_page(name, tmp_path, run, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, slow in PAGES.items() if slow])
def test_slow_blocks_of_page_run(name, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", WIDTH)
    run_page(name, tmp_path, run, slow=True)


def test_no_block_is_passed_over():
    """Every fence of these kinds is read, and every how-to has something that runs."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        assert len(blocks(path)) == len(re.findall(r"^ *```(?:python|console)$", text, flags=re.MULTILINE)), path.name
    how_to = {p.relative_to(ROOT).as_posix() for p in (ROOT / "docs" / "how-to").glob("*.md") if p.stem != "index"}
    assert how_to - set(PAGES) - set(ELSEWHERE) == set()
    assert sum(len(blocks(ROOT / name)) for name in PAGES) > 100


@pytest.mark.parametrize(
    ("printed", "said"), [("head 0.981", "head 0.93"), ("two heads", "three heads"), ("1 2", "1"), ("a b", "a ... c")]
)
def test_a_page_that_says_something_else_fails(printed, said):
    with pytest.raises(AssertionError):
        compare(printed, said, "")
    compare("x 0.981\n y 3.0 z", "x 0.98 ... z", "")
