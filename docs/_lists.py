"""Pages made from lists in the tree: data sets, folders, architectures, sites, what courses ask."""

from __future__ import annotations

import ast
import csv
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

from _markdown import DOCS, NOTE, ROOT, cell
from _pages import FOLDERS


def datasets() -> str:
    """docs/reference/datasets.md: the card of every folder in datasets/."""
    cards = sorted((ROOT / "datasets").glob("*/README.md"))
    lines = ["# Data sets", "", "```{include} ../../datasets/README.md", ":start-line: 2", "```", ""]
    for card in cards:
        path = card.relative_to(ROOT).as_posix()
        lines += [f"```{{include}} ../../{path}", ":heading-offset: 1", "```", "", f"In `{card.parent.name}/`.", ""]
    return "\n".join(lines)


def folders() -> list[str]:
    """Folders that hold files of the project, those that differ in digits alone as one: `step-*`.

    A line of `FOLDERS` that ends in `/**` stands for a folder and all inside it.
    """
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    places = {re.sub(r"\d{2,}$", "*", str(Path(name).parent)) for name in names if name and (ROOT / name).is_file()}
    whole = {folder.removesuffix("**") for folder in FOLDERS if folder.endswith("/**")}  # one line for all inside
    places = {next((f"{w}**" for w in whole if f"{place}/".startswith(w)), place) for place in places}
    gone = sorted(set(FOLDERS) - places)
    if gone:
        raise KeyError(f"docs/_pages.py: FOLDERS has a line for {gone[0]!r}, which is not there")
    return sorted(places)


def _folder_line(folder: str) -> str:
    """What a folder holds: said in `FOLDERS`, by its package, or by the heading of its card.

    Raises:
        KeyError: none of them says it; a line in `FOLDERS` is missing.
    """
    where, init = ROOT / folder, ROOT / folder / "__init__.py"
    if folder in FOLDERS:
        return FOLDERS[folder]
    if init.is_file():
        return (ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or "").split("\n", 1)[0]
    for card, of in ((where / "README.md", ""), (where.parent / "README.md", f", {where.name}")):
        if card.is_file() and card.parent != ROOT:
            return card.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ") + of
    inside = folder.removeprefix("tests/")
    for tested in (inside, f"interp/{inside}"):
        if inside != folder and (ROOT / tested / "__init__.py").is_file():
            return f"tests of `{tested}`"
    raise KeyError(f"docs/_pages.py: FOLDERS has no line for {folder!r}")


def where_things_are() -> str:
    """docs/reference/where-things-are.md: every folder of the tree, a line each."""
    rows = [f"| `{folder}` | {cell(_folder_line(folder))} |" for folder in folders()]
    return "\n".join(
        [
            f"# Where things are\n\n{NOTE}\n",
            "One line a folder. `interp` is the instrument, `probes` ask what one component does, `circuits` how "
            "components work together.",
            "A module whose name begins with an underscore holds a function that its package hands out under the same "
            "name:",
            "`probes/heads/_induction.py` is `probes.heads.induction`. Words of our own are in the "
            "[glossary](../explanation/glossary.md).\n",
            "| folder | holds |",
            "|---|---|",
            *rows,
            "",
        ]
    )


OUTCOMES = {
    "works": "everything that is tried",
    "partly": "it loads and runs; what is refused, with the reason, stands beside it",
    "refused": "it does not load, or nothing can be run; the reason stands beside it",
    "raw error": "a fault of ours: an error that is none of the toolkit's",
    "wrong": "a fault of ours: a number that is not the model's",
    "not built": "no tiny model of it could be made here",
}


