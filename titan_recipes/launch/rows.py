"""Reading metrics.jsonl and validation.jsonl while the trainer appends to them.

A line that a kill tore, and what is not a row, is skipped: reading never fails.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

TAIL_BYTES = 4096  # more than any row


def _rows(text: str) -> list[dict[str, Any]]:
    """The whole JSON objects among the lines; a torn or foreign line is skipped."""
    rows: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            row: object = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(cast(dict[str, Any], row).get("step"), int):
            rows.append(cast(dict[str, Any], row))
    return rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Every row of metrics.jsonl or validation.jsonl; [] where there is no such file yet."""
    try:
        return _rows(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return []


def last_row(path: Path) -> dict[str, Any]:
    """The last whole row of metrics.jsonl; {} where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            rows = _rows(file.read().decode("utf-8", "replace"))
    except FileNotFoundError:
        return {}
    return rows[-1] if rows else {}


def figure(row: Mapping[str, Any], key: str) -> float | None:
    """A finite number in a row; None where it is missing, null or something else."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
