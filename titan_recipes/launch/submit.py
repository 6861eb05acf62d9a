# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false
"""Launch: write a run's directory and hand its component to torchx.

The directory is exactly <outputs>/<name>, and new. The record in it is complete before anything is
scheduled; from then on the node entry point writes it. `preview` gives the files that `launch`
would write, and looks at nothing of this machine.
"""

import os
import re
import shlex
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from titan_recipes.config.datasets import WhereOf
from titan_recipes.config.job import Job, to_toml
from titan_recipes.config.layout import RunLayout, replace_file
from titan_recipes.config.site import secret_problems
from titan_recipes.errors import BundleError, ConfigError, LaunchError, TitanRecipesError
from titan_recipes.launch.inputs import bundle_directory, input_problems
from titan_recipes.launch.machine import check_trainer, fit, in_job
from titan_recipes.launch.record import new_record, write_record
from titan_recipes.launch.runs import Run, real
from titan_recipes.render import COMPONENT, SBATCH, Submission, render

if TYPE_CHECKING:
    from torchx.runner import Runner
    from torchx.specs import AppDryRunInfo

SESSION = "titan-recipes"
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
SLURM = "slurm"


@dataclass(frozen=True, slots=True)
class Backend:
    """What a launch does differently under one scheduler."""

    name: str
    """torchx's name of it."""
    module: str
    """Has its `create_scheduler`; imported late, as torchx takes its time."""
    prepare: Callable[[Job, WhereOf], tuple[Job, str]]
    """The job as it runs there, and a note; raises ConfigError where what it needs is missing."""
    more_files: Callable[[Job, str], dict[str, str]] = lambda job, run_dir: {}
    """The files, path -> text, that a launch into this run directory writes beside component.py."""
    config: Callable[[RunLayout, str], dict[str, str]] = lambda layout, after: {}
    """What torchx's -cfg would say, with the ids of jobs to wait for, separated by commas."""
    seen: Callable[[Job, str], tuple[str, str]] = lambda job, outputs: (outputs, "")
    """The folder of the run directories as the job sees it, and the component's image."""
    gives_id: bool = False
    """Whether the scheduler makes up the app's id, and the node entry point writes it down."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A run that was handed to its scheduler, and lines worth telling the user."""

    layout: RunLayout
    handle: str
    notes: tuple[str, ...]


def preview(
    job: Job, *, outputs: str, name: str | None = None, scheduler: str = "local"
) -> dict[str, str]:
    """The files of a launch, path -> text; nothing is written, checked or submitted.

    Raises LaunchError for a bad name or scheduler.
    """
    check_scheduler(scheduler)
    check_outputs(outputs)
    if name is not None:
        check_name(name)
    where = job.origin.cluster or "cluster"
    if scheduler != "local" and (problems := [*secret_problems(job.site, scheduler, where)]):
        raise ConfigError(problems)
    run_dir = os.path.join(os.path.abspath(outputs), name or default_name(job))
    backend = BACKENDS[scheduler]()
    return _job_files(job, backend, name or "", outputs) | backend.more_files(job, run_dir)


def launch(
    job: Job,
    *,
    outputs: Path,
    command: Sequence[str],
    name: str | None = None,
    scheduler: str = "local",
    where_of: WhereOf = in_job,
    after: Sequence[Run] = (),
) -> Launched:
    """Start a run in <outputs>/<name>; None = the recipe's name with the time.

    command: the command line, as typed, for the record; where_of: dotted key -> what set it, for
    messages; after: runs that have to succeed first, under SLURM. Raises LaunchError or
    ConfigError, and leaves nothing written, where the job can't be run from here, what it reads is
    not here, the run exists, or the scheduler refuses it.
    """
    check_scheduler(scheduler)
    if name is not None:
        check_name(name)
    outputs = real(outputs)
    check_outputs(str(outputs))
    if after and scheduler != SLURM:
        raise LaunchError(f"--after: --scheduler {scheduler} has no queue to wait in; use slurm")
    waits_for = _jobs_of(after)
    backend = BACKENDS[scheduler]()
    job, note = backend.prepare(job, where_of)
    wanted = name or default_name(job)
    preview(job, outputs=str(outputs), name=wanted, scheduler=scheduler)  # fails before mkdir
    layout = make_directory(outputs, wanted, is_chosen=name is not None)
    handle = _submit(layout, job, backend, scheduler, command, waits_for)
    return Launched(layout, handle, (note,) if note else ())


