"""Run directories as a launch and its node entry point leave them, without running anything."""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import exp
from pathlib import Path
from typing import Any

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.job import Job, to_toml
from titan_recipes.config.layout import METRICS_MARK, RunLayout
from titan_recipes.config.resolve import resolve
from titan_recipes.launch.record import (
    Attempt,
    new_record,
    process_start,
    remember_outputs,
    write_record,
)
from titan_recipes.launch.runs import Run, open_run

EPOCH = datetime(2025, 11, 21, 9, 0, tzinfo=UTC)


def debug_job(*overrides: str) -> Job:
    """llama3_debug on two CPU ranks, 4 sequences of 512 tokens a step."""
    bundle = find_bundle("llama3_debug")
    batch = ("local_batch_size=2", "global_batch_size=4", "seq_len=512")
    return resolve(
        bundle.layers("cpu2"),
        digest=bundle.digest(),
        bundle="",
        plan="cpu2",
        overrides=["plan.gpu='cpu'", *(f"training.{one}" for one in batch), *overrides],
    ).job


def row(step: int, **changed: Any) -> dict[str, Any]:
    """A row of metrics.jsonl."""
    return {
        "step": step,
        "loss": 2.0 + 5.6 * exp(-step / 40),
        "grad_norm": 1.0 + 3.0 / step,
        "lr": 2e-3 * min(1.0, step / 20),
        "tokens_per_second": 3000.0,
        "mfu": None,
        "memory_gib": 0.75,
        "time": EPOCH.timestamp() + step,
        **changed,
    }


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write metrics.jsonl or validation.jsonl."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def commit_checkpoint(layout: RunLayout, step: int) -> Path:
    """A checkpoint that counts as committed."""
    path = layout.root / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text("{}")
    return path


def attempt(number: int = 1, **changed: Any) -> Attempt:
    """An attempt that trained to the end, in a process long gone."""
    begun = EPOCH + timedelta(minutes=10 * number)
    fields: dict[str, Any] = {
        "started": begun.isoformat(timespec="seconds"),
        "ended": (begun + timedelta(minutes=5)).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "pid": 2**22 + 1,  # above the highest process id there is
        "pid_start": 1,
        "exit_code": 0,
        "outcome": "done",
        "step_to": 20,
        "final": True,
    }
    return Attempt(number=number, **{**fields, **changed})


def stopped(number: int = 1, **changed: Any) -> Attempt:
    """An attempt that was asked to stop."""
    return attempt(number, **{"outcome": "stopped", "cause": "asked to stop", **changed})


def failed(number: int = 1, **changed: Any) -> Attempt:
    """An attempt that a person has to look at."""
    cause = "rank 1: RuntimeError: boom, at step 7"
    fields = {"outcome": "failed", "exit_code": 1, "cause": cause, "rank": 1, "step_to": 0}
    return attempt(number, **{**fields, **changed})


def running(number: int = 1, pid: int | None = None) -> Attempt:
    """An attempt whose entry point is a live process: this one, unless another is given."""
    pid = pid or os.getpid()
    start = process_start(pid)
    assert start is not None
    fields = {"outcome": "running", "exit_code": -1, "ended": "", "final": False, "step_to": 0}
    return attempt(number, pid=pid, pid_start=start, **fields)


def make_run(
    outputs: Path,
    name: str,
    *attempts: Attempt,
    steps: int = 20,
    reached: int = 20,
    created: datetime = EPOCH,
    overrides: Sequence[str] = (),
) -> Run:
    """A run directory of `steps` steps of which `reached` are logged."""
    layout = RunLayout(outputs / name)
    layout.logs.mkdir(parents=True)
    job = debug_job(f"training.steps={steps}", *overrides)
    layout.job.write_text(to_toml(job))
    record = new_record(
        job, name=name, scheduler="local", handle=f"titan_local://titan/{name}", command=("x",)
    )
    record = replace(record, created=created.isoformat(timespec="seconds"), attempts=attempts)
    write_record(layout, record)
    remember_outputs(outputs)
    rows = [row(step) for step in range(1, reached + 1)]
    if rows:
        write_rows(layout.metrics, rows)
    lines = [f"step {r['step']}/{steps}\n{METRICS_MARK}{json.dumps(r)}\n" for r in rows]
    layout.node_log(0).write_text("hello\n" + "".join(lines))
    return open_run(layout.root)
