"""SLURM's words for a length of time."""

import math
import re

UNSET = ("", "(null)", "N/A", "NONE", "None", "n/a")
"""What SLURM prints where there is nothing."""


def limit_seconds(text: str) -> float:
    """A time limit as SLURM prints or takes it, in seconds; without one: infinite.

    "90" is minutes; "30:00" minutes and seconds; "2:00:00"; "1-12" days and hours; "1-12:30:00".
    Raises ValueError for anything else.
    """
    if text in UNSET or text.upper() in ("UNLIMITED", "INFINITE", "-1"):
        return math.inf
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise ValueError(f"{text!r} is not a time of SLURM's")
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # from the hours on
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = ((0, *parts, 0), (0, *parts), tuple(parts))[len(parts) - 1]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def slurm_time(seconds: float) -> str:
    """A time limit as SLURM takes it: "1-00:00:00", "04:00:00", "UNLIMITED"."""
    if seconds == math.inf:
        return "UNLIMITED"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hours:02d}:{minutes:02d}:{rest:02d}"