def _jobs_of(after: Sequence[Run]) -> str:
    """The ids of the SLURM jobs of these runs, separated by commas. Raises LaunchError."""
    if not after:
        return ""
    from titan_recipes.launch.slurm_submit import jobs_of

    return ",".join(jobs_of(after))


def _fitted(job: Job, where_of: WhereOf) -> tuple[Job, str]:
    """The job as this machine runs it, and a note. Raises ConfigError with all that is not here."""
    check_trainer()
    problems = [*input_problems(job, where_of)]
    try:
        fitted = fit(job, where_of)
    except ConfigError as error:
        raise ConfigError([*error.problems, *problems]) from None
    if problems:
        raise ConfigError(problems)
    return fitted


def _local() -> Backend:
    return Backend("titan_local", "titan_recipes.launch.titan_local", _fitted)


def _slurm() -> Backend:
    from titan_recipes.launch.slurm_submit import check_here, script_of

    def looked_at(job: Job, where_of: WhereOf) -> tuple[Job, str]:
        check_here(job, where_of)
        return job, ""

    return Backend(
        "titan_slurm",
        "titan_recipes.launch.titan_slurm",
        looked_at,
        more_files=lambda job, run_dir: {SBATCH: script_of(job, Submission(run_dir=run_dir))},
        config=lambda layout, after: {"after": after},
        gives_id=True,
    )


def _docker() -> Backend:
    from titan_recipes.launch.docker_check import as_container
    from titan_recipes.launch.docker_request import docker_files

    return Backend(
        "titan_docker",
        "titan_recipes.launch.titan_docker",
        as_container,
        more_files=docker_files,
        gives_id=True,
    )


def _kubernetes() -> Backend:
    from titan_recipes.launch.kubernetes_submission import (
        as_pods,
        pod_files,
        pods_image,
        pods_outputs,
    )

    return Backend(
        "titan_kubernetes",
        "titan_recipes.launch.titan_kubernetes",
        as_pods,
        more_files=lambda job, run_dir: pod_files(job, os.path.basename(run_dir)),
        config=lambda layout, after: {"record": str(layout.root.parent)},
        seen=lambda job, outputs: (pods_outputs(job), pods_image(job)),
        gives_id=True,
    )


BACKENDS = {"local": _local, SLURM: _slurm, "docker": _docker, "kubernetes": _kubernetes}
"""The schedulers of `--scheduler`; each imports what is its own only when it is asked for."""


def _submit(
    layout: RunLayout,
    job: Job,
    backend: Backend,
    scheduler: str,
    command: Sequence[str],
    after: str,
) -> str:
    """Write the run's files, then schedule its component through torchx; the app handle.

    after: ids of jobs to wait for, separated by commas. Where that fails before it is scheduled,
    the directory is gone again.
    """
    from torchx.runner import Runner  # takes 60 ms that a dry run need not wait for

    from titan_recipes.launch.titan_local import app_id

    record = new_record(
        job,
        name=layout.root.name,
        scheduler=scheduler,
        handle="" if backend.gives_id else f"{backend.name}://{SESSION}/{app_id(layout.root)}",
        command=command,
        image=job.site.container.image,
    )
    runner = Runner(SESSION, {backend.name: import_module(backend.module).create_scheduler})
    try:
        files = _job_files(job, backend, layout.root.name, str(layout.root.parent))
        for path, text in files.items():
            replace_file(layout.root / path, text)
        request = _request(runner, layout, job, backend.name, backend.config(layout, after))
        write_record(layout, record)
        return runner.schedule(request)
    except BaseException:
        if not layout.kubernetes.exists():  # nothing was started
            rmtree(layout.root, ignore_errors=True)
        raise


