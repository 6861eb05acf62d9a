"""The report page: complete in itself, well formed, and with the right numbers."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from past_runs import attempt, failed, make_run, row, stopped, write_rows

from titan_recipes.config.layout import RankExit, write_exit
from titan_recipes.errors import LaunchError
from titan_recipes.launch import charts
from titan_recipes.launch.record import write_record
from titan_recipes.launch.report import page_of, render_report, write_report
from titan_recipes.launch.runs import Run, open_run

VOID = {"meta", "line", "circle", "path", "br"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps text and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.urls: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three attempts, 400 steps, validation; hostile text where text comes from outside."""
    cause = "rank 1: <script>alert('&')</script>, at step 117"
    tries = (
        failed(1, step_to=100, cause=cause, final=False),
        stopped(2, step_from=100, step_to=240),
        attempt(3, step_from=240, step_to=400),
    )
    made = make_run(tmp_path, "one", *tries, steps=400, reached=400)
    write_rows(
        made.layout.validation,
        [{"step": step, "loss": loss, "time": 0.0} for step, loss in ((200, 2.5), (400, 2.25))],
    )
    write_exit(made.layout.exit(1), RankExit(1, 1, cause, "Traceback ...\n  x < y & z\nBoom"))
    return made


def test_report_is_one_page_that_needs_no_network(run: Run) -> None:
    path = write_report(run)
    assert path == run.layout.root / "report.html"
    text = path.read_text()
    page = Page(text)
    assert page.urls == []
    assert re.findall(r"https?:|@import|url\(|\bfetch\(|<link|<img", text) == []
    assert page.tags.count("svg") == 5  # mfu is unknown: no chart of nothing
    assert "prefers-color-scheme: dark" in text


def test_report_escapes_what_comes_from_outside(run: Run) -> None:
    text = render_report(run)
    page = Page(text)
    shown = "".join(page.text)
    assert "rank 1: <script>alert('&')</script>, at step 117" in shown
    assert "x < y & z" in shown
    assert page.tags.count("script") == 1
    assert 'dataset = "stdlib"' in shown  # job.toml is there, whole


def test_page_has_the_figures_of_the_run(run: Run) -> None:
    page = page_of(run)
    tiles = {tile.label: (tile.value, tile.note) for tile in page.tiles}
    assert page.state == "SUCCEEDED"
    assert tiles["Steps"] == ("400/400", "15 min 00 s, 3 attempts")
    assert tiles["Loss"] == ("2", "from 7.462")
    assert tiles["Validation loss"] == ("2.25", "best 2.25")
    assert tiles["Tokens/s"] == ("3000", "median, per device")
    assert tiles["Memory"] == ("0.75 GiB", "peak")
    assert tiles["Tokens"] == ("819.2K", "2048 a step")
    assert [chart.title for chart in page.charts] == [
        "Loss",
        "Gradient norm",
        "Learning rate",
        "Tokens per second, per device",
        "Memory, GiB",
    ]
    assert [line.name for line in page.charts[0].lines] == ["training", "validation"]
    assert [(a.number, a.steps, a.outcome, a.tone) for a in page.attempts] == [
        (1, "0 to 100", "failed", "bad"),
        (2, "100 to 240", "stopped", "idle"),
        (3, "240 to 400", "done", "good"),
    ]
    assert page.attempts[0].traceback.endswith("Boom")
    facts = {title.title: dict(title.rows) for title in page.facts}
    assert facts["What"]["recipe"] == "llama3_debug@0.1.0"
    assert facts["What"]["parameters"] == "6,163,712"
    assert facts["What"]["mesh"] == "dp_shard 2"
    assert facts["Versions"]["python"] == run.record.versions["python"]


