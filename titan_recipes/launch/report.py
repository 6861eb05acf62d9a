"""The report: one HTML page about a run, complete in itself, to keep or to mail.

Everything the page shows is gathered here into a `Page`, text ready; the template only lays it out.
"""

import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from titan_recipes import __version__
from titan_recipes.config.job import Job
from titan_recipes.config.layout import RankExit, read_exit, replace_file
from titan_recipes.config.load import loads
from titan_recipes.errors import LaunchError
from titan_recipes.launch import charts
from titan_recipes.launch.record import Attempt, is_alive, now
from titan_recipes.launch.rows import figure, read_rows
from titan_recipes.launch.runs import Run, open_run
from titan_recipes.launch.status import Status, status_of
from titan_recipes.launch.text import (
    UNKNOWN,
    duration,
    gib,
    local_time,
    number,
    progress,
    span_seconds,
)
from titan_recipes.render.environment import environment

TONES = {
    "SUCCEEDED": "good",
    "done": "good",
    "FAILED": "bad",
    "failed": "bad",
    "lost": "bad",
    "RUNNING": "live",
    "running": "live",
    "PENDING": "idle",
    "STOPPED": "idle",
    "stopped": "idle",
}
"""State or outcome -> the color class of the page."""

PLOTTED = (
    ("grad_norm", "Gradient norm"),
    ("lr", "Learning rate"),
    ("tokens_per_second", "Tokens per second, per device"),
    ("memory_gib", "Memory, GiB"),
    ("mfu", "Model FLOPs utilization"),
)
"""Columns of metrics.jsonl with a chart each, beside the loss."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One key figure."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt in the table."""

    number: int
    started: str
    took: str
    steps: str
    outcome: str
    tone: str
    cause: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Facts:
    """A titled list of names and values."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All that the page says."""

    name: str
    state: str
    tone: str
    subtitle: str
    cause: str
    tiles: tuple[Tile, ...]
    charts: tuple[charts.Chart, ...]
    attempts: tuple[AttemptRow, ...]
    facts: tuple[Facts, ...]
    settings: str
    footer: str


Rows = Sequence[dict[str, Any]]


def write_report(run: Run, file: Path | None = None) -> Path:
    """Write the page, to report.html in the run directory by default. Raises LaunchError."""
    path = file or run.layout.root / "report.html"
    if not path.parent.is_dir():
        raise LaunchError(f"{path}: no directory {path.parent} to write it into; make it first")
    if path.is_dir():
        raise LaunchError(f"{path}: is a directory; name a file in it")
    try:
        replace_file(path, render_report(run))
    except OSError as error:
        raise LaunchError(f"{path}: can't be written: {error.strerror}") from error
    return path


def render_report(run: Run) -> str:
    """The page as text."""
    plot = {
        "wide": charts.WIDE,
        "height": charts.HEIGHT,
        "left": charts.LEFT,
        "top": charts.TOP,
        "bottom": charts.BOTTOM,
    }
    return environment().get_template("report.html.j2").render(page=page_of(run), plot=plot)


def page_of(run: Run) -> Page:
    """Gather what the page says."""
    status, job = status_of(run), run.job()
    run = open_run(run.layout.root)  # of pods, asking has brought news
    rows = read_rows(run.layout.metrics)
    validation = read_rows(run.layout.validation)
    return Page(
        name=run.name,
        state=status.state,
        tone=TONES[status.state],
        subtitle=_subtitle(run, job),
        cause=status.cause,
        tiles=tuple(_tiles(run, status, job, rows, validation)),
        charts=tuple(_charts(run, rows, validation)),
        attempts=tuple(_attempt_row(run, attempt) for attempt in run.record.attempts),
        facts=tuple(_facts(run, job)),
        settings=_settings(run),
        footer=f"Written by titan-recipes {__version__}, {local_time(now())}. {run.layout.root}",
    )


def _subtitle(run: Run, job: Job | None) -> str:
    record = run.record
    parts = [record.recipe, f"plan {record.plan}", record.scheduler]
    if job:
        ranks, nodes = job.derived.world_size, job.plan.nodes
        devices = "CPU rank" if job.plan.gpu == "cpu" else "rank"
        parts.append(f"{_count(ranks, devices)} on {_count(nodes, 'node')}")
    return " \u00b7 ".join([*parts, local_time(record.created)])


def _count(many: int, noun: str) -> str:
    return f"{many} {noun}" if many == 1 else f"{many} {noun}s"


def _values(rows: Rows, key: str) -> list[float]:
    return [value for row in rows if (value := figure(row, key)) is not None]


