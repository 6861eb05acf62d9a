"""One simulated rank, from the import of torch to its report."""

import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout
from titan_recipes.errors import TitanRecipesError

if TYPE_CHECKING:
    from titan_recipes.trainer.simulate.report import RankReport


def simulate_rank(job: Job, rank: int, *, traceback: bool) -> "RankReport":
    """Build one rank and measure its steps. Call it once in a process.

    Raises TitanRecipesError where the job can't be built or run; with `traceback` torch's own.
    """
    started = time.monotonic()

    def say(line: str) -> None:
        seconds = time.monotonic() - started
        head = f"rank {rank} of {job.derived.world_size}"
        print(f"{head}: {line} ({seconds:.0f} s)", file=sys.stderr, flush=True)

    say("importing torch")
    from titan_recipes.trainer.simulate.fake_world import fake_world
    from titan_recipes.trainer.simulate.measure import BlankData, measurable, measure
    from titan_recipes.trainer.simulate.report import RankReport, place_of

    # Of kernels that would be slow, of streams that are not there: not about the job.
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    job = measurable(job)
    try:
        with tempfile.TemporaryDirectory() as scratch, fake_world(job, rank) as world:
            measured = measure(job, RunLayout(Path(scratch)), world, BlankData(job), say)
            return RankReport(rank, place_of(world), measured, time.monotonic() - started)
    except Exception as error:
        if traceback or isinstance(error, TitanRecipesError):
            raise
        what = f"{type(error).__name__}: {cause_of(error)}"
        where = f"rank {rank} of {job.derived.world_size}"
        raise TitanRecipesError(f"{where} can't train: {what}; --traceback says where") from error


def cause_of(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or ["without a word"])[0]
