"""Writing down how a run ended where its node entry point can't any more."""

from dataclasses import replace

from titan_recipes.launch.record import Attempt, now, write_record
from titan_recipes.launch.runs import Run, open_run
from titan_recipes.launch.status import saved_step


def closed(run: Run, cause: str) -> Run:
    """The run, its last attempt closed where nobody is left who could."""
    last = run.record.attempts[-1] if run.record.attempts else None
    return run if last is None or last.final else close(run, last, cause)


def close(run: Run, last: Attempt, cause: str) -> Run:
    """Write down the end of an attempt whose node entry point can't any more."""
    step = saved_step(run.layout, run.record.attempts, run.job())
    last = replace(last, outcome="stopped", cause=cause, ended=now(), step_to=step, final=True)
    write_record(run.layout, run.record.with_attempt(last))
    return open_run(run.layout.root)
