"""How numbers, times and paths read to people: in tables, the progress line and the report."""

import os
import shlex
import shutil
import sys
from datetime import datetime
from pathlib import Path

UNKNOWN = "-"


def command(program: str, words: str) -> str:
    """A command line that works in this shell: with a path where the program's name alone does not.

    program: one that is installed beside this Python; words: its arguments, quoted.
    """
    own = Path(sys.executable).parent / program
    found = shutil.which(program)
    if own.exists() and not (found and os.path.samefile(found, own)):
        program = shlex.quote(short_path(own))
    return f"{program} {words}"


def number(value: float | None, digits: int = 4) -> str:
    """That many significant digits, with K, M, G, T for large ones: 18432 -> "18.43K"."""
    if value is None:
        return UNKNOWN
    for limit, unit, suffix in (
        (1e12, 1e12, "T"),
        (1e9, 1e9, "G"),
        (1e6, 1e6, "M"),
        (1e4, 1e3, "K"),
    ):
        if abs(value) >= limit:
            return f"{value / unit:.{digits}g}{suffix}"
    return f"{value:.{digits}g}"


def progress(step: int | None, total: int | None) -> str:
    """Steps done of all: "120/400"; "-" where neither is known."""
    if step is None and total is None:
        return UNKNOWN
    return f"{step or 0}/{UNKNOWN if total is None else total}"


def duration(seconds: float | None) -> str:
    """A time span in its two largest units: "45 s", "2 min 05 s", "1 h 02 min", "3 d 04 h"."""
    if seconds is None:
        return UNKNOWN
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    for size, large, unit, small in ((60, "min", 1, "s"), (3600, "h", 60, "min")):
        if whole < size * (60 if size == 60 else 24):
            return f"{whole // size} {large} {whole % size // unit:02d} {small}"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def span_seconds(start: str, end: str) -> float | None:
    """Seconds between two times of run.json; None where one of them is ""."""
    if not start or not end:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def local_time(moment: str) -> str:
    """A time of run.json in this machine's time zone: "2026-11-21 03:14"; "-" for ""."""
    if not moment:
        return UNKNOWN
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")


def short_path(path: Path) -> str:
    """The path relative to the working directory where it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else os.fspath(path)


def gib(value: float | None) -> str:
    """Memory: "0.445 GiB"."""
    return f"{number(value, digits=3)} GiB"
