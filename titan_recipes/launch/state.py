"""What a run is doing: from its record, the stop file, and what runs it.

Locally that is the node entry point's process. Under SLURM it is the job, whose id the submission
leaves in the run directory (`slurm_job`): a record that says "running" or "stopped" says nothing of
a job that waits in the queue again, nor of one that was lost with its nodes. SLURM is asked only
where the answer matters: not about runs that have ended for good.
"""

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from titan_recipes.config.layout import RunLayout
from titan_recipes.errors import LaunchError
from titan_recipes.launch.logs import Tail
from titan_recipes.launch.record import RUN_DIR_FLAG, RunRecord, is_alive, read_record
from titan_recipes.launch.slurm_queue import QueuedJob, find_job
from titan_recipes.launch.stop import is_persons
from titan_recipes.launch.torchrun import processes_with

START_TIMEOUT_SECONDS = 60.0
SUBMIT_SECONDS = 2.0  # from the record to the process, which the launcher starts right after
CANCELLED = re.compile(r"CANCELLED AT \S+ \*\*\*")  # and not DUE TO anything
TASK_EXITED = re.compile(r"^srun: error: .*: Exited with exit code|^srun: Terminating")
STOPPING = "asked to stop; saving a checkpoint"


class RunState(Enum):
    """What a run is doing."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"

    @property
    def is_final(self) -> bool:
        """Nothing more happens by itself."""
        return self not in (RunState.PENDING, RunState.RUNNING)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What a run is doing, and why in one line ("" where there is nothing to say)."""

    state: RunState
    cause: str = ""
    job: QueuedJob | None = None
    """Its job in SLURM's queue, where it was asked for and is known."""


def run_status(layout: RunLayout, record: RunRecord | None = None) -> RunStatus:
    """What the run is doing."""
    record = record or read_record(layout)
    is_queued = record.scheduler in SLURM_SCHEDULERS
    return _in_slurm(layout, record) if is_queued else _here(layout, record)


def _recorded(record: RunRecord) -> RunStatus | None:
    """The state of a run that has ended for good, as far as its record tells."""
    last = record.attempts[-1] if record.attempts else None
    if last and last.outcome == "done":
        return RunStatus(RunState.SUCCEEDED)
    if last and last.final:
        state = RunState.STOPPED if last.outcome == "stopped" else RunState.FAILED
        return RunStatus(state, last.cause)
    return None


def _running(layout: RunLayout, record: RunRecord) -> RunStatus:
    """Of a run whose node entry point is at work."""
    if layout.stop.exists():
        return RunStatus(RunState.RUNNING, STOPPING)
    cause = record.attempts[-1].cause
    return RunStatus(RunState.RUNNING, f"retrying after: {cause}" if cause else "")


def _or_changed(layout: RunLayout, before: RunRecord, lost: Callable[[], RunStatus]) -> RunStatus:
    """`lost`, unless the record changed since it was read: who ends writes that down, then goes."""
    record = read_record(layout)
    return run_status(layout, record) if record.attempts != before.attempts else lost()


# --- on this machine ------------------------------------------------------------------------------


def _here(layout: RunLayout, record: RunRecord) -> RunStatus:
    if not record.attempts:
        return _unstarted(layout, record)
    if ended := _recorded(record):
        return ended
    last = record.attempts[-1]
    if is_alive(last):
        return _running(layout, record)

    def lost() -> RunStatus:
        cause = f"lost: its process {last.pid} on {last.host} is gone without a word"
        cause += f"; before it: {last.cause}" if last.cause else ""
        return RunStatus(RunState.FAILED, cause)

    return _or_changed(layout, record, lost)


def _unstarted(layout: RunLayout, record: RunRecord) -> RunStatus:
    """A run without attempts: soon to start, or never started at all."""
    here = record.host == socket.gethostname()
    is_local = record.scheduler == "local"
    if not is_local or _age_seconds(record) < (SUBMIT_SECONDS if here else START_TIMEOUT_SECONDS):
        return RunStatus(RunState.PENDING)
    if here and processes_with(RUN_DIR_FLAG, str(layout.root)):
        return RunStatus(RunState.PENDING)
    cause = "lost: its process began no attempt; see logs/node-0.log"
    return _or_changed(layout, record, lambda: RunStatus(RunState.FAILED, cause))


def _age_seconds(record: RunRecord) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(record.created)).total_seconds()


# --- under SLURM ----------------------------------------------------------------------------------

SLURM_SCHEDULERS = ("slurm", "titan_slurm")
"""What a record calls SLURM: `launch` and torchx do not say the same."""


def slurm_job(layout: RunLayout, record: RunRecord) -> str:
    """Id of the job that runs it, or did last; "" = none was submitted yet."""
    try:
        return layout.slurm_job.read_text(encoding="utf-8").strip()
    except FileNotFoundError:  # somebody else's sbatch: the node entry point wrote down which job
        return record.handle.rpartition("/")[2]


def _in_slurm(layout: RunLayout, record: RunRecord) -> RunStatus:
    job_id = slurm_job(layout, record)
    ended = _recorded(record)
    # A job that the record knows nothing of is one that `resume` submitted.
    if ended and record.handle.endswith(f"/{job_id}"):
        return ended
    if not job_id:
        if _age_seconds(record) < START_TIMEOUT_SECONDS:
            return RunStatus(RunState.PENDING)
        return RunStatus(RunState.FAILED, "lost: it was never submitted")
    try:
        job = find_job(job_id)
    except LaunchError as error:
        return _unanswered(record, str(error))
    if job is None or job.has_ended:
        return _or_changed(layout, record, lambda: _gone(layout, record, job_id, job))
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
    return _running(layout, record)


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
        if ended := _recorded(record):
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


def _unanswered(record: RunRecord, why: str) -> RunStatus:
    """Of a run that can't be asked for: as the record has it."""
    last = record.attempts[-1] if record.attempts else None
    is_running = last is not None and last.outcome == "running"
    return RunStatus(RunState.RUNNING if is_running else RunState.PENDING, f"as last seen: {why}")