def test_page_compares_with_what_the_plan_expects(run: Run) -> None:
    record = replace(run.record, predicted={"tokens_per_second_per_gpu": 12500.0})
    write_record(run.layout, record)
    tiles = {tile.label: tile.note for tile in page_of(open_run(run.layout.root)).tiles}
    assert tiles["Tokens/s"] == "median, per device; expected 12.5K"


@pytest.mark.parametrize("reached", [0, 1])
def test_report_of_a_run_that_just_began_is_a_page(tmp_path: Path, reached: int) -> None:
    run = make_run(tmp_path, "new", reached=reached)
    page = Page(render_report(run))
    shown = "".join(page.text)
    assert ("No step was logged." in shown) is (reached == 0)
    assert "None has started." in shown


def test_report_without_a_readable_job_is_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, "old", attempt())
    run.layout.job.unlink()
    assert "No such file or directory" in "".join(Page(render_report(run)).text)


def test_report_with_unknown_values_leaves_gaps_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, "gaps", attempt(), reached=0)
    rows: list[dict[str, Any]] = [row(1), row(2, loss=None), row(3, loss=float("nan")), row(4)]
    write_rows(run.layout.metrics, rows)
    loss = page_of(run).charts[0]
    assert [shown[1:] for shown in loss.hover] == [("1", "7.462"), ("4", "7.067")]


def test_report_into_a_missing_directory_is_an_error(run: Run, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"no directory .*/nowhere to write it into"):
        write_report(run, tmp_path / "nowhere" / "page.html")
    with pytest.raises(LaunchError, match="is a directory"):
        write_report(run, tmp_path)


def test_draw_maps_the_range_onto_the_plot() -> None:
    chart = charts.draw("t", [charts.Series("t", [(1, 1.0), (3, 3.0), (5, 2.0)])], marks=[3, 9])
    assert chart is not None
    assert chart.lines[0].path == "M58.0,178.1L302.0,19.9L546.0,99.0"
    assert [(tick.at, tick.label) for tick in chart.x_ticks] == [
        (58.0, "1"),
        (180.0, "2"),
        (302.0, "3"),
        (424.0, "4"),
        (546.0, "5"),
    ]
    assert [tick.label for tick in chart.y_ticks] == ["1", "2", "3"]
    assert chart.marks == (302.0,)  # step 9 is outside
    assert chart.hover == ((58.0, "1", "1"), (302.0, "3", "3"), (546.0, "5", "2"))


def test_draw_many_points_keeps_spikes_in_the_band_and_the_page_small() -> None:
    points = [(float(step), 1.0) for step in range(100_000)]
    points[77_777] = (77_777.0, 9.0)
    chart = charts.draw("t", [charts.Series("t", points)])
    assert chart is not None
    assert len(chart.hover) == charts.MAX_POINTS
    (line,) = chart.lines
    heights = [float(y) for y in re.findall(r",([\d.]+)", line.band)]
    assert len(heights) == 2 * charts.MAX_POINTS
    assert (min(heights), max(heights)) == (19.9, 178.1)


def test_draw_a_flat_line_lies_in_the_middle() -> None:
    chart = charts.draw("t", [charts.Series("t", [(1, 0.0), (2, 0.0)])])
    assert chart is not None
    assert chart.lines[0].path == "M58.0,99.0L546.0,99.0"
    assert charts.draw("t", [charts.Series("t", [])]) is None


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.5, 1]),
        (1.9, 7.6, [2, 4, 6]),
        (0, 400, [0, 100, 200, 300, 400]),
        (2e-6, 9e-6, [2e-6, 4e-6, 6e-6, 8e-6]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_nice_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert charts.nice_ticks(low, high, 5) == ticks


def test_page_shows_the_names_of_env_but_not_the_values(run: Run) -> None:
    text = run.layout.job.read_text()
    assert "[env]\n" in text
    run.layout.job.write_text(text.replace("[env]\n", '[env]\nSITE_PROXY = "hush"\n'))
    page = render_report(run)
    assert "SITE_PROXY" in page
    assert "hush" not in page