def _request(
    runner: "Runner", layout: RunLayout, job: Job, backend: str, cfg: Mapping[str, str]
) -> "AppDryRunInfo[object]":
    """What torchx would start. Raises BundleError where a bundle's own template is at fault."""
    own = _templates(job) / f"{COMPONENT}.j2"
    try:
        return runner.dryrun_component(f"{layout.component}:train", [], backend, cfg, workspace="")
    except TitanRecipesError:
        raise
    except Exception as error:  # whatever code of the user's may raise
        if not own.is_file():
            raise
        raise BundleError(f"{own}: torchx can't use what it renders: {error}") from error


def _templates(job: Job) -> Path:
    """Where the bundle's own templates are, if it has any."""
    return bundle_directory(job) / "templates"


def _job_files(job: Job, backend: Backend, name: str, outputs: str) -> dict[str, str]:
    """job.toml and component.py of a run under a scheduler."""
    seen_outputs, image = backend.seen(job, outputs)
    return job_files(job, name=name, outputs=seen_outputs, image=image)


def job_files(job: Job, *, name: str, outputs: str, image: str = "") -> dict[str, str]:
    """job.toml and component.py of a run. Raises BundleError for the bundle's own templates."""
    files = render(job, name=name, outputs=outputs, image=image, search_path=[_templates(job)])
    return {"job.toml": to_toml(job), **files}


def check_scheduler(scheduler: str) -> None:
    """Raises LaunchError for one that nothing is launched on yet."""
    if scheduler not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise LaunchError(f"--scheduler {scheduler}: not supported yet; use one of: {known}")


def check_outputs(outputs: str) -> None:
    """Raises LaunchError for a path that no terminal, TOML or list of lines could hold."""
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in outputs):
        got = "holds control characters or bytes that are not UTF-8"
        raise LaunchError(f"--outputs {outputs!r}: {got}; choose another folder")


def check_name(name: str) -> None:
    """Raises LaunchError for a name that no directory or no scheduler's job could have."""
    if not NAME_PATTERN.fullmatch(name):
        rule = "lower-case letters, digits, '_', '.' and '-', at most 63, a letter or digit first"
        raise LaunchError(f"--name {name!r}: not a run name; use {rule}")


def default_name(job: Job) -> str:
    """The recipe's name with the time, to the second."""
    recipe = re.sub(r"[^a-z0-9_.-]", "-", job.recipe.name.lower())[:40]
    return f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"


def make_directory(outputs: Path, name: str, *, is_chosen: bool) -> RunLayout:
    """The new run directory; a name that was not chosen gets a number where it is taken.

    Raises LaunchError where it exists or can't be made.
    """
    for number in range(1, 100):
        root = outputs / (f"{name}-{number}" if number > 1 else name)
        try:
            root.mkdir(parents=True)
        except FileExistsError as error:
            if is_chosen:
                cure = "choose another --name"
                if os.path.exists(root / "run.json"):
                    cure += f", or see how it stands: titan-recipes status {shlex.quote(str(root))}"
                raise LaunchError(f"{root}: exists already; {cure}") from error
        except OSError as error:
            raise LaunchError(f"{root}: can't be made: {error.strerror}; {_cure(error)}") from error
        else:
            return RunLayout(root)
    raise LaunchError(f"{outputs / name}: exists a hundred times; choose a --name")


def _cure(error: OSError) -> str:
    """What to do where a run directory can't be made; in a container, run it as another user."""
    engines = ("/.dockerenv", "/run/.containerenv")  # what Docker and Podman put into each
    if not isinstance(error, PermissionError) or not any(map(os.path.exists, engines)):
        return "see --outputs"
    folder = Path(str(error.filename)).parent
    owner = folder.stat().st_uid
    whose = f"{folder} is uid {owner}'s, this container runs as uid {os.getuid()}"
    if owner == 0:  # the engine made the folder that it was told to mount
        return f"{whose}: make the mounted folder yourself before docker run"
    return f'{whose}: add --user "$(id -u):$(id -g)" to docker run'
