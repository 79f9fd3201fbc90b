"""How Sphinx builds the site: `make docs`. Generated pages come from `_generate.py` beside it.

The site loads nothing from elsewhere: no fonts, no scripts, no inventories of other projects. Names of other packages
in signatures are therefore not linked, which is what most of `nitpick_ignore_regex` says.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import _docstrings  # noqa: E402  (this folder is on the path since the line above)
import _pages  # noqa: E402

project = "interp-toolkit"
author = "the interp-toolkit authors"
version = release = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
html_title = f"{project} {version}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = html_copy_source = False
pygments_style = "friendly"
highlight_language = "text"  # tables in docstrings; code blocks in pages name their language

extensions = [
    "myst_nb",  # Markdown pages and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "_math",  # beside this file
]
exclude_patterns = ["README.md", "*.table.md", "notebooks/README.md", "**/.ipynb_checkpoints"]  # included in pages
root_doc = "index"
nitpicky = True
nitpick_ignore_regex = [
    # Other packages: without their inventories, which are on the internet, there is nothing to link to.
    (
        r"py:.*",
        r"(torch|np|numpy|pd|pandas|plotly|go|transformers|networkx|nx|jaxtyping|types|collections|typing|abc)\..*",
    ),
    (r"py:.*", r"(pathlib|os|contextlib|dataclasses|functools|argparse|random|Path|Protocol|Callable|nnsight)\b.*"),
    # jaxtyping's types with their shapes, NumPy and torch by their short names, as signatures have them.
    (r"py:.*", r"(Float|Int|Bool|Shaped|Real|Integer|Inexact)\b.*"),
    (
        r"py:.*",
        r"(Tensor|ndarray|nn|PreTrained\w+|DataFrame|Series|Figure|nx|optional|callable|iterable|sequence|mapping)\b.*",
    ),
    (r"py:.*", r"'.*"),
    # Types of our own that appear in signatures and are nobody's to make: handed out, and taken back as they are.
    (
        r"py:.*",
        r"interp\.(backends|zoo\.planted|attention|reports?|measurement\.checks|patching|dictionaries)(\.\w+)+\b.*",
    ),
    (r"py:.*", r"(circuits\._\w+|circuits\.\w+\.\w+\.\w+|interp\.model\.R)\b.*"),
    (r"py:.*", r"(Adopt|Draw|Make|Piece|Port|Section|Skill|metrics\.Metric|Mapping\[str|tuple\[.*|\u200b\w+)"),
    (r"py:.*", r"dict\[.*"),  # cut in two where autodoc shortens a mapping's types
    # Type variables, and aliases that are written out where they are defined.
    (r"py:.*", r".*\b(P|T|Roles|Head|Heads|Writes|Reads|Position|Positions|" + "|".join(_pages.TYPES) + ")"),
]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
html_math_renderer = "mathml"
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in _pages.TYPES}  # explained on the first page of the API
napoleon_custom_sections = [
    ("Attributes", "params_style")
]  # fields are described once, in the docstring of their class
napoleon_use_rtype = False
napoleon_attr_annotations = False  # they stand in the signature
maximum_signature_line_length = 100
default_role = "code"  # docstrings mark names with single backticks
toc_object_entries_show_parents = "hide"


def sources() -> str:
    """Fingerprint of the packages: outputs of notebooks are kept for as long as no line of code changes."""
    digest = hashlib.sha256()
    for package in ("interp", "circuits", "probes"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


# Notebooks are kept without outputs; they run while the site is built, and again only when they or the packages change.
nb_execution_mode = os.environ.get("NOTEBOOKS", "cache")
nb_execution_cache_path = str(ROOT / "build" / "notebooks" / sources())
nb_execution_timeout = 1200
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars; an error stops the build
os.environ["PLOTLY_RENDERER"] = "sphinx_gallery"  # figures as plain HTML; see `offline`
os.environ["HF_HUB_OFFLINE"] = "1"

REMOTE_SCRIPT = re.compile(r'<script[^>]*\bsrc="https?://[^>]*></script>')


def offline(app: Any, doctree: nodes.document) -> None:
    """Take the scripts on the internet out of plotly's figures; the first loads plotly's copy in this site instead."""
    local = f'<script src="{"../" * app.env.docname.count("/")}_static/plotly.min.js"></script>'
    for raw in list(doctree.findall(nodes.raw)):
        text = REMOTE_SCRIPT.sub("", raw.astext())
        if "Plotly.newPlot" in text:
            raw.replace_self(nodes.raw("", local + text, format="html"))
            local = ""


def copy_plotly(app: Any, error: Exception | None) -> None:
    """Plotly's script from the installed package, once for the whole site."""
    import plotly

    if error is None and app.builder.format == "html":
        source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
        shutil.copy(source, Path(app.outdir) / "_static" / source.name)


def setup(app: Any) -> None:
    """Hooks: docstrings become reST, figures work offline."""
    app.connect("autodoc-process-docstring", _docstrings.plain_docstring, priority=400)  # before napoleon's, at 500
    app.connect("autodoc-process-signature", _docstrings.what_callers_get)
    app.connect("doctree-read", offline)
    app.connect("build-finished", copy_plotly)
