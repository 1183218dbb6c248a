"""The posture of a repository as one HTML file without any script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from promotion_gate import __version__
from promotion_gate.card.html import content_policy, page_environment, templates_folder


def render_posture(posture: Mapping[str, Any], title: str) -> bytes:
    """The page of a posture, given as its JSON table; UTF-8."""
    folder = templates_folder()
    parts = ("card/card.css", "posture/posture.css")
    style = "".join((folder / part).read_text(encoding="utf-8") for part in parts)
    page = (
        page_environment("posture")
        .get_template("posture.html.j2")
        .render(
            posture=posture,
            title=title,
            style=Markup(style),  # noqa: S704 - our own files
            content_policy=content_policy(style),
            gate_version=__version__,
        )
    )
    return page.encode("utf-8", "replace")
