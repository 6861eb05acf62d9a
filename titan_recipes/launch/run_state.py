"""The states of a run, and what its record and its stop file say of them under any scheduler."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from titan_recipes.config.layout import RunLayout
from titan_recipes.launch.record import RunRecord, read_record
from titan_recipes.launch.slurm_queue import QueuedJob

START_TIMEOUT_SECONDS = 60.0
AS_LAST_SEEN = "as last seen"
"""What the cause begins with of a run whose scheduler does not answer."""
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
    """Its job in the scheduler's queue, where that was asked and knows it."""


Ask = Callable[[RunLayout, RunRecord], RunStatus]
"""What finds out how a run of one scheduler stands."""


def recorded(record: RunRecord) -> RunStatus | None:
    """The state of a run that has ended for good, as far as its record tells."""
    last = record.attempts[-1] if record.attempts else None
    if last and last.outcome == "done":
        return RunStatus(RunState.SUCCEEDED)
    if last and last.final:
        state = RunState.STOPPED if last.outcome == "stopped" else RunState.FAILED
        return RunStatus(state, last.cause)
    return None


def running(layout: RunLayout, record: RunRecord) -> RunStatus:
    """Of a run whose node entry point is at work."""
    if layout.stop.exists():
        return RunStatus(RunState.RUNNING, STOPPING)
    cause = record.attempts[-1].cause
    return RunStatus(RunState.RUNNING, f"retrying after: {cause}" if cause else "")


def unanswered(record: RunRecord, why: str) -> RunStatus:
    """Of a run whose scheduler can't be asked: as the record has it."""
    last = record.attempts[-1] if record.attempts else None
    is_running = last is not None and last.outcome == "running"
    return RunStatus(RunState.RUNNING if is_running else RunState.PENDING, f"{AS_LAST_SEEN}: {why}")


def or_changed(
    layout: RunLayout, before: RunRecord, ask: Ask, lost: Callable[[], RunStatus]
) -> RunStatus:
    """`lost`, unless the record changed since it was read: who ends writes that down, then goes."""
    record = read_record(layout)
    return ask(layout, record) if record.attempts != before.attempts else lost()


def age_seconds(record: RunRecord) -> float:
    """Since the run was launched."""
    return (datetime.now(UTC) - datetime.fromisoformat(record.created)).total_seconds()
