"""A page is one file that shows what it is given, whatever characters that has, and asks for nothing."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure as Drawing

from bnprobe import __version__
from bnprobe.errors import ArgumentError
from bnprobe.plots import style
from bnprobe.report import Facts, Figure, Mark, Note, Page, Section, Table
from bnprobe.report.svg import embed

# What XML and HTML parsers keep as it is: no control characters, no surrogates; HTML folds \r into \n.
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"), min_size=1)


class Reader(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def page_of(*parts) -> str:
    return Page("A page", "Its lead.", [Section("A section", parts)]).html()


def drawing_of(title: str = "a title") -> Drawing:
    drawing = Drawing(figsize=(3, 2))
    ax = drawing.subplots()
    ax.plot([0, 1], [1, 2])
    ax.imshow(np.eye(2))
    ax.set_title(title.replace("$", r"\$"))
    return drawing


def test_every_part_is_shown():
    page = page_of(
        "A paragraph.",
        Facts([("Term", "what it is")]),
        Note(["It failed.", "Twice."], kind="problem", heading="Trouble"),
        Figure(drawing_of(), "A caption.", "A picture of a line."),
        Table(["name", "value"], [["a", 1.23456], ["b", None]], caption="A table."),
    )
    reader = Reader(page)
    for text in ("A paragraph.", "Term", "what it is", "Trouble", "Twice.", "A caption.", "A table.", "1.23", "–"):
        assert text in reader.texts
    assert reader.tags.count("svg") == 1
    assert ("svg", "aria-label", "A picture of a line.") in reader.attributes
    assert f"bnprobe {__version__}" in page


@given(TEXT, TEXT)
@example("<script>alert(1)</script>", "<b>&amp;\"'")
@settings(max_examples=50)
def test_any_text_stays_text(text, other):
    page = Page(
        text,
        other,
        [
            Section(
                text,
                [
                    text,
                    Facts([(text, other)]),
                    Note([text], heading=other),
                    Table([text], [[other], [Mark(text, "bad")]], caption=text, search=other),
                ],
            )
        ],
    ).html()
    plain = Page("a", "b", [Section("c", ["d", Facts([("e", "f")]), Note(["g"], heading="h"), _table()])]).html()
    reader = Reader(page)
    assert reader.tags == Reader(plain).tags
    assert "".join(reader.texts).count(text) >= 6


def _table() -> Table:
    return Table(["i"], [["j"], [Mark("k", "bad")]], caption="l", search="m")


@given(TEXT)
@example("<script>alert(1)</script> $x_$ & \\$")
@settings(max_examples=15)
def test_any_text_in_a_figure_stays_text(text):
    title = style.plain(text, most=1000)
    with style.canvas(None, 3, 2) as ax:
        ax.set_title(title)
    element = ElementTree.fromstring(str(embed(ax.figure, "p", text)))
    shown = title.replace(r"\$", "$")
    assert shown.strip() in {(node.text or "").strip() for node in element.iter("text")}
    assert element.get("aria-label") == text
    assert not {"script", "style", "a", "foreignObject"} & {node.tag for node in element.iter()}


def test_nothing_is_fetched_and_only_its_own_script_may_run():
    page = page_of(Figure(drawing_of("<script>alert(1)</script>"), "c", "a"), "<img src=x onerror=alert(1)>")
    reader = Reader(page)
    addresses = [value for _, name, value in reader.attributes if name in ("src", "href", "action", "data", "srcset")]
    assert all(value.startswith(("#", "data:")) for value in addresses)
    assert not re.search(r"url\((?!#)|@import|https?:", page)
    assert reader.tags.count("script") == 1
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [value for tag, name, value in reader.attributes if value.startswith("default-src")]
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{allowed}'" in policy
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]


def test_figures_of_a_page_share_no_id_and_find_their_own_parts():
    page = page_of(Figure(drawing_of(), "one", "one"), Figure(drawing_of(), "two", "two"))
    reader = Reader(page)
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    for reference in re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', page):
        assert "".join(reference) in ids


def test_figures_follow_the_colours_of_the_page():
    with style.canvas(None, 3, 2) as ax:
        ax.plot([0, 1], color=style.PALETTE[1])
        ax.set_title("t")
    svg = str(embed(ax.figure, "p", "alt"))
    assert "var(--ink)" in svg
    assert "var(--data-1)" in svg
    assert style.INK not in svg
    assert style.PALETTE[1] not in svg
    foreign = str(embed(drawing_of(), "p", "alt"))
    assert "#000000" not in foreign
    assert "font-family" not in foreign


def test_embedding_leaves_figure_and_settings_alone_and_repeats_itself():
    drawing = drawing_of()
    before, size = dict(mpl.rcParams), drawing.get_size_inches().tolist()
    first = embed(drawing, "p", "alt")
    assert embed(drawing, "p", "alt") == first
    assert drawing.get_facecolor() == Drawing().get_facecolor()
    assert drawing.get_size_inches().tolist() == size
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (True, "yes"),
        (np.bool_(False), "no"),
        (12345, "12,345"),
        (np.int64(-3), "−3"),
        (0.123456, "0.123"),
        ("<b>", "&lt;b&gt;"),
    ],
)
def test_cells_are_written_for_readers(cell, shown):
    assert f">{shown}</td>" in page_of(Table(["a"], [[cell]]))


def test_columns_of_numbers_stand_right_even_with_gaps():
    table = Table(["name", "number", "mixed", "empty"], [["a", None, 1, None], ["b", 2.5, "x", None]])
    assert table.numeric == [False, True, False, False]
    assert Table(["a", "b"], []).numeric == [False, False]
    assert Reader(page_of(table)).attributes.count(("td", "class", "number")) == 2


def test_a_frame_becomes_a_table_without_its_index_and_with_dashes():
    frame = pd.DataFrame(
        {"claim": ["C1a", None], "value": [0.5, np.nan], "verdict": [Mark("reproduced", "good"), pd.NA]}
    )
    table = Table.from_frame(frame, caption="Verdicts")
    assert table.header == ["claim", "value", "verdict"]
    assert table.rows == [["C1a", 0.5, Mark("reproduced", "good")], [None, None, None]]
    assert '<span class="mark good">reproduced</span>' in page_of(table)


def test_sections_of_one_title_get_anchors_of_their_own():
    page = Page("p", "", [Section("Loss", []), Section("Loss!", []), Section("Δ", []), Section("Loss 2", [])]).html()
    anchors = re.findall(r'<section id="([^"]*)"', page)
    assert len(set(anchors)) == 4
    assert re.findall(r'<a href="#([^"]*)"', page) == anchors


def test_writing_makes_the_folder_replaces_the_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "new" / "page.html"
    page = Page("p", "", [])
    assert page.write(target) == target
    target.write_text("old")
    page.write(str(target))
    assert target.read_text(encoding="utf-8") == page.html()
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_wrong_parts_are_refused_by_name():
    with pytest.raises(ArgumentError, match="drawing must be a matplotlib Figure; got Axes"):
        Figure(Drawing().subplots(), "c", "a")
    with pytest.raises(ArgumentError, match="alt must say what the figure shows"):
        Figure(Drawing(), "c", " ")
    with pytest.raises(ArgumentError, match="rows must have 2 cells each; row 1 has 1"):
        Table(["a", "b"], [[1, 2], [3]])
    with pytest.raises(ArgumentError, match=r"parts of section 'S' must be a list of .* Note; got 3"):
        Section("S", [3])
    with pytest.raises(ArgumentError, match=r"parts of section 'S' must be a list of .* Note; got 'text'"):
        Section("S", "text")
