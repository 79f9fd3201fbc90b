"""The documentation says what is there: pages made from code are current, names and links resolve, code blocks run."""

from __future__ import annotations

import ast
import doctest
import importlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

from interp.cli.main import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = ("interp", "circuits", "probes")
sys.path.insert(0, str(DOCS))
import _gallery  # noqa: E402  (docs is no package: the line above makes it importable)
import _generate  # noqa: E402
import _math  # noqa: E402
import _pages  # noqa: E402
import _reference  # noqa: E402

MADE = {DOCS / "reference" / "datasets.md", *(DOCS / "reference" / "api" / f"{p}.md" for p in ("index", *_pages.PAGES))}
"""Pages that `make docs` makes and git ignores."""


def pages():
    """Every Markdown page that a reader may follow links on, made ones left out."""
    written = [p for p in DOCS.rglob("*.md") if p not in MADE and "notebooks" not in p.relative_to(DOCS).parts]
    return sorted([*written, ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("datasets/**/README.md")])


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def modules():
    """Every module without an underscore in its name."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if not any(part.startswith("_") and part != "__init__" for part in parts):
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def slugs(path):
    """Anchors of a page: its headings as links have them, and targets set by hand."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings]
    return {*plain, *re.findall(r"^\(([\w-]+)\)=$", text, flags=re.MULTILINE)}


@pytest.mark.parametrize("path", _generate.COMMITTED, ids=name_of)
def test_pages_made_from_code_are_current(path):
    assert path.read_text(encoding="utf-8") == _generate.COMMITTED[path](), "run: python docs/_generate.py"


def test_every_command_is_documented():
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    command = typer.main.get_command(app)
    found = [f"interp {name}" for name in command.commands]
    found += [f"interp {n} {sub}" for n, c in command.commands.items() for sub in getattr(c, "commands", {})]
    assert len(found) > 10
    assert [name for name in found if f"## {name}\n" not in page] == []


@pytest.mark.parametrize("path", pages(), ids=name_of)
def test_commands_that_pages_show_exist(path):
    """With their options; `interp` at the start of a line in a code block is a command."""
    blocks = re.findall(
        r"```\w*\n(.*?)```|^((?:    .*\n)+)", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    for line in re.findall(r"^(?: {4}|\$ )?interp (.*)$", "\n".join(a or b for a, b in blocks), flags=re.MULTILINE):
        command = typer.main.get_command(app)
        words = shlex.split(line.split(" | ")[0], comments=True)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands") or words in ([], ["COMMAND"]), f"no command {line!r}"
        known = {option for parameter in command.params for option in parameter.opts}
        assert {w for w in words if w.startswith("-")} <= known | {"-h", "--help"}, line


def test_every_public_name_is_documented():
    written = "\n".join(_reference.api().values())
    described = set(re.findall(r"^\.\. (?:auto\w+|py:data):: (\S+)$", written, flags=re.MULTILINE))
    at_home = {id(_attribute(name)) for name in described}
    lacking = []
    for name in modules():
        module = importlib.import_module(name)
        lacking += [f"{name}.{n}" for n in getattr(module, "__all__", ()) if n != "__version__" and not _inside(name)]
    lacking = [name for name in lacking if name not in described and id(_attribute(name)) not in at_home]
    assert lacking == [], "put their module on a page of docs/_pages.py"
    assert len(described) > 300


def test_every_public_module_has_a_page():
    """Or stands inside a package that says by `__all__` what it offers, or is named as internal with the reason."""
    listed = {name for _, _, names in _pages.PAGES.values() for name in names}
    offered = {name for name in modules() if hasattr(importlib.import_module(name), "__all__")} - {"interp", "circuits"}
    lacking = [
        name
        for name in modules()
        if name not in listed
        and not _folder(name)
        and not _inside(name)
        and not any(name.startswith(f"{p}.") for p in offered)
    ]
    assert lacking == [], "put them on a page of docs/_pages.py, or among INTERNAL with the reason"


def _folder(name):
    """Whether a package holds a sentence and no names: its modules are asked instead."""
    path = Path(importlib.import_module(name).__file__)
    return path.name == "__init__.py" and len(ast.parse(path.read_text(encoding="utf-8")).body) == 1


def _inside(name):
    return any(name == internal or name.startswith(f"{internal}.") for internal in _pages.INTERNAL) and not any(
        name in names for _, _, names in _pages.PAGES.values()
    )


def _attribute(name):
    home, _, last = name.rpartition(".")
    return getattr(importlib.import_module(home), last)


def test_every_label_has_its_rule():
    from interp.measurement.registry import analyses

    for spec in analyses().values():
        if spec.run.__module__.startswith("probes."):
            assert (_reference.label_rule(spec) != "none") == ("label" in spec.columns), spec.name


@pytest.mark.parametrize("path", pages(), ids=name_of)
def test_links_resolve(path):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists() or target in MADE, link
        assert not anchor or target in MADE or anchor in slugs(target), link


def test_tests_that_pages_name_exist():
    named = {m for p in pages() for m in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", p.read_text(encoding="utf-8"))}
    assert len(named) > 30
    for file, test in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in source, f"{file}::{test}"


def test_anchors_are_what_sphinx_makes_of_headings(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title, `code` and more\n\n(by-hand)=\n## Second\n", encoding="utf-8")
    assert slugs(page) == {"a-title-code-and-more", "second", "by-hand"}


def docstrings():
    """(module, line, docstring) of every docstring with an example."""
    for name in modules():
        path = Path(importlib.import_module(name).__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if ">>> " in text:
                    yield pytest.param(name, text, id=f"{name}:{getattr(node, 'name', 'module')}")


@pytest.mark.parametrize(("name", "text"), list(docstrings()))
def test_examples_in_docstrings(name, text, tmp_path, monkeypatch):
    """Read from the source: the hook that checks shapes wraps functions, and doctest would pass over them."""
    monkeypatch.chdir(tmp_path)
    names = dict(vars(importlib.import_module(name)))
    example = doctest.DocTestParser().get_doctest(text, names, name, name, 0)
    said = io.StringIO()
    found = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(
        example, out=said.write
    )
    assert found.attempted > 0
    assert found.failed == 0, said.getvalue()


def test_the_gallery_shows_cells_that_are_there():
    """With a small picture of each; `python docs/_gallery.py` makes them anew."""
    for item in _gallery.ITEMS:
        assert any(source.strip().splitlines()[-1].startswith(item.cell) for source in _gallery.cells(item.notebook)), (
            item
        )
    pictures = {item.picture for item in _gallery.ITEMS}
    assert set(_gallery.PICTURES.glob("*")) == pictures
    assert sum(path.stat().st_size for path in (DOCS / "images").rglob("*.png")) < 1_000_000


def test_formulas_are_mathml_that_needs_no_script():
    made = _math.mathml(r"\frac{1}{n} \sum_i p_{ij}", block=True)
    assert made.startswith("<math")
    assert all(part in made for part in ("<mfrac>", "<msub>", "∑"))
    for path in pages():
        text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for formula in re.findall(r"\$\$(.+?)\$\$", text, flags=re.DOTALL):
            _math.mathml(formula, block=True)
