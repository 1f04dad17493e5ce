"""The page of all laws is the one that the docstrings give."""

from pathlib import Path

from bnprobe.testing.models import MODEL_LAWS
from bnprobe.testing.page import main, page
from bnprobe.testing.pitfalls import PITFALLS
from bnprobe.testing.properties import LAWS

DOCS = Path(__file__).parents[2] / "docs" / "properties.md"


def test_it_is_current():
    assert DOCS.read_text() == page(), "run: python -m bnprobe.testing.page --write"


def test_every_law_has_its_statement_and_a_typical_bug():
    sections = {text.split("\n")[0]: text for text in page().split("\n### ")[1:]}
    assert set(sections) == {*LAWS, *MODEL_LAWS, *PITFALLS}
    for name, text in sections.items():
        assert "*Typical bug:* broken by " in text, f"{name} says not what breaks it"
        assert ":math:" not in text
        assert ":func:" not in text
    for name, one in PITFALLS.items():
        assert "Null law: " in sections[name]
        assert one.statement in sections[name]


def test_written_and_printed(tmp_path, capsys):
    main(["--write", str(tmp_path / "page.md")])
    main([])
    assert (tmp_path / "page.md").read_text() == capsys.readouterr().out == page()
