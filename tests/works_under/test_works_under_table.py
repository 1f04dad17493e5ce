import textwrap

import pytest

from tests.works_under.table import BEGIN, END, README, Row, rows, table, written


def test_the_readme_is_up_to_date():
    readme = README.read_text()
    assert readme == written(readme, rows()), "run `python -m tests.works_under.table --write`"


def test_markers_become_rows(tmp_path):
    (tmp_path / "test_some.py").write_text(
        textwrap.dedent("""
        import pytest
        @pytest.mark.works_under("rain", group="Weather")
        @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.works_under("snow", group="Weather")), 2])
        def test_one(x): ...
        @pytest.mark.works_under("night", group="Light", verdict="not observed, listed why")
        def test_two(): ...
        @pytest.mark.works_under("hail", group="Weather")
        def test_three(): ...
        def test_four(): ...
        """)
    )
    found = rows(tmp_path)
    assert found[0] == Row("Weather", "rain", "observed", "test_some.py")
    assert [row.what for row in found] == ["rain", "snow", "night", "hail"]
    assert table(found).splitlines()[2:] == [
        "| Weather | rain; snow; hail | observed | `test_some.py` |",
        "| Light | night | not observed, listed why | `test_some.py` |",
    ]
    readme = written(f"before\n{BEGIN}\nold\n{END}\nafter\n", found)
    assert readme.startswith(f"before\n{BEGIN}\n| | what")
    assert readme.endswith(f"|\n{END}\nafter\n")
    assert written(readme, found) == readme


def test_a_misspelt_marker_and_a_readme_without_a_place_are_refused(tmp_path):
    (tmp_path / "test_some.py").write_text("@pytest.mark.works_under('rain', grop='Weather')\ndef test_one(): ...\n")
    with pytest.raises(ValueError, match="works_under takes what, group and verdict"):
        rows(tmp_path)
    with pytest.raises(ValueError, match="once"):
        written("no place", [])
