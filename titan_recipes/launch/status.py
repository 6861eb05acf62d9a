"""What a run is doing, as one value: for `runs`, `status`, the progress bar and the report.

State and cause come from the run record; progress from the last row of metrics.jsonl, so asking
costs the same however long the run is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout
from titan_recipes.config.schema import Checkpoint
from titan_recipes.launch.attempts import (
    NEVER_RETRIED,
    failures_in_a_row,
    lost_checkpoint,
    newest_checkpoint,
    saves,
)
from titan_recipes.launch.kubernetes_submission import is_mirror, submitted
from titan_recipes.launch.record import Attempt, read_record
from titan_recipes.launch.rows import figure, last_row
from titan_recipes.launch.runs import Run
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.launch.text import command, number


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A run at one moment. None = unknown; the field names are the keys of `--json`."""

    run: str
    path: str
    recipe: str
    plan: str
    scheduler: str
    state: str
    """PENDING, RUNNING, SUCCEEDED, STOPPED or FAILED."""
    cause: str
    """Why it stopped, failed or retries, in one line; "" = nothing to say."""
    job: dict[str, Any] | None
    """Its job in SLURM's queue, where SLURM was asked: id, state, reason, elapsed, start, nodes."""
    attempt: int
    """Number of the last attempt; 0 = none has started."""
    failures_in_a_row: int
    """Failures since the last new checkpoint; past max_restarts the run is given up."""
    max_restarts: int | None
    step: int | None
    """The last one logged or saved."""
    total_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    """Per device."""
    memory_gib: float | None
    logged_step: int | None
    """The step that loss, tokens_per_second and memory_gib are of; at most `step`."""
    eta_seconds: float | None
    """Time to the last step at the present speed; None where the run is not running."""
    checkpoint: str
    """Directory of the newest checkpoint; "" = none."""
    created: str
    started: str
    """When the first attempt started; "" = none has."""
    ended: str
    """When the run ended; "" = it has not."""
    age_seconds: float
    """Since it was created."""
    failures: tuple[dict[str, Any], ...]
    """Attempts that failed, oldest first: attempt, exit_code, rank, cause."""
    next: tuple[str, ...]
    """Commands worth typing now, the most useful first."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def eta_seconds(job: Job, row: Mapping[str, Any]) -> float | None:
    """Time from this row's step to the last one, at this row's speed."""
    step, rate = figure(row, "step"), figure(row, "tokens_per_second")
    if step is None or not rate:
        return None
    tokens = (job.training.steps - step) * job.derived.tokens_per_step
    return max(0.0, tokens / (rate * job.derived.world_size))


def loss_of(status: Status) -> str:
    """The last loss that was logged, with its step where the run came further."""
    text = number(status.loss)
    return text if status.logged_step == status.step else f"{text} at step {status.logged_step}"


def checkpoint_folder(layout: RunLayout, job: Job | None) -> Path:
    """Where the run's checkpoints are; of a run that only its pods see, as they see it."""
    where = submitted(layout) if is_mirror(layout) else None
    root = Path(where.run_dir) if where else layout.root
    return root / (job.checkpoint if job else Checkpoint()).folder


def sees_checkpoints(layout: RunLayout) -> bool:
    """Whether the run's checkpoints are looked for here, and not only in its pods."""
    return not is_mirror(layout)


def saved_step(layout: RunLayout, attempts: Sequence[Attempt], job: Job | None) -> int:
    """Step of the newest checkpoint, as its folder or, from afar, the attempts say; 0 = none."""
    if sees_checkpoints(layout):
        return newest_checkpoint(checkpoint_folder(layout, job))
    return max((attempt.step_to for attempt in attempts), default=0)


def status_of(run: Run) -> Status:
    """Look at a run."""
    job, record, layout = run.job(), run.record, run.layout
    now = run_status(layout, record)
    record = read_record(layout)  # of pods, asking has brought news
    row = last_row(layout.metrics)
    attempts = record.attempts
    folder, saved = checkpoint_folder(layout, job), saved_step(layout, attempts, job)
    logged = int(figure(row, "step") or 0)
    reached = max(saved, logged)
    age = datetime.now(UTC) - datetime.fromisoformat(record.created)
    return Status(
        run=run.name,
        path=str(layout.root),
        recipe=record.recipe,
        plan=record.plan,
        scheduler=record.scheduler,
        state=now.state.value,
        cause=now.cause,
        job=asdict(now.job) if now.job else None,
        attempt=attempts[-1].number if attempts else 0,
        failures_in_a_row=failures_in_a_row(attempts),
        max_restarts=job.fault_tolerance.max_restarts if job else None,
        step=reached or None,
        total_steps=job.training.steps if job else None,
        loss=figure(row, "loss"),
        tokens_per_second=figure(row, "tokens_per_second"),
        memory_gib=figure(row, "memory_gib"),
        logged_step=logged or None,
        eta_seconds=eta_seconds(job, row) if job and now.state is RunState.RUNNING else None,
        checkpoint=str(folder / f"step-{saved:08d}") if saved else "",
        created=record.created,
        started=attempts[0].started if attempts else "",
        ended=attempts[-1].ended if attempts and now.state.is_final else "",
        age_seconds=age.total_seconds(),
        failures=tuple(_failure(attempt) for attempt in attempts if attempt.outcome == "failed"),
        next=next_commands(run.word, now.state, resumes=_resumes(layout, attempts, job)),
    )


def _failure(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempt": attempt.number,
        "exit_code": attempt.exit_code,
        "rank": attempt.rank,
        "cause": attempt.cause,
    }


def _resumes(layout: RunLayout, attempts: Sequence[Attempt], job: Job | None) -> bool:
    """Whether an ended run goes on if `resume` is typed now, with nothing mended before."""
    if attempts and attempts[-1].exit_code in NEVER_RETRIED:
        return False
    if sees_checkpoints(layout) and lost_checkpoint(attempts, checkpoint_folder(layout, job)):
        return False
    return job is not None and (saves(job) or saved_step(layout, attempts, job) > 0)


def next_commands(word: str, state: RunState, *, resumes: bool) -> tuple[str, ...]:
    """What is worth typing about a run in this state, the most useful first. word: `Run.word`."""
    verbs = {
        RunState.PENDING: ("logs -f", "cancel"),
        RunState.RUNNING: ("logs -f", "cancel"),
        RunState.STOPPED: ("resume", "report"),
        RunState.SUCCEEDED: ("report",),
        RunState.FAILED: ("logs", "resume", "report"),
    }
    return tuple(
        command("titan-recipes", f"{verb} {word}")
        for verb in verbs[state]
        if resumes or verb != "resume"
    )