def _tiles(
    run: Run, status: Status, job: Job | None, rows: Rows, validation: Rows
) -> Iterable[Tile]:
    took = [s for a in run.record.attempts if (s := _seconds(a)) is not None]
    tries = _count(len(run.record.attempts), "attempt")
    yield Tile(
        "Steps", progress(status.step, status.total_steps), f"{duration(sum(took))}, {tries}"
    )
    if losses := _values(rows, "loss"):
        yield Tile("Loss", number(losses[-1]), f"from {number(losses[0])}")
    if losses := _values(validation, "loss"):
        yield Tile("Validation loss", number(losses[-1]), f"best {number(min(losses))}")
    predicted = run.record.predicted
    if speeds := _values(rows, "tokens_per_second"):
        note = _beside(predicted.get("tokens_per_second_per_gpu"), "median, per device")
        yield Tile("Tokens/s", number(statistics.median(speeds)), note)
    if memory := _values(rows, "memory_gib"):
        note = _beside(predicted.get("peak_memory_gib"), "peak")
        yield Tile("Memory", gib(max(memory)), note)
    if mfu := _values(rows, "mfu"):
        yield Tile("MFU", f"{statistics.median(mfu):.1%}", "median")
    if job and status.step:
        tokens = status.step * job.derived.tokens_per_step
        yield Tile("Tokens", number(tokens), f"{number(job.derived.tokens_per_step)} a step")


def _beside(predicted: float | None, note: str) -> str:
    return f"{note}; expected {number(predicted)}" if predicted else note


def _charts(run: Run, rows: Rows, validation: Rows) -> Iterable[charts.Chart]:
    resumed_at = [float(a.step_from) for a in run.record.attempts[1:] if a.step_from]
    loss = [
        charts.Series("training", _points(rows, "loss")),
        charts.Series("validation", _points(validation, "loss"), dotted=True),
    ]
    wanted = [("Loss", loss)]
    wanted += [(title, [charts.Series(title, _points(rows, key))]) for key, title in PLOTTED]
    wanted = [(title, series) for title, series in wanted if any(one.points for one in series)]
    for index, (title, series) in enumerate(wanted):
        wide = index == 0 and len(wanted) % 2  # two in a row, and no gap
        chart = charts.draw(title, series, resumed_at, charts.WIDE if wide else charts.WIDTH)
        assert chart
        yield chart


def _points(rows: Rows, key: str) -> list[tuple[float, float]]:
    """(step, value) in ascending steps; of a step written twice, the later row."""
    points = {row["step"]: value for row in rows if (value := figure(row, key)) is not None}
    return sorted(points.items())


def _seconds(attempt: Attempt) -> float | None:
    ended = attempt.ended or (now() if is_alive(attempt) else "")
    return span_seconds(attempt.started, ended)


def _attempt_row(run: Run, attempt: Attempt) -> AttemptRow:
    ended: RankExit | None = read_exit(run.layout.exit(attempt.number))
    outcome = attempt.outcome
    if outcome == "running" and not is_alive(attempt):
        outcome = "lost"
    end = attempt.step_to if attempt.outcome != "running" else ""
    return AttemptRow(
        number=attempt.number,
        started=local_time(attempt.started),
        took=duration(_seconds(attempt)),
        steps=f"{attempt.step_from} to {end}" if end != "" else f"from {attempt.step_from}",
        outcome=outcome,
        tone=TONES[outcome],
        cause=attempt.cause,
        traceback=ended.traceback if ended and attempt.outcome == "failed" else "",
    )


def _facts(run: Run, job: Job | None) -> Iterable[Facts]:
    record = run.record
    what = [
        ("recipe", record.recipe),
        ("digest", record.digest[:16]),
        ("plan", record.plan),
        ("command", shlex.join(record.command)),
    ]
    if job:
        derived = job.derived
        mesh = ("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep")
        degrees = [f"{axis} {n}" for axis in mesh if (n := getattr(derived, axis)) > 1]
        what += [
            ("parameters", f"{derived.num_params:,}"),
            ("mesh", ", ".join(degrees) or "1 rank"),
            ("batch", f"{derived.global_batch_size:,} x {job.training.seq_len:,} tokens"),
            ("overrides", "\n".join(job.origin.overrides) or "none"),
        ]
    hosts = dict.fromkeys(attempt.host for attempt in record.attempts)
    where = [
        ("scheduler", record.scheduler),
        ("cluster", record.cluster or "none"),
        ("host", ", ".join(hosts) or UNKNOWN),
        ("handle", record.handle or UNKNOWN),
        ("image", record.image or "none"),
    ]
    if job:
        where.insert(2, ("hardware", f"{job.plan.nodes} x {job.plan.gpus_per_node} {job.plan.gpu}"))
    yield Facts("What", tuple(what))
    yield Facts("Where", tuple(where))
    yield Facts("Versions", (("git", record.git_revision or "none"), *record.versions.items()))


def _settings(run: Run) -> str:
    """job.toml, of [env] only the names: the page is mailed, their values are the site's."""
    try:
        data = loads(run.layout.job.read_text(encoding="utf-8"))
    except OSError as error:
        return f"{run.layout.job}: {error.strerror}"
    except ValueError as error:
        return f"{run.layout.job}: not TOML: {error}"
    if env := data.pop("env", None):
        data["env"] = sorted(env)
    return tomli_w.dumps(data)
