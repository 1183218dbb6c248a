"""The static figures, drawn by matplotlib as inline SVG that follows the page's colours.

No string from outside enters a figure: names stand beside it in the HTML. The card's content policy allows
no style attributes, so those that matplotlib writes become presentation attributes, and the palette's
placeholder colours become classes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from promotion_gate.card.records import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEPARTING_SHOWN = 6
LINES_SHOWN = 60
_DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (8, 3)))
_INK, _FAINT, _ACCENT = "#000001", "#000002", "#000003"
_SERIES = tuple(f"#0001{index:02x}" for index in range(DEPARTING_SHOWN))
_CLASSES = {_INK: "ink", _FAINT: "faint", _ACCENT: "accent"} | {c: f"s{i}" for i, c in enumerate(_SERIES)}
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"


def loss_curves(curves: Sequence[Curve]) -> str:
    """Loss by step: departing classes as lines of their own, the rest as thin lines or a band."""
    figure, axes = _canvas(7.2, 3.4)
    rest = [curve for curve in curves if not curve.departs]
    if len(rest) > LINES_SHOWN:
        _band(axes, rest)
    else:
        for curve in rest:
            axes.plot(curve.steps, curve.losses, color=_FAINT, linewidth=0.9, alpha=0.7)
    for index, curve in enumerate(departing(curves)):
        axes.plot(curve.steps, curve.losses, color=_SERIES[index], linestyle=_DASHES[index], linewidth=2.2)
    if all(loss > 0 for curve in curves for loss in curve.losses):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    return _svg(figure, "loss")


def departing(curves: Sequence[Curve]) -> list[Curve]:
    """The departing curves that get a line of their own, in the order of the legend."""
    return [curve for curve in curves if curve.departs][:DEPARTING_SHOWN]


def _band(axes: Axes, curves: Sequence[Curve]) -> None:
    by_step: dict[float, list[float]] = {}
    for curve in curves:
        for step, loss in zip(curve.steps, curve.losses, strict=True):
            by_step.setdefault(step, []).append(loss)
    steps = sorted(by_step)
    low, middle, high = np.array([np.quantile(by_step[s], [0.05, 0.5, 0.95]) for s in steps]).T
    axes.fill_between(steps, low, high, color=_FAINT, alpha=0.35, linewidth=0)
    axes.plot(steps, middle, color=_INK, linewidth=1.2)


def reliability(bins: Sequence[tuple[float, float, int]]) -> str:
    """Accuracy by confidence: on the diagonal the model's confidence is what it seems."""
    figure, axes = _canvas(3.4, 3.4)
    axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle=(0, (4, 3)))
    confidence, accuracy, counts = (np.array(column, dtype=float) for column in zip(*bins, strict=True))
    sizes = 12 + 120 * np.sqrt(counts / counts.max())
    axes.plot(confidence, accuracy, color=_ACCENT, linewidth=1.4)
    axes.scatter(confidence, accuracy, s=sizes, color=_ACCENT, alpha=0.55, linewidths=0)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    return _svg(figure, "reliability")


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(which="both", colors=_INK, labelsize=9, color=_FAINT)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _svg(figure: Figure, prefix: str) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "promotion-gate", "svg.fonttype": "none", "text.parse_math": False}):
        empty = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_figure(buffer, format="svg", metadata=empty)
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314 - our own drawing, no foreign text in it
    _inline(root, prefix)
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return ElementTree.tostring(root, encoding="unicode")


def _inline(root: ElementTree.Element, prefix: str) -> None:
    """Make a stand-alone SVG fit into a page: no style, no metadata, ids its own."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    width, height = (root.attrib.pop(side, "0").removesuffix("pt") for side in ("width", "height"))
    root.attrib |= {"class": "figure", "aria-hidden": "true", "focusable": "false"}
    root.attrib.setdefault("viewBox", f"0 0 {width} {height}")
    used = {reference for element in root.iter() for reference in _references(element)}
    for element in root.iter():
        _plain_attributes(element)
        name = element.attrib.pop("id", None)
        if name in used:
            element.attrib["id"] = f"{prefix}-{name}"
        for key, value in list(element.attrib.items()):
            for reference in _references(element):
                if value in (f"#{reference}", f"url(#{reference})"):
                    element.attrib[key] = value.replace(f"#{reference}", f"#{prefix}-{reference}")


def _references(element: ElementTree.Element) -> Iterator[str]:
    for value in element.attrib.values():
        if value.startswith("#"):
            yield value[1:]
        elif value.startswith("url(#"):
            yield value[5:-1]


def _plain_attributes(element: ElementTree.Element) -> None:
    declarations = element.attrib.pop("style", "")
    classes = [element.attrib["class"]] if "class" in element.attrib else []
    for declaration in declarations.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if not value:
            continue
        if name == "font":
            size = next((word for word in value.split() if word.endswith("px")), "9px")
            element.attrib["font-size"] = size.removesuffix("px")
        else:
            element.attrib[name] = value
    for name in ("fill", "stroke"):
        role = _CLASSES.get(element.attrib.get(name, ""))
        if role:
            del element.attrib[name]
            classes.append(f"{name}-{role}")
    if element.tag == f"{_SVG}text":
        classes.append("fill-ink")
        element.attrib.pop("fill", None)
    if classes:
        element.attrib["class"] = " ".join(dict.fromkeys(classes))


def bar(
    low: float | None, high: float | None, value: float | None, base: float = 0.0
) -> tuple[int, int, int] | None:
    """An interval and its estimate, ``base`` to 1 drawn as 0 to 200, for a bar in a table cell."""
    if value is None:
        return None
    ends = (value if low is None else low, value if high is None else high, value)
    a, b, c = (round(200 * min(1.0, max(0.0, (end - base) / (1 - base)))) for end in ends)
    return a, max(a, b), c
