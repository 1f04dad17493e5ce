"""A run's report shows what was recorded, says what was not, and stays small."""

import re
from dataclasses import replace

import matplotlib as mpl
import pytest
from report.believable_run import COUNT, LEVELS, inventory, make_run

import bnprobe
from bnprobe.errors import ArgumentError
from bnprobe.records import Layer, Record
from bnprobe.report import Figure, Note, Section, report, sections
from bnprobe.report.overview import _setting
from bnprobe.store import Run, Writer, build_table

SECTIONS = {
    "Overview": 0,
    "Percentiles over training": 3,
    "Drift of every layer": 1,
    "Moments over depth": 2,
    "Before and after normalization": 6,
    "Saturation": 1,
    "Running statistics": 1,
    "Layers": 0,
}
FIVE_MEGABYTES = 5_000_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", steps=range(40))


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return report(run, tmp_path_factory.mktemp("pages") / "page.html").read_text(encoding="utf-8")


def figures_of(run: Run) -> dict[str, int]:
    return {section.title: sum(isinstance(part, Figure) for part in section.parts) for section in sections(run)}


def test_the_names_in_the_package_are_the_functions():
    assert bnprobe.report is report


def test_every_section_has_its_figures(run):
    assert figures_of(run) == SECTIONS


@pytest.mark.parametrize(
    ("left_out", "empty"),
    [
        ("quantile", ["Percentiles over training", "Drift of every layer", "Before and after normalization"]),
        ("variance", ["Moments over depth"]),
        ("saturated", ["Saturation"]),
    ],
)
def test_what_was_not_recorded_is_one_sentence(tmp_path, left_out, empty):
    lacking = make_run(tmp_path / "run", steps=range(4), blocks=1, without=[left_out])
    notes = {section.title: section.parts for section in sections(lacking) if isinstance(section.parts[0], Note)}
    assert list(notes) == empty
    for (note,) in notes.values():
        assert len(note.sentences) == 1
        assert note.sentences[0].startswith("Not recorded: ")


