"""`python -m titan_recipes.trainer.simulate`: ranks of a job, simulated one after the other.

Progress goes to stderr, the answer to stdout. Exit codes: 0 done, whether it fits or not; 2 the
job, or the ranks asked for, can't be.
"""

import argparse
import functools
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from titan_recipes.config.job import Job, decode
from titan_recipes.errors import EXIT_DONE, ConfigError, Problem, TitanRecipesError
from titan_recipes.trainer.simulate.rank import simulate_rank
from titan_recipes.trainer.verb import tell


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="titan-recipes simulate")
    parser.add_argument("--job", required=True, help="as titan_recipes.config.job.encode writes it")
    parser.add_argument("--ranks", default="", help="numbers, first, last; separated by commas")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--traceback", action="store_true", help="where a step fails, say all of it"
    )
    options = parser.parse_args(arguments)
    try:
        job = decode(options.job)
        ranks = chosen_ranks(job, options.ranks)
        text = _simulate(job, ranks, as_json=options.json, traceback=options.traceback)
    except TitanRecipesError as error:
        return tell(error)
    print(text)
    return EXIT_DONE


def chosen_ranks(job: Job, text: str) -> list[int]:
    """The ranks to simulate; by default the first of the first and of the last pipeline stage.

    Raises ConfigError for one that the job does not have.
    """
    size = job.derived.world_size
    words = {"first": 0, "last": size - size // job.derived.pp}
    chosen: dict[int, None] = {}
    for word in (text or "first,last").split(","):
        name = word.strip()
        rank = words.get(name, int(name) if name.isdecimal() else size)
        if rank >= size:
            cure = f'use 0 to {size - 1}, "first" or "last"'
            raise ConfigError([Problem("--ranks", "", f'got "{name}"', cure)])
        chosen[rank] = None
    return list(chosen)


def _simulate(job: Job, ranks: list[int], *, as_json: bool, traceback: bool) -> str:
    # One small operator after the other: threads would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run = functools.partial(simulate_rank, job, traceback=traceback)
    if len(ranks) == 1:
        reports = [run(ranks[0])]
    else:
        # torch keeps what it learned of a mesh for as long as a process lives.
        with ProcessPoolExecutor(
            min(len(ranks), os.cpu_count() or 1),
            mp_context=multiprocessing.get_context("spawn"),
            max_tasks_per_child=1,
        ) as pool:
            try:
                reports = list(pool.map(run, ranks))
            except BrokenProcessPool as error:
                raise TitanRecipesError(
                    "a simulated rank was killed, perhaps for want of memory; try one: --rank 0"
                ) from error
    from titan_recipes.trainer.simulate import report

    if as_json:
        return json.dumps(report.as_json(job, reports), indent=2)
    return report.as_text(job, reports)


if __name__ == "__main__":
    sys.exit(main())
