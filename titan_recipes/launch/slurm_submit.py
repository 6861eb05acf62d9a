"""Submitting to SLURM: what is looked at before, train.sbatch, runs in a row and side by side."""

import os
import stat
from collections.abc import Iterator, Sequence

from titan_recipes.config.datasets import WhereOf
from titan_recipes.config.home import expanded
from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout, replace_file
from titan_recipes.config.site import FROM_ENV, FROM_FILE
from titan_recipes.errors import ConfigError, LaunchError, Problem
from titan_recipes.launch.inputs import bundle_directory, input_problems
from titan_recipes.launch.runs import Run
from titan_recipes.launch.slurm_queue import sbatch
from titan_recipes.launch.slurm_state import SLURM_SCHEDULERS, slurm_job
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.render import SBATCH, Submission, render_sbatch


def script_of(job: Job, submission: Submission) -> str:
    """train.sbatch, by the bundle's own template if it has one."""
    return render_sbatch(job, submission, [bundle_directory(job) / "templates"])


def submit(layout: RunLayout, script: str) -> str:
    """Write train.sbatch into a run's directory and hand it to SLURM; the job's id.

    Raises LaunchError with what sbatch said.
    """
    layout.logs.mkdir(exist_ok=True)  # SLURM makes no folder, and would fail without a word
    replace_file(layout.root / SBATCH, script)
    job_id = sbatch(layout.root / SBATCH)
    replace_file(layout.slurm_job, f"{job_id}\n")
    return job_id


def check_here(job: Job, where_of: WhereOf) -> None:
    """Raises ConfigError where what a job needs is not where it is submitted.

    Its data and tokenizer are looked for where no container keeps them from view: login nodes share
    their file systems with the others.
    """
    problems = [*missing_secrets(job)]
    if job.site.container.runtime == "none":
        problems += input_problems(job, where_of)
    if problems:
        raise ConfigError(problems)


def missing_secrets(job: Job) -> Iterator[Problem]:
    where = job.origin.cluster or "cluster"
    for name, source in job.site.secrets.items():
        key = f"secrets.{name}"
        if source == FROM_ENV:
            if not os.environ.get(name):
                yield Problem(where, key, "not in this environment", f"export {name}=...")
            continue
        path = expanded(source.removeprefix(FROM_FILE))
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                yield Problem(where, key, f"others can read {path}", f"chmod 600 {path}")
        except OSError as error:
            cure = "write the secret there, chmod 600"
            yield Problem(where, key, f"{path}: {error.strerror}", cure)


def jobs_of(runs: Sequence[Run]) -> tuple[str, ...]:
    """The SLURM jobs that have to succeed before what is launched `--after` these runs.

    A run that has succeeded needs no waiting for. Raises LaunchError for one that never will.
    """
    ids: list[str] = []
    for run in runs:
        state = run_status(run.layout, run.record).state
        if state is RunState.SUCCEEDED:
            continue
        if run.record.scheduler not in SLURM_SCHEDULERS:
            got = f"a run of {run.record.scheduler}, which SLURM can't wait for"
            raise LaunchError(f"--after {run.word}: {got}; launch once it has succeeded")
        if state.is_final:
            cure = f"go on with it first: titan-recipes resume {run.word}"
            raise LaunchError(f"--after {run.word}: it {state.value}; {cure}")
        ids.append(slurm_job(run.layout, run.record))
    return tuple(ids)
