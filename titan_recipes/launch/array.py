"""A job array: recipes times values of settings as the tasks of one SLURM job.

Task k is a run like any other, in <outputs>/<name>-<k>: followed, cancelled and resumed by itself.
The tasks share one script, so all ask for the same nodes.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from shutil import rmtree

from titan_recipes.config.datasets import WhereOf
from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout, replace_file
from titan_recipes.errors import LaunchError
from titan_recipes.launch.record import new_record, remember_outputs, write_record
from titan_recipes.launch.runs import Run, real
from titan_recipes.launch.slurm_queue import sbatch
from titan_recipes.launch.slurm_submit import check_here, jobs_of, script_of
from titan_recipes.launch.submit import (
    SLURM,
    check_name,
    check_outputs,
    default_name,
    job_files,
    make_directory,
)
from titan_recipes.render import SBATCH, Submission

MOST_TASKS = 1000
"""SLURM's own default for MaxArraySize is 1001."""


def combinations(arrays: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of `KEY=V1,V2,...`, each as overrides: the last key varies fastest.

    Raises LaunchError for a text without values.
    """
    choices: list[list[str]] = []
    for text in arrays:
        key, equals, values = text.partition("=")
        listed = [value.strip() for value in values.split(",")]
        if not equals or not key or not all(listed):
            example = "--array debug.seed=0,1,2"
            raise LaunchError(f"--array {text}: not a setting and its values; write {example}")
        choices.append([f"{key}={value}" for value in listed])
    return [*product(*choices)]


def preview_array(jobs: Sequence[Job], *, outputs: str, name: str | None) -> dict[str, str]:
    """The files of such a launch, path below the outputs folder -> text; nothing is written."""
    outputs, name = str(real(Path(outputs))), _checked_name(jobs, outputs, name)
    files = {f"{name}-0/{SBATCH}": _script(jobs, outputs, name, ())}
    for number, job in enumerate(jobs):
        for path, text in job_files(job, name=f"{name}-{number}", outputs=outputs).items():
            files[f"{name}-{number}/{path}"] = text
    return files


def launch_array(
    jobs: Sequence[Job],
    where_of: Sequence[WhereOf],
    *,
    outputs: Path,
    command: Sequence[str],
    name: str | None = None,
    after: Sequence[Run] = (),
) -> list[RunLayout]:
    """Submit the jobs as one array; their run directories.

    where_of: one for each job; it and command, name, after are as for `launch`. Raises LaunchError
    or ConfigError, and leaves nothing written, where one can't be run or SLURM refuses them.
    """
    outputs = real(outputs)
    name = _checked_name(jobs, str(outputs), name)
    for job, where in zip(jobs, where_of, strict=True):
        check_here(job, where)
    script = _script(jobs, str(outputs), name, jobs_of(after))
    layouts: list[RunLayout] = []
    try:
        for number, job in enumerate(jobs):
            layout = make_directory(outputs, f"{name}-{number}", is_chosen=True)
            layouts.append(layout)
            files = job_files(job, name=layout.root.name, outputs=str(outputs))
            for path, text in {**files, SBATCH: script}.items():
                replace_file(layout.root / path, text)
            layout.logs.mkdir()
            image = job.site.container.image
            record = new_record(
                job, name=layout.root.name, scheduler=SLURM, handle="", command=command, image=image
            )
            write_record(layout, record)
        job_id = sbatch(layouts[0].root / SBATCH)
    except BaseException:
        for layout in layouts:
            rmtree(layout.root, ignore_errors=True)
        raise
    for number, layout in enumerate(layouts):
        replace_file(layout.slurm_job, f"{job_id}_{number}\n")
    remember_outputs(outputs)
    return layouts


def _script(jobs: Sequence[Job], outputs: str, name: str, after: tuple[str, ...]) -> str:
    run_dir = f"{outputs}/{name}"
    return script_of(jobs[0], Submission(run_dir=run_dir, after=after, array=len(jobs)))


def _checked_name(jobs: Sequence[Job], outputs: str, name: str | None) -> str:
    """The array's name. Raises LaunchError where these jobs can't be one array."""
    if len(jobs) > MOST_TASKS:
        raise LaunchError(f"--array: {len(jobs)} runs; at most {MOST_TASKS} fit into one array")
    for job in jobs[1:]:
        if differences := ", ".join(_differences(jobs[0], job)):
            cure = "one array asks for the same nodes for all; launch them apart"
            raise LaunchError(f"--array: {job.recipe_id}: {differences}; {cure}")
    check_outputs(outputs)
    name = name or default_name(jobs[0])
    check_name(f"{name}-{len(jobs) - 1}")
    return name


def _differences(first: Job, other: Job) -> Iterator[str]:
    """What of two jobs' shares of one script is not the same."""
    for key, mine, its in (
        ("plan.nodes", first.plan.nodes, other.plan.nodes),
        ("plan.gpus_per_node", first.plan.gpus_per_node, other.plan.gpus_per_node),
        ("plan.gpu", first.plan.gpu, other.plan.gpu),
        (
            "fault_tolerance.grace_seconds",
            first.fault_tolerance.grace_seconds,
            other.fault_tolerance.grace_seconds,
        ),
    ):
        if mine != its:
            yield f"{key} {its}, not {mine} as {first.recipe_id}"
