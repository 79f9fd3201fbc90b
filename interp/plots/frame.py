"""A whole page within a notebook: a frame that keeps the page's style in, the page's text out, and the theme."""

from __future__ import annotations

import html

THEMES = {
    "dark": '[data-jp-theme-light="false"], [data-vscode-theme-kind$="dark"], [data-theme="dark"]',
    "light": '[data-jp-theme-light="true"], [data-vscode-theme-kind$="light"], [data-theme="light"]',
}
"""How JupyterLab, VS Code and pages of documentation say which colours they have: a page cannot ask from within."""
RULES = "".join(f":is({where}) .interp-frame {{ color-scheme: {scheme}; }}" for scheme, where in THEMES.items())


def framed(page: str, *, title: str, height: int) -> str:
    """HTML of the frame; in it `prefers-color-scheme` is that of the notebook where it is known, else the system's."""
    look = f"width: 100%; height: {height}px; border: 0; resize: vertical"
    source = html.escape(page, quote=True)
    return (
        f'<style>{RULES}</style><iframe class="interp-frame" title="{html.escape(title, quote=True)}" '
        f'sandbox="allow-scripts" style="{look}" srcdoc="{source}"></iframe>'
    )
