"""A whole page within a notebook: a frame that keeps the page's style in, the page's text out, and the theme."""

from __future__ import annotations

import html

DARK = '[data-jp-theme-light="false"], [data-vscode-theme-kind$="dark"], [data-theme="dark"]'
LIGHT = '[data-jp-theme-light="true"], [data-vscode-theme-kind$="light"], [data-theme="light"]'
"""How JupyterLab, VS Code and pages of documentation say which colours they have."""
TELLER = """(() => {
  const frame = document.currentScript && document.currentScript.previousElementSibling;
  if (!frame) return;
  const theme = () => (document.querySelector(DARK) ? "dark" : document.querySelector(LIGHT) ? "light" : "");
  const tell = () => frame.contentWindow && frame.contentWindow.postMessage({ interpTheme: theme() }, "*");
  frame.addEventListener("load", tell);
  tell();
  for (const node of [document.documentElement, document.body]) {
    new MutationObserver(tell).observe(node, {
      attributes: true, attributeFilter: ["data-jp-theme-light", "data-vscode-theme-kind", "data-theme"],
    });
  }
})();""".replace("DARK", repr(DARK)).replace("LIGHT", repr(LIGHT))
"""Stands beside the frame, and tells the page within which theme the notebook has: from within it cannot be asked."""
LISTENER = """addEventListener("message", ({ source, data }) => {
  if (source !== parent || !data || !data.interpTheme) return;
  const dark = data.interpTheme === "dark";
  for (const sheet of document.styleSheets) {
    for (const rule of sheet.cssRules) {
      if (rule.media && (rule.interpDark ??= rule.conditionText.includes("prefers-color-scheme: dark"))) {
        rule.media.mediaText = dark ? "all" : "not all";
      }
    }
  }
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  dispatchEvent(new Event("interp-theme"));
});"""
"""Stands in the page: switches its rules for dark paper on and off, whatever the system has."""


def framed(page: str, *, title: str, height: int) -> str:
    """HTML of the frame, of the notebook's theme where that is known and scripts run there, else of the system's."""
    look = f"width: 100%; height: {height}px; border: 0; resize: vertical"
    body, end, rest = page.rpartition("</body>")
    source = html.escape(f"{body}<script>{LISTENER}</script>\n{end}{rest}", quote=True)
    return (
        f'<iframe title="{html.escape(title, quote=True)}" sandbox="allow-scripts" style="{look}" '
        f'srcdoc="{source}"></iframe><script>{TELLER}</script>'
    )
