"""What an attempt achieved, and whether another one follows.

A failure counts only if its attempt committed no new checkpoint; one that did resets the count, and
so does a person who resumes. A stop is never a failure. The count is read from run.json, so a run
that SLURM or Kubernetes restarted on their own goes on counting.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from titan_recipes.config.job import Job
from titan_recipes.config.layout import RankExit
from titan_recipes.errors import EXIT_DONE, EXIT_FAULT, EXIT_USER, LaunchError
from titan_recipes.launch.record import Attempt, Outcome
from titan_recipes.launch.rows import figure

EXIT_FAILED = 1  # what a failure worth retrying ends in
NEVER_RETRIED = (EXIT_USER, EXIT_FAULT)
MOST_STOPS = 5  # in a row without a step: the time that each start has is too short
WARMUP_ROWS = 1  # the first logged step of an attempt times compilation and first allocations


def newest_checkpoint(folder: Path) -> int:
    """Step of the newest committed checkpoint in a folder; 0 = none.

    A checkpoint is committed once it stands under its own name with its manifest.
    """
    committed = [path.parent.name for path in folder.glob("step-*/manifest.json")]
    steps = [int(name.removeprefix("step-")) for name in committed if name[5:].isdecimal()]
    return max(steps, default=0)


def saves(job: Job) -> bool:
    """Whether a run of this job leaves checkpoints, and so can go on after it ended."""
    return job.checkpoint.enable and not job.checkpoint.load_only


def lost_checkpoint(attempts: Sequence[Attempt], folder: Path) -> int:
    """Step of the newest checkpoint an attempt left, where the folder has none any more; else 0."""
    left = max((attempt.step_to for attempt in attempts), default=0)
    return 0 if newest_checkpoint(folder) else left


def check_kept(run_dir: Path, attempts: Sequence[Attempt], folder: Path) -> None:
    """Raises LaunchError where the checkpoints of a run are gone.

    Another attempt would train from step 0 again, and cut the rows of metrics.jsonl.
    """
    if lost := lost_checkpoint(attempts, folder):
        cure = f"put it back into {folder}, or launch a new run"
        raise LaunchError(f"{run_dir.name}: the checkpoint of step {lost} is gone; {cure}")


def failures_in_a_row(attempts: Sequence[Attempt]) -> int:
    """Failures since the last new checkpoint or `resume`, oldest attempt first."""
    return _in_a_row("failed", attempts)


def stops_in_a_row(attempts: Sequence[Attempt]) -> int:
    """Stops since the last new checkpoint or `resume`, oldest attempt first."""
    return _in_a_row("stopped", attempts)


def _in_a_row(outcome: Outcome, attempts: Sequence[Attempt]) -> int:
    count = 0
    for attempt in attempts:
        if attempt.resumed:
            count = 0
        if attempt.step_to > attempt.step_from:
            count = 0
        elif attempt.outcome == outcome:
            count += 1
    return count


def is_retried(attempts: Sequence[Attempt], max_restarts: int) -> bool:
    """Whether the last attempt, a failed one, is followed by another."""
    last = attempts[-1]
    return last.exit_code not in NEVER_RETRIED and failures_in_a_row(attempts) <= max_restarts


def exit_code(attempts: Sequence[Attempt]) -> int:
    """The exit code of a run that ended with the last attempt; EXIT_FAILED where it had none."""
    if attempts and attempts[-1].outcome in ("done", "stopped"):
        return EXIT_DONE
    code = attempts[-1].exit_code if attempts else EXIT_FAILED
    return code if code in NEVER_RETRIED else EXIT_FAILED


def verdict(
    attempts: Sequence[Attempt], max_restarts: int, *, by_person: bool
) -> tuple[int, str] | None:
    """(exit code, words) where a scheduler restarted a run that needs no further attempt.

    by_person: the run was asked to stop by `cancel`.
    """
    if not attempts:
        return None
    last = attempts[-1]
    if by_person:
        return EXIT_DONE, "stopped by `cancel`; go on with: titan-recipes resume"
    if last.outcome == "done":
        return EXIT_DONE, "trained to its last step already"
    if last.outcome == "failed" and last.exit_code in NEVER_RETRIED:
        return last.exit_code, f"not retried: {last.cause}; mend it, then: titan-recipes resume"
    if failures_in_a_row(attempts) > max_restarts:
        return EXIT_FAILED, f"given up: {last.cause}; go on with: titan-recipes resume"
    return None


def ending(attempts: Sequence[Attempt], why: RankExit | None, *, nodes: int) -> Iterator[str]:
    """Lines that say how the last attempt ended, first cause first, where it did not succeed."""
    last = attempts[-1]
    if last.outcome == "done" or why is None:
        return
    if last.exit_code in NEVER_RETRIED:  # told in its own words; logs/rank-*.log has the rest
        yield f"error: {last.cause}"
        return
    yield f"attempt {last.number} {last.outcome}: {last.cause}"
    if last.outcome == "stopped":
        return
    yield why.traceback
    if last.final:
        count = failures_in_a_row(attempts)
        yield f"giving up: {count} failures in a row without a new checkpoint"
    elif nodes == 1:
        where = f"from step {last.step_to}" if last.step_to else "from the start"
        yield f"starting again {where}"


def measured(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the rows of one attempt reached, under the names of the plan's [expect]."""
    found = dict[str, float]()
    rates = [rate for row in rows if (rate := figure(row, "tokens_per_second"))]
    if rates:
        found["tokens_per_second_per_gpu"] = median(rates[WARMUP_ROWS:] or rates)
    if peaks := [gib for row in rows if (gib := figure(row, "memory_gib"))]:
        found["peak_memory_gib"] = max(peaks)
    return found
