"""How a run under SLURM stands: its record, and its job in the queue.

The submission leaves the job's id in the run directory (`slurm_job`): a record that says "running"
or "stopped" says nothing of a job that waits in the queue again, nor of one that was lost with its
nodes. SLURM is asked only where the answer matters: not about runs that have ended for good.
"""

import re
from dataclasses import replace
from pathlib import Path

from titan_recipes.config.layout import RunLayout
from titan_recipes.errors import LaunchError
from titan_recipes.launch.logs import Tail
from titan_recipes.launch.record import RunRecord
from titan_recipes.launch.run_state import (
    START_TIMEOUT_SECONDS,
    RunState,
    RunStatus,
    age_seconds,
    or_changed,
    recorded,
    running,
    unanswered,
)
from titan_recipes.launch.slurm_queue import QueuedJob, find_job
from titan_recipes.launch.stop import is_persons

CANCELLED = re.compile(r"CANCELLED AT \S+ \*\*\*")  # and not DUE TO anything
TASK_EXITED = re.compile(r"^srun: error: .*: Exited with exit code|^srun: Terminating")
SLURM_SCHEDULERS = ("slurm", "titan_slurm")
"""What a record calls SLURM: `launch` and torchx do not say the same."""


def slurm_job(layout: RunLayout, record: RunRecord) -> str:
    """Id of the job that runs it, or did last; "" = none was submitted yet."""
    try:
        return layout.slurm_job.read_text(encoding="utf-8").strip()
    except FileNotFoundError:  # somebody else's sbatch: the node entry point wrote down which job
        return record.handle.rpartition("/")[2]


def in_slurm(layout: RunLayout, record: RunRecord) -> RunStatus:
    job_id = slurm_job(layout, record)
    ended = recorded(record)
    # A job that the record knows nothing of is one that `resume` submitted.
    if ended and record.handle.endswith(f"/{job_id}"):
        return ended
    if not job_id:
        if age_seconds(record) < START_TIMEOUT_SECONDS:
            return RunStatus(RunState.PENDING)
        return RunStatus(RunState.FAILED, "lost: it was never submitted")
    try:
        job = find_job(job_id)
    except LaunchError as error:
        return unanswered(record, str(error))
    if job is None or job.has_ended:
        return or_changed(layout, record, in_slurm, lambda: _gone(layout, record, job_id, job))
    return replace(_queued(layout, record, job), job=job)


def _queued(layout: RunLayout, record: RunRecord, job: QueuedJob) -> RunStatus:
    """Of a run whose job waits or runs."""
    last = record.attempts[-1] if record.attempts else None
    if job.state in ("PENDING", "REQUEUED", "SPECIAL_EXIT"):
        again = f"after: {last.cause}" if last and last.cause and not last.final else ""
        return RunStatus(RunState.PENDING, "; ".join(filter(None, (job.reason, again))))
    if job.state not in ("RUNNING", "COMPLETING") or last is None:
        return RunStatus(RunState.PENDING, "starting")
    if last.outcome == "stopped":
        return RunStatus(RunState.PENDING, f"{last.cause}; it starts again by itself")
    return running(layout, record)


def _gone(layout: RunLayout, record: RunRecord, job_id: str, job: QueuedJob | None) -> RunStatus:
    """Of a run that should have a job."""
    last = record.attempts[-1] if record.attempts else None
    what = f"SLURM job {job_id} ended as {job.state}" if job else f"SLURM has no job {job_id} now"
    log = layout.slurm_log(job_id)
    if job is None:  # forgotten: its log is left
        lines = Tail(log).rest()
        cancelled = any(map(CANCELLED.search, lines)) if lines else last is None
    else:
        cancelled = job.state == "CANCELLED"
    if cancelled or is_persons(layout):
        if ended := recorded(record):
            return ended
        if last is None:
            why = f": {job.reason}" if job and job.reason.startswith("Dependency") else ""
            return RunStatus(RunState.STOPPED, f"cancelled before it started{why}")
        return RunStatus(RunState.STOPPED, last.cause if last.outcome == "stopped" else what)
    if last and last.outcome == "stopped" and (job is None or job.state == "COMPLETED"):
        return RunStatus(RunState.STOPPED, f"{last.cause}; {what}")
    if last and last.outcome == "failed":
        what += f"; before it: {last.cause}"
    elif said := _last_words(log):
        what += f": {said}"
    return RunStatus(RunState.FAILED, f"lost: {what}")


def _last_words(log: Path) -> str:
    """The last line that the batch script or srun wrote, but for srun's on how its tasks exited."""
    lines = (line.strip() for line in reversed(Tail(log).rest()))
    return next((line for line in lines if line and not TASK_EXITED.search(line)), "")
