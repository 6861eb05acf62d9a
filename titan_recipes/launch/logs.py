"""A run's log: the lines for people, from one shell or many, while it is still being written.

The node log holds what the node entry point and rank 0 print, across all attempts, so following a
run is following one growing file. Lines that start with METRICS_MARK are for programs and hidden.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from titan_recipes.config.layout import METRICS_MARK, RunLayout
from titan_recipes.errors import LaunchError

POLL_SECONDS = 0.1


class Tail:
    """The lines appended to a file since the last look; a file that is not there yet is empty.

    offset: bytes at its start that are left out.
    """

    def __init__(self, path: Path, *, offset: int = 0) -> None:
        self._path = path
        self._offset = offset
        self._torn = b""

    def lines(self) -> list[str]:
        """Every line completed since the last call, without its newline."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *whole, self._torn = (self._torn + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]

    def rest(self) -> list[str]:
        """What is left once nobody writes any more: new lines, and a last one without newline."""
        lines = self.lines()
        torn, self._torn = self._torn, b""
        return [*lines, torn.decode("utf-8", "replace")] if torn else lines


def metrics_of(line: str) -> dict[str, Any] | None:
    """The logged step that a console line carries for programs; None for any other line."""
    if not line.startswith(METRICS_MARK):
        return None
    try:
        data: object = json.loads(line.removeprefix(METRICS_MARK))
    except json.JSONDecodeError:
        return {}  # torn by a kill: still nothing to show
    return cast(dict[str, Any], data) if isinstance(data, dict) else {}


def log_path(layout: RunLayout, *, rank: int | None = None, node: int | None = None) -> Path:
    """A rank's raw log, a node's log, or what people want first: node 0's.

    Where node 0 never started, SLURM's last log says why. Raises LaunchError where there is no log.
    """
    if rank is not None:
        return _existing(layout, "rank", rank)
    if node is not None:
        return _existing(layout, "node", node)
    log = layout.node_log(0)
    of_slurm = sorted(layout.logs.glob("slurm-*.log"), key=lambda path: path.stat().st_mtime)
    return of_slurm[-1] if of_slurm and not log.exists() else log


def _existing(layout: RunLayout, kind: str, number: int) -> Path:
    path = layout.logs / f"{kind}-{number}.log"
    if not path.exists():
        found = [p.stem.removeprefix(f"{kind}-") for p in layout.logs.glob(f"{kind}-*.log")]
        listed = ", ".join(sorted(found, key=int))
        there = f"there are {kind}s {listed}" if found else f"no {kind} has started"
        raise LaunchError(f"{layout.root.name}: --{kind} {number}: no log of it; {there}")
    return path


def pattern_of(text: str) -> re.Pattern[str]:
    """Compile what `--grep` got. Raises LaunchError."""
    try:
        return re.compile(text)
    except re.error as error:
        raise LaunchError(f"--grep {text}: not a regular expression: {error}") from error


def log_lines(
    layout: RunLayout,
    *,
    rank: int | None = None,
    node: int | None = None,
    grep: str = "",
    running: Callable[[], bool] | None = None,
) -> Iterator[str]:
    """The lines for people; with `running`, also those still to come until it is false.

    grep: a regular expression that a shown line matches somewhere. Raises LaunchError.
    """
    pattern = pattern_of(grep)
    tail = Tail(log_path(layout, rank=rank, node=node))

    def shown(lines: list[str]) -> Iterator[str]:
        return (line for line in lines if metrics_of(line) is None and pattern.search(line))

    while running is not None and running():  # asked before reading, so no last line is lost
        yield from shown(tail.lines())
        time.sleep(POLL_SECONDS)
    yield from shown(tail.rest())
