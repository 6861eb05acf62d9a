"""Following a run to its end from a terminal.

What the run prints for people is shown as it is; on a terminal a progress line stands below it,
fed by the lines for programs in the same log. The run does not depend on who follows it: locally
the first Ctrl-C asks it to stop with a checkpoint and goes on following, the second only leaves;
a run in a queue is left at the first. SIGTERM does to a run of this machine what Ctrl-C does: in a
container, whoever follows is what the engine stops, and the run ends when it goes.
"""

import shlex
import signal
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from titan_recipes.config.job import Job
from titan_recipes.config.schema import Metrics
from titan_recipes.errors import EXIT_DONE
from titan_recipes.launch.attempts import EXIT_FAILED, NEVER_RETRIED, exit_code, saves
from titan_recipes.launch.kubernetes_mirror import mirrored
from titan_recipes.launch.kubernetes_submission import KUBERNETES_SCHEDULERS
from titan_recipes.launch.logs import POLL_SECONDS, Tail, metrics_of
from titan_recipes.launch.rows import figure
from titan_recipes.launch.run_state import AS_LAST_SEEN
from titan_recipes.launch.runs import Run, open_run
from titan_recipes.launch.state import SLURM_SCHEDULERS, RunState, run_status
from titan_recipes.launch.status import Status, eta_seconds, loss_of, next_commands, status_of
from titan_recipes.launch.text import command, duration, gib, number, progress, short_path

QUEUES = {
    **dict.fromkeys(SLURM_SCHEDULERS, "SLURM"),
    **dict.fromkeys(KUBERNETES_SCHEDULERS, "Kubernetes"),
}
"""A record's scheduler -> whose queue its runs wait in, and go on in by themselves."""
EXIT_LEFT = 130  # the shell's code for Ctrl-C: whoever followed left, the run goes on


class Interrupts:
    """Counts signals, Ctrl-C's first, instead of ending in the middle of something."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self.count = 0
        self.by_terminal = True
        """Whether the last one was Ctrl-C."""
        self._numbers = numbers

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.by_terminal = number == signal.SIGINT

    @contextmanager
    def caught(self) -> Generator[None]:
        """Count while inside; only the main thread may set signal handlers, others see none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in self._numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Screen:
    """Where lines and progress go: a bar below the lines on a terminal, lines only elsewhere."""

    def __init__(self, job: Job | None, console: Console) -> None:
        self._job = job
        self._console = console
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # what the words leave
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal or job is None,
            transient=True,
            expand=True,
        )
        total = job.training.steps if job else None
        self._task = self._progress.add_task("starting", total=total)

    def __enter__(self) -> "Screen":
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def line(self, text: str, style: str | None = None) -> None:
        """One line, exactly as it is."""
        self._console.print(
            text, style=style, markup=False, highlight=False, soft_wrap=True, emoji=False
        )

    def step(self, row: Mapping[str, Any]) -> None:
        """Move the bar to a logged step."""
        step = figure(row, "step")
        if self._job is not None and step is not None:
            text = describe(self._job, row)
            self._progress.update(self._task, completed=step, description=text)


def describe(job: Job, row: Mapping[str, Any]) -> str:
    """A logged step in words: loss, tokens/s (per device), memory, time left."""
    parts = [
        f"loss {number(figure(row, 'loss'))}",
        f"{number(figure(row, 'tokens_per_second'))} tokens/s",
        gib(figure(row, "memory_gib")),
        f"ETA {duration(eta_seconds(job, row))}",
    ]
    return "  ".join(parts)


def follow(run: Run, *, log_offset: int = 0, console: Console | None = None) -> int:
    """Follow a run to its end; the run's own exit code, or EXIT_LEFT where the user left.

    log_offset: bytes of the node log that were there before this launch or resume.
    """
    layout = run.layout
    tail = Tail(layout.node_log(0), offset=log_offset)
    is_queued = run.record.scheduler in QUEUES
    ends_by = (signal.SIGINT,) if is_queued else (signal.SIGINT, signal.SIGTERM)
    interrupts, answered, waits, unseen = Interrupts(*ends_by), 0, "", set[str]()
    console = console or Console(file=sys.stdout)
    job = run.job()
    with interrupts.caught(), mirrored(layout), Screen(job, console) as screen:
        while True:
            status = run_status(layout)  # asked before the last look at the log
            ended = status.state.is_final
            if status.cause.startswith(AS_LAST_SEEN):
                if status.cause not in unseen:
                    unseen.add(status.cause)
                    screen.line(status.cause)
            elif is_queued and status.state is RunState.PENDING and status.cause != waits:
                waits = status.cause
                screen.line(
                    f"waiting: {waits}" if waits else f"waiting for {QUEUES[run.record.scheduler]}"
                )
            for line in tail.rest() if ended else tail.lines():
                if (row := metrics_of(line)) is None:
                    screen.line(line)
                else:
                    screen.step(row)
            if ended:
                break
            if interrupts.count > answered:
                answered += 1
                if answered > 1 or is_queued:
                    going = "" if is_queued else f" {_stopping(job)}"
                    screen.line(f"left; {run.name} goes on{going}", "bold")
                    for line in next_commands(run.word, status.state, resumes=False):
                        screen.line(f"  {line}")
                    return EXIT_LEFT
                try:
                    layout.stop.touch()
                    words = _stopping(job)
                except OSError as error:  # somebody else's run
                    words = f"not yours to stop: {error.strerror}"
                again = "Ctrl-C again" if interrupts.by_terminal else "another SIGTERM"
                screen.line(f"{words}; {again} leaves it to itself", "bold")
            time.sleep(POLL_SECONDS)
    ended_run = open_run(layout.root)
    tell_end(ended_run, screen)
    code = exit_code(ended_run.record.attempts)
    return EXIT_FAILED if status.state is RunState.FAILED and code == EXIT_DONE else code


def _stopping(job: Job | None) -> str:
    return "stopping with a checkpoint" if job is None or saves(job) else "stopping, saving nothing"


def tell_end(run: Run, screen: Screen) -> None:
    """Say how the run ended, where everything is, and what to type next."""
    status, job, layout = status_of(run), run.job(), run.layout
    style = {"SUCCEEDED": "bold green", "FAILED": "bold red"}.get(status.state, "bold")
    screen.line("")
    attempts = run.record.attempts
    told = attempts and attempts[-1].exit_code in NEVER_RETRIED  # its `error:` is the line before
    screen.line(f"{run.name} {end_of(replace(status, cause='') if told else status)}", style)
    places = {"checkpoint": Path(status.checkpoint) if status.checkpoint else None}
    places["logs"] = layout.logs
    commands = list(status.next)
    board = layout.root / (job.metrics if job else Metrics()).save_tb_folder
    if board.is_dir():
        places["TensorBoard"] = board
        commands.append(command("tensorboard", f"--logdir {shlex.quote(short_path(board))}"))
    for name, path in places.items():
        screen.line(f"  {name:<13}{short_path(path) if path else 'none'}")
    screen.line("")
    for line in commands:
        screen.line(f"  {line}")


def end_of(status: Status) -> str:
    """How a run ended, in one line."""
    parts = [f"{status.state} at step {progress(status.step, status.total_steps)}"]
    if status.loss is not None:
        parts.append(f"loss {loss_of(status)}")
    return ", ".join(parts) + (f": {status.cause}" if status.cause else "")
