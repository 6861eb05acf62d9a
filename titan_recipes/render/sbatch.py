"""train.sbatch: a job as a SLURM batch script; its size does not depend on the number of nodes.

One homogeneous allocation with a task on each node, the node entry point. Values reach the shell
quoted, SLURM as `#SBATCH --name="value"`, which it reads up to the closing quote.
"""

import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError

from titan_recipes.config.hardware import ANY_GPU, NO_GPU
from titan_recipes.config.home import expanded
from titan_recipes.config.job import Job, encode
from titan_recipes.config.site import FROM_ENV, FROM_FILE, Site
from titan_recipes.errors import BundleError, LaunchError
from titan_recipes.render.environment import environment

SBATCH = "train.sbatch"
SESSION = "titan_slurm://titan-recipes"
"""What torchx's handle of such a job begins with."""
MIB = 1024
"""Of a GiB; SLURM counts memory in MiB."""
LEFT_OF_MEMORY = 0.95
"""What of a node's memory SLURM usually gives out: it keeps some for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What a script says beside the job."""

    run_dir: str
    python: str = sys.executable
    """Of the launcher, which the nodes run too unless there is a container."""
    resumed: bool = False
    """A person asked for it: failures before it do not count."""
    after: tuple[str, ...] = ()
    """Ids of SLURM jobs that have to succeed first."""
    array: int = 0
    """Number of runs in a job array, each in `<run_dir>-<index>` with a job.toml; 0 = one run."""


def render_sbatch(job: Job, submission: Submission, search_path: Sequence[Path] = ()) -> str:
    """The script. Raises LaunchError for a run directory that SLURM can't take, BundleError where
    a bundle's own template can't be rendered."""
    _check_run_dir(submission.run_dir)
    site = job.site
    sources = {name: source for name, source in sorted(site.secrets.items())}
    values = {
        "title": f"{job.recipe_id}, plan {job.origin.plan}",
        "digest": job.origin.digest,
        "options": [*_options(job, submission)],
        "run_dir": submission.run_dir,
        "job": "" if submission.array else encode(job),
        "setup": site.setup,
        "env": job.env,
        "env_secrets": [name for name, source in sources.items() if source == FROM_ENV],
        "file_secrets": [
            (name, str(expanded(source.removeprefix(FROM_FILE))))
            for name, source in sources.items()
            if source != FROM_ENV
        ],
        "session": SESSION,
        "array": submission.array,
        "resumed": submission.resumed,
        "nodes": job.plan.nodes,
        "srun": [*_srun_words(job, submission)],
        "command": [*_command(job, submission)],
    }
    template = f"{SBATCH}.j2"
    places = ", ".join(str(path) for path in search_path) or "the package"
    try:
        return environment(search_path).get_template(template).render(values)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise BundleError(f"{template}, from {places}: {error}") from error


def _check_run_dir(run_dir: str) -> None:
    if bad := sorted({char for char in run_dir if char in '"\\' or not char.isprintable()}):
        got = f"{run_dir!r} has {', '.join(map(repr, bad))}, which sbatch can't take in a path"
        raise LaunchError(f"--outputs: {got}; choose another folder")


def asks_for_gpus(job: Job) -> bool:
    """Whether the scheduler is asked for GPUs."""
    return job.plan.gpu not in (NO_GPU, ANY_GPU)


# --- what SLURM is asked for ----------------------------------------------------------------------


def _options(job: Job, submission: Submission) -> Iterator[str]:
    """The lines after #SBATCH."""
    logs = submission.run_dir.replace("%", "%%")
    logs += "-%a/logs/slurm-%A_%a.log" if submission.array else "/logs/slurm-%j.log"
    gpus = job.plan.gpus_per_node if asks_for_gpus(job) else 0
    asked: dict[str, str | int | bool] = {
        "job-name": Path(submission.run_dir).name,
        "nodes": job.plan.nodes,
        "ntasks-per-node": 1,
        **({"gpus-per-node": gpus} if gpus else {}),
        "output": logs,
        "open-mode": "append",
        "requeue": True,
        "signal": f"B:USR2@{job.fault_tolerance.grace_seconds}",
        "export": "ALL",
        **({"array": f"0-{submission.array - 1}"} if submission.array else {}),
        **({"dependency": f"afterok:{':'.join(submission.after)}"} if submission.after else {}),
        **({"kill-on-invalid-dep": "yes"} if submission.after else {}),
    }
    for name, value in {**asked, **share(job.site, gpus), **job.site.slurm}.items():
        if value is True:
            yield f"--{name}"
        elif value is not False:
            yield f"--{name}={_quoted(str(value))}"