def test_drift_is_in_units_of_the_value_where_no_variance_is_there(tmp_path, run, page):
    lacking = make_run(tmp_path / "run", steps=range(4), blocks=1, without=["variance"])
    text = report(lacking, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Wasserstein-1 distance, in units of the value" in text
    assert "Wasserstein-1 distance, in sd of the first step" in page


def test_a_run_without_a_single_record_has_a_page(tmp_path):
    Writer(tmp_path / "run", settings={}, layers=inventory(1), levels=LEVELS).close()
    page = report(Run(tmp_path / "run"), tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("Not recorded: ") == 6
    assert "no step recorded yet" in page


def test_a_run_of_evaluation_only_is_shown_as_such(tmp_path):
    layer = replace(inventory(1)[2], name="act")
    with Writer(tmp_path / "run", settings={}, layers=[layer], levels=LEVELS) as writer:
        writer.append(build_table([Record(0, "eval", "act", 0, "input", COUNT)], {}))
    page = report(Run(tmp_path / "run"), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "eval (1 records)" in page


def test_the_overview_says_what_ran(page):
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert facts["Recorded steps"] == "40 (steps 0 to 39)"
    assert facts["Layers"] == "11 in the inventory, 10 observed"
    assert facts["Statistics"] == "mean, variance, quantile, saturated, mean_gap, variance_gap"
    assert f"bnprobe {bnprobe.__version__}" in facts["Versions"]
    assert '<td class="short">seed</td>\n<td class="short">0</td>' in page
    assert facts["State"] == "closed"
    assert 'class="problem"' not in page


def test_long_rows_of_numbers_among_the_settings_are_counted():
    assert _setting(["Quantiles(levels=(0.0, 1e-05, 0.5, 1, 2, 3, 4, 5), channels=())", "b"]) == (
        "Quantiles(levels=(8 numbers), channels=()); b"
    )
    assert _setting([]) == "none"


def test_problems_are_stated_before_everything_else(tmp_path):
    killed = make_run(tmp_path / "run", steps=range(4), blocks=1, close=False)
    (killed.path / "parts" / "0000-000001.parquet").write_bytes(b"half a part")
    page = report(killed, tmp_path / "page.html").read_text(encoding="utf-8")
    box = re.search(r'<aside class="problem">.*?</aside>', page, re.DOTALL)
    assert "The run was not closed: steps after 3, if any, are missing." in box[0]
    assert "0000-000001.parquet" in box[0]
    assert box.start() < page.index("<dl>") < page.index("<figure")


def test_layers_are_listed_with_drift_and_the_reason_where_not_observed(page):
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    rows = rows[-12:]  # after the settings
    cells = {
        row[0]: row
        for row in ([re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", row)] for row in rows)
        if row
    }
    assert len(cells) == 11
    assert cells["spare"][2] == "not observed: never called"
    assert cells["bn1"][1:3] == ["BatchNorm1d", "observed"]
    assert float(cells["bn1"][3]) == pytest.approx(1.6, abs=0.2)
    assert cells["spare"][3] == "–"
    assert cells["bn1"][4:] == ["100", "eps 1e-05, momentum 0.1", "act1"]


def test_a_hostile_layer_name_is_only_a_name(tmp_path):
    name = "<script>alert(1)</script>$x_$"
    hostile = make_run(tmp_path / "run", steps=range(4), blocks=1, prefix=name)
    page = report(hostile, tmp_path / "page.html", title=name).read_text(encoding="utf-8")
    assert page.count("<script>") == 1
    assert "alert(1)</script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$x_$act1" in page


def test_further_sections_follow_the_overview(tmp_path):
    small = make_run(tmp_path / "run", steps=range(4), blocks=1, without=["quantile", "saturated"])
    extra = Section("Verdicts", ["Reproduced."])
    page = report(small, tmp_path / "page.html", title="My run", extra=[extra]).read_text(encoding="utf-8")
    assert re.findall(r"<h2.*?>(.*?)</h2>", page)[:3] == ["Overview", "Verdicts", "Percentiles over training"]
    assert "<title>My run</title>" in page


def test_the_same_run_gives_the_same_page_whatever_matplotlib_is_set_to(run, page, tmp_path):
    before = dict(mpl.rcParams)
    with mpl.rc_context():
        mpl.style.use("dark_background")
        mpl.rcParams.update({"font.size": 20, "savefig.bbox": "tight", "svg.fonttype": "path"})
        assert report(run, tmp_path / "b.html").read_text(encoding="utf-8") == page
    assert dict(mpl.rcParams) == before


def test_two_hundred_layers_stay_readable_and_small(tmp_path):
    big = make_run(tmp_path / "run", steps=range(0, 20, 2), blocks=66, prefix="features.denseblock3.")
    page = report(big, tmp_path / "page.html")
    assert page.stat().st_size < FIVE_MEGABYTES / 2
    text = page.read_text(encoding="utf-8")
    assert "6 of 66 nonlinearities" in text
    assert "3 of 66 normalization layers" in text
    assert re.search(r"layer \(\d+ of 199 named\)", text)
    assert text[text.index('id="layers"') :].count("<tr>") == 1 + 200
    assert text.count("data:image/png") == 4, "two heat maps and their bars are pictures, not a path a cell"


def test_wrong_arguments_are_refused(run, tmp_path):
    with pytest.raises(ArgumentError, match=r"run must be a Run, as bnprobe\.load"):
        report(str(run.path), tmp_path / "page.html")
    with pytest.raises(ArgumentError, match=r"path must name a file, such as 'report.html'; .* is a directory"):
        report(run, tmp_path)


def test_one_layer_is_not_all_one_layers(tmp_path):
    small = make_run(tmp_path / "run", steps=range(3), blocks=1)
    page = report(small, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "of the input of one nonlinearity." in page
    assert "What goes into one normalization layer, and" in page


def test_a_layer_without_a_name_is_the_model(tmp_path):
    root = [Layer("", "Linear", "linear", 3, observed=True)]
    page = report(make_run(tmp_path / "run", steps=range(3), layers=root), tmp_path / "page.html")
    assert "(the model itself)" in page.read_text(encoding="utf-8")
