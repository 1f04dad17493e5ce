"""The report in a real browser: its figures are there, search works, nothing complains and nothing is fetched."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report.believable_run import make_run

from bnprobe.report import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# What Chromium says about the machine that it runs on, whatever the page.
MACHINE = re.compile(r"dbus|d-bus|gpu|sandbox|fontconfig|vulkan|egl|device_event|DevTools", re.IGNORECASE)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    run = make_run(folder / "run", steps=range(20), blocks=2, prefix="<script>console.error('hacked')</script>.")
    return report(run, folder / "report.html")


def chromium(tmp_path: Path, *arguments: str) -> tuple[str, str]:
    """Starts a browser with a profile of its own; returns what it printed, and what it logged."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def document(tmp_path: Path, page: Path, query: str = "", *arguments: str) -> tuple[str, str]:
    return chromium(tmp_path, "--dump-dom", *arguments, f"{page.as_uri()}{query}")


def console(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line and not MACHINE.search(line)]


def shown_rows(dom: str) -> list[str]:
    body = dom[dom.rindex("<tbody>") : dom.rindex("</tbody>")]
    return [
        row for attributes, row in re.findall(r"<tr([^>]*)>(.*?)</tr>", body, re.DOTALL) if "hidden" not in attributes
    ]


def test_figures_are_there_and_nothing_is_on_the_console(tmp_path, page):
    dom, log = document(tmp_path, page)
    assert len(re.findall(r"<svg[^>]*role=\"img\"", dom)) == 11
    assert console(log) == []
    assert len(re.findall("<script", dom)) == 1


@pytest.mark.parametrize("intruder", ["<script>alert(1)</script>", "<img src='https://example.invalid/a.png'>"])
def test_a_foreign_script_or_request_is_refused_and_heard(tmp_path, page, intruder):
    """The page's own policy; so a quiet console says that nothing was asked of the network."""
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{intruder}</body>"))
    _, log = document(tmp_path, broken)
    assert any("Content Security Policy" in line for line in console(log))


@pytest.mark.parametrize(
    ("query", "rows"),
    [("", 8), ("?q=BatchNorm", 2), ("?q=not+observed", 1), ("?q=act%20bn1", 1)],
)
def test_search_filters_the_layers(tmp_path, page, query, rows):
    dom, log = document(tmp_path, page, query)
    assert len(shown_rows(dom)) == rows
    assert re.search(r"<output[^>]*>(.*?)</output>", dom)[1] == (f"{rows} of 8 rows" if query else "8 rows")
    assert console(log) == []


def measured(
    tmp_path: Path, page: Path, width: int, expressions: list[str], *arguments: str, frame: str = ""
) -> list[str]:
    """JavaScript expressions over the page's document ``d``, in a frame: a window cannot be as narrow as a phone."""
    outer = tmp_path / "frame.html"
    outer.write_text(
        f"<!DOCTYPE html><iframe id=f width={width} height=900 {frame} src='{page.as_uri()}'></iframe><pre id=o></pre>"
        f"<script>f.onload = () => {{ const d = f.contentDocument; "
        f"o.textContent = [{', '.join(expressions)}].join(' | ') }}</script>"
    )
    arguments = (*arguments, "--allow-file-access-from-files", "--virtual-time-budget=5000")
    dom, _ = chromium(tmp_path, "--dump-dom", *arguments, outer.as_uri())
    return re.search(r'<pre id="o">(.*?)</pre>', dom)[1].split(" | ")


def test_without_javascript_all_layers_are_listed_and_no_dead_search_box(tmp_path, page):
    rows = "[...d.querySelectorAll('#layers tbody tr')].filter((row) => row.offsetHeight > 0).length"
    box = "d.querySelector('input').offsetHeight"
    assert measured(tmp_path, page, 800, [rows, box], frame="sandbox=allow-same-origin") == ["8", "0"]
    assert int(measured(tmp_path, page, 800, [rows, box])[1]) > 0


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_its_window_and_follows_the_theme(tmp_path, page, width, dark):
    expressions = [
        "d.documentElement.scrollWidth",
        "d.documentElement.clientWidth",
        "getComputedStyle(d.body).backgroundColor",
        "getComputedStyle(d.querySelector('svg text')).fill",
    ]
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    scroll, client, background, ink = measured(tmp_path, page, width, expressions, scheme)
    assert int(scroll) <= int(client)
    assert (brightness(background) < 60) is dark
    assert (brightness(ink) > 180) is dark


def brightness(color: str) -> float:
    return sum(map(int, re.findall(r"\d+", color)[:3])) / 3