def _quoted(value: str) -> str:
    """A value as sbatch reads it from a script; one without white space and quotes needs none."""
    plain = value and not any(char.isspace() or char in "\"'#" for char in value)
    return value if plain else f'"{value}"'


def share(site: Site, gpus: int) -> dict[str, str | int | bool]:
    """sbatch options for the cores and memory that go with `gpus` of a node; the profile's win.

    Without them one task gets one core on most clusters.
    """
    have, mine = site.hardware, site.slurm
    if not gpus or not have.gpus_per_node or mine.get("exclusive"):
        return {}
    part = min(1.0, gpus / have.gpus_per_node)
    asked: dict[str, str | int | bool] = {}
    if have.cpus and not {"cpus-per-task", "cpus-per-gpu"} & mine.keys():
        asked["cpus-per-task"] = max(1, math.floor(have.cpus * part))
    if have.memory_gib and not {"mem", "mem-per-cpu", "mem-per-gpu"} & mine.keys():
        asked["mem"] = f"{math.floor(have.memory_gib * MIB * part * LEFT_OF_MEMORY)}M"
    return asked


# --- what a node runs -----------------------------------------------------------------------------


def _srun_words(job: Job, submission: Submission) -> Iterator[str]:
    """srun's options, each quoted for the shell."""
    nodes = job.plan.nodes
    yield f"--nodes={nodes}"
    yield f"--ntasks={nodes}"
    yield "--ntasks-per-node=1"
    # sbatch hands its own --export down to srun; the script's exports must reach the nodes.
    yield "--export=ALL"
    # A node that fails first leaves the others the time to say why.
    yield "--kill-on-bad-exit=0"
    yield "--wait=0"
    container = job.site.container
    if container.runtime == "pyxis":
        mounts = ",".join(f"{source}:{target}" for source, target in _mounts(job.site, submission))
        names = ",".join(_names(job))
        yield shlex.quote(f"--container-image={container.image}")
        # Named by the job: two of them on one node do not share a file system.
        yield '--container-name="titan-recipes-$SLURM_JOB_ID"'
        yield shlex.quote(f"--container-mounts={mounts}")
        # The image's own environment would win over the job's.
        yield shlex.quote(f"--container-env={names}")
        yield "--no-container-mount-home"


def _command(job: Job, submission: Submission) -> Iterator[str]:
    """The words before the node entry point's own, each quoted for the shell."""
    container, run = job.site.container, list[str]()
    if container.runtime == "apptainer":
        run = ["apptainer", "exec", *(["--nv"] if asks_for_gpus(job) else [])]
        for source, target in _mounts(job.site, submission):
            run += ["--bind", f"{source}:{target}"]
        run.append(container.image)
    elif container.runtime == "docker":
        run = ["docker", "run", "--rm", "--init", "--network=host", "--ipc=host"]
        run += ["--gpus=all"] if asks_for_gpus(job) else []
        for source, target in _mounts(job.site, submission):
            run += ["--volume", f"{source}:{target}"]
        for name in (*_names(job), "SLURM_NODEID", "SLURM_JOB_ID"):
            run += ["--env", name]
        run += ["--entrypoint", container.python, container.image]
    elif container.runtime == "pyxis":
        run = [container.python]
    else:
        run = [submission.python]
    if container.runtime == "apptainer":
        run.append(container.python)
    for word in (*run, "-P", "-m", "titan_recipes.launch.node"):
        yield shlex.quote(word)


def _mounts(site: Site, submission: Submission) -> Iterator[tuple[str, str]]:
    """The profile's mounts, and the folder of the run directories as it is outside."""
    yield from site.mounts.items()
    outputs = os.path.dirname(submission.run_dir)
    if outputs not in site.mounts:
        yield outputs, outputs


def _names(job: Job) -> Iterator[str]:
    """The variables that the script exports, for runtimes that do not pass the environment on."""
    yield from sorted(job.env)
    yield from sorted(job.site.secrets)
    yield from ("TITAN_RECIPES_MASTER_ADDR", "TORCHX_JOB_ID")