def architectures() -> str:
    """docs/reference/architectures.md, from docs/architectures.csv."""
    with (DOCS / "architectures.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    counts = Counter(row["outcome"] for row in rows)
    lines = [
        "# Architectures",
        "",
        NOTE,
        "",
        "Every model type of transformers that has a causal class, as a tiny random model: loaded with `interp.load`",
        '(`backend="hf"`, then `"lens"` where that refuses) and run. Tried are: logits against the plain forward pass;',
        "captures of the residual stream, q, k, v, z, patterns, `head_out`, `attn_out`, `mlp_out`; statistics against",
        "the dense pattern; a head ablated against a hook; each prompt of a batch padded on the left or right against",
        "the prompt alone; prompts beyond the context under dynamic rotary scaling; weights against a run; the",
        "decomposition of the stream; generation; gradients. `python tests/architectures` makes the table anew.",
        "",
        "| outcome | types | means |",
        "|---|---|---|",
        *(f"| {kind} | {counts[kind]} | {meaning} |" for kind, meaning in OUTCOMES.items()),
        f"| all | {len(rows)} | usable, wholly or in part: {counts['works'] + counts['partly']} |",
    ]
    for kind in OUTCOMES:
        some = [row for row in rows if row["outcome"] == kind]
        if some:
            lines += ["", f"## {kind.capitalize()}", "", "| type | class | backend | what not, and why |"]
            lines += ["|---|---|---|---|"]
            lines += [f"| `{r['type']}` | `{r['family']}` | {r['backend']} | {_plain(r['lacks'])} |" for r in some]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """A reason in a table: what Markdown would take for markup is escaped."""
    return re.sub(r"([*_<>\[\]`])", r"\\\1", cell(text))


def sites() -> str:
    """docs/reference/sites.md."""
    from interp.sites import DIFFERENCES, DIVISORS, KINDS, LENS, LENS_REFUSED, PER_HEAD, UNLAYERED

    def place(kind: str) -> str:
        if kind in UNLAYERED:
            return kind
        return f"L3H5.{kind}" if kind in PER_HEAD else f"L3.{kind}"

    lines = [
        "# Sites",
        "",
        NOTE,
        "",
        "Places that can be captured and edited. `L3.z` is layer 3, `L3H5.z` one head, `L0-5.mlp_out` several layers,",
        '`z` every layer, `@-1` the last token of each prompt. `capture="all"` is every site that the model has. What',
        "an architecture lacks is refused with the reason.",
        "",
        "| kind | written | holds | edited |",
        "|---|---|---|---|",
        *(f"| `{k}` | `{place(k)}` | {cell(v)} | {'no' if k in DIVISORS else 'yes'} |" for k, v in KINDS.items()),
        "| `module:NAME` | `module:transformer.h.0.mlp` | what a module gives (its first tensor) | yes |",
        "| `module:NAME:input` | `module:transformer.h.0.mlp:input` | what a module takes (its first argument) | yes |",
        "",
        "`norm_scale` without a layer is the divisor of the final norm. A router that gives its choice beside",
        "`router_logits` refuses their edit, since a change would reach nothing.",
        "",
        "## Names of TransformerLens",
        "",
        "A name stands for the same tensor here, or is refused. `blocks.i.` is left out. Compared at every hook of",
        "bridges of GPT-2, Llama, GPT-NeoX and Gemma-2 by `tests/backends/test_lens_names.py`.",
        "",
        "| name | here | refused where |",
        "|---|---|---|",
    ]
    for name, (kind, *traits) in LENS.items():
        lines.append(f"| `{name.removeprefix('blocks.')}` | `{kind}` | {'; '.join(DIFFERENCES[t] for t in traits)} |")
    for name, why in LENS_REFUSED.items():
        lines.append(f"| `{name.removeprefix('blocks.')}` | | everywhere: {why} |")
    return "\n".join(lines) + "\n"


def i_want_to() -> str:
    """docs/how-to/i-want-to.md, from the operations that tests/curriculum tries."""
    folder = ROOT / "tests" / "curriculum"
    themes = [tomllib.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.toml")]
    lines = [
        "# I want to ...",
        "",
        NOTE,
        "",
        "What courses and demos of the field ask, in at most three lines each. What each gives is compared with",
        "plain PyTorch by `tests/curriculum/test_curriculum.py`. The lines use these names; put your own model and",
        "prompts in their place.",
        "",
        "```python",
        (folder / "start.py").read_text(encoding="utf-8").rstrip(),
        "```",
    ]
    for theme in sorted(themes, key=lambda t: t["order"]):
        lines += ["", f"## ... {theme['title']}"]
        for op in theme["operation"]:
            before = op.get("before", "").strip()
            have = [f"Where you have\n\n```python\n{before}\n```\n"] if 0 < len(before.splitlines()) <= 3 else []
            lines += [
                "",
                f"### {op['want']}",
                "",
                f"Asked by: {op['source']}.",
                "",
                *have,
                "```python",
                op["code"].strip(),
                "```",
            ]
    return "\n".join(lines) + "\n"
