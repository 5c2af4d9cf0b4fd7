"""The page at ``/``: template, style and script put together into one text that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files


def page() -> tuple[str, str]:
    """The HTML, and the Content-Security-Policy under which it works."""
    # The report's style first: page and report are one design.
    style = f"{_template('report.css')}\n{_template('page.css')}"
    script = _template("page.js")
    html = _template("page.html").replace("/* style */", style).replace("/* script */", script)
    policy = (
        "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _template(name: str) -> str:
    return (files("pipelines") / "templates" / name).read_text("utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
