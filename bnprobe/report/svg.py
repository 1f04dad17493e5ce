"""Figures as SVG inside a page: no id in common with another figure, and colours that follow the page's."""

import io
import re
import warnings
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure as Drawing

from bnprobe.plots import style

__all__ = ["embed"]

# These become the page's own, which has a light and a dark set, so that one figure serves both. Black and white are
# there for figures that were not made in the house style.
_PAGE_COLORS = {
    style.INK: "var(--ink)",
    style.GRID: "var(--line)",
    style.PAPER: "var(--paper)",
    "#000000": "var(--ink)",
    "#ffffff": "var(--paper)",
    **{color: f"var(--data-{index})" for index, color in enumerate(style.PALETTE)},
}
_COLOR = re.compile("|".join(map(re.escape, _PAGE_COLORS)), re.IGNORECASE)
_FAMILY = re.compile(r"font-family:[^;]*;?|(?<=px )'[^;]*")
_DIGITS = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point shows on no screen
_RASTER_DPI = 110  # of heat maps, which lie in the figure as one picture: about a screen's own
_PIXELS_A_POINT = 4 / 3


def embed(drawing: Drawing, prefix: str, alt: str) -> Markup:
    """The figure as an ``<svg>`` element for the body of a page.

    Args:
        drawing: a matplotlib figure; it is left as it was.
        prefix: goes before every id; no two figures of a page may have the same.
        alt: what a reader who cannot see the figure needs to know.
    """
    root = ElementTree.fromstring(_rendered(drawing))
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({name: _adapted(name, value, prefix) for name, value in attributes.items()})
    for definitions in root.findall("defs"):
        for sheet in definitions.findall("style"):  # it would hold for the whole page, which says the same for figures
            definitions.remove(sheet)
    width = float(root.attrib["viewBox"].split()[2]) * _PIXELS_A_POINT
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": alt,
        "style": f"--width: {width:.0f}px",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # ElementTree escapes texts and values


def _rendered(drawing: Drawing) -> str:
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    stream = io.StringIO()
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "bnprobe",
        "savefig.bbox": None,
        "text.usetex": False,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # Text stays text, which the browser has glyphs for; matplotlib only measures it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawing.savefig(stream, format="svg", transparent=True, metadata=nothing, dpi=_RASTER_DPI)
    return stream.getvalue()


def _local(name: str) -> str:
    """A name without its namespace: HTML knows what belongs to SVG."""
    return name.rpartition("}")[2]


def _adapted(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    if name == "d":
        return _DIGITS.sub(r"\1", value).replace("\n", "")
    if name == "style":
        # The page's font: house figures are laid out with a wide one, so that any other fits.
        value = _FAMILY.sub("", value)
        return _COLOR.sub(lambda match: _PAGE_COLORS[match[0].lower()], value)
    return value.replace("url(#", f"url(#{prefix}-")
