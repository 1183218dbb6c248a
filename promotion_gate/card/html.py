"""The card as one HTML file that loads nothing, stores nothing and runs only its own script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from promotion_gate.card import figures
from promotion_gate.card.detail import inert, number_text, percent, spoken
from promotion_gate.card.images import Atlas, atlas, data_uri, heat_uri
from promotion_gate.card.records import Picture, PointMap
from promotion_gate.card.view import percent_fine, view
from promotion_gate.core.types import Report

_JSON_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render_card(report: Report) -> bytes:
    """The model card of a finished gate run: UTF-8 HTML, the same bytes for the same report."""
    card = view(report)
    style, script = _text("card.css"), _text("card.js")
    sheet = None if card.map is None else atlas(card.map.thumbnails)
    page = (
        _environment()
        .get_template("card.html.j2")
        .render(
            card=card,
            gate_version=report.gate_version,
            digest=report.candidate.digest,
            style=Markup(style),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704 - our own file
            content_policy=content_policy(style, script),
            atlas=sheet,
            map_json=None if card.map is None or sheet is None else _map_json(card.map, sheet),
            loss_figure=_figure(figures.loss_curves(card.curves)) if card.curves else None,
            departing=figures.departing(card.curves),
            reliability_figure=_figure(figures.reliability(card.reliability)) if card.reliability else None,
        )
    )
    return page.encode("utf-8")


def content_policy(style: str, script: str = "") -> str:
    """The Content-Security-Policy that allows this style and this script, images in the file, and no more."""
    scripts = f"script-src '{_source_hash(script)}'; " if script else ""
    return (
        f"default-src 'none'; img-src data:; style-src '{_source_hash(style)}'; "
        f"{scripts}base-uri 'none'; form-action 'none'"
    )


def _source_hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def templates_folder() -> Path:
    """The templates: inside the installed package, or beside it in a checkout."""
    installed = Path(str(files("promotion_gate"))) / "templates"
    return installed if installed.is_dir() else installed.parents[1] / "templates"


def _text(name: str) -> str:
    """A style or script; read with LF line ends, since a browser hashes it so."""
    return (templates_folder() / "card" / name).read_text(encoding="utf-8")


def page_environment(*folders: str) -> Environment:
    """The templates of these folders: what they print is escaped and made inert, and a missing name fails."""
    return Environment(
        loader=FileSystemLoader([templates_folder() / folder for folder in folders]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _environment() -> Environment:
    environment = page_environment("card")
    environment.filters |= card_filters()
    return environment


def card_filters() -> dict[str, Callable[..., Any]]:
    """What the card's templates and macros call their values through."""
    return {
        "percent": percent,
        "percent_fine": percent_fine,
        "number": number_text,
        "spoken": spoken,
        "picture_uri": lambda picture: data_uri(picture.pixels),
        "heat_uri": lambda picture: heat_uri(picture.mass),
        "viewbox": _viewbox,
        "bar": lambda row, base: figures.bar(row.low, row.high, row.recall, base),
    }


def _finalize(value: Any) -> Any:
    return inert(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _figure(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704 - drawn by figures.py, which lets no outside string in


def _viewbox(picture: Picture) -> str:
    height, width = picture.pixels.shape[:2]
    return f"0 0 {width} {height}"


def _map_json(points: PointMap, sheet: Atlas) -> Markup:
    """The map's points for the script, in a form that cannot end or open a tag."""
    data = {
        "x": points.x,
        "y": points.y,
        "label": points.labels,
        "role": points.roles,
        "ids": points.ids,
        "names": points.names,
        "columns": sheet.columns,
        "side": sheet.side,
    }
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return Markup(inert(text).translate(_JSON_ESCAPES))  # noqa: S704 - escaped in this line
