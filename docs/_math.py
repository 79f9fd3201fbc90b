"""Formulas as MathML, made while the site is built: browsers draw it without a script, so that nothing is fetched."""

from __future__ import annotations

from typing import Any, NoReturn

from docutils import nodes
from docutils.utils.math import latex2mathml


def inline(translator: Any, node: nodes.math) -> NoReturn:
    """A formula within a line."""
    translator.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> NoReturn:
    """A formula on lines of its own, which scrolls where the page is narrower."""
    translator.body.append(f'<div class="formula" tabindex="0">{mathml(node.astext(), block=True)}</div>\n')
    raise nodes.SkipNode


def mathml(text: str, *, block: bool) -> str:
    """MathML of a formula in LaTeX.

    Raises:
        MathError: what docutils does not know of LaTeX; the build fails and says where.
    """
    return latex2mathml.tex2mathml(text, as_block=block)


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer; `html_math_renderer` chooses it."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True}
