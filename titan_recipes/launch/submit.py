# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false
"""Launch: write a run's directory and hand its component to torchx.

The directory is exactly <outputs>/<name>, and new. The record in it is complete before anything is
scheduled; from then on the node entry point writes it. `preview` gives the files that `launch`
would write, and looks at nothing of this machine.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from titan_recipes.config.data_root import data_root
from titan_recipes.config.job import Job, to_toml
from titan_recipes.config.layout import RunLayout, replace_file
from titan_recipes.errors import LaunchError
from titan_recipes.launch.machine import check_trainer, fit
from titan_recipes.launch.record import new_record, remember_outputs, write_record
from titan_recipes.render import render

SESSION = "titan-recipes"
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
SCHEDULERS = {"local": "titan_local"}
"""The schedulers of `--scheduler` -> torchx's names."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A run that was handed to its scheduler, and lines worth telling the user."""

    layout: RunLayout
    handle: str
    notes: tuple[str, ...]


def preview(job: Job, *, outputs: str, name: str = "", scheduler: str = "local") -> dict[str, str]:
    """The files of a launch, path -> text; nothing is written, checked or submitted.

    Raises LaunchError for a bad name or scheduler.
    """
    _torchx_scheduler(scheduler)
    if name:
        check_name(name)
    return _files(job, name=name, outputs=outputs)


def launch(
    job: Job, *, outputs: Path, command: Sequence[str], name: str = "", scheduler: str = "local"
) -> Launched:
    """Start a run in <outputs>/<name>; "" = the recipe's name with the time.

    command: the command line, as typed, for the record. Raises LaunchError, before anything is
    written, where this machine can't run the job or the run exists.
    """
    backend = _torchx_scheduler(scheduler)
    if name:
        check_name(name)
    check_trainer()
    job, note = fit(job)
    layout = _make_directory(outputs.expanduser().resolve(), name or default_name(job), bool(name))
    files = _files(job, name=layout.root.name, outputs=str(layout.root.parent))
    for path, text in files.items():
        replace_file(layout.root / path, text)
    handle = _submit(layout, job, scheduler, backend, command)
    return Launched(layout, handle, (note,) if note else ())


def _submit(
    layout: RunLayout, job: Job, scheduler: str, backend: str, command: Sequence[str]
) -> str:
    """Record the run, then schedule its component through torchx; the app handle."""
    from torchx.runner import Runner  # takes 60 ms that a dry run need not wait for

    from titan_recipes.launch.titan_local import app_id, create_scheduler

    handle = f"{backend}://{SESSION}/{app_id(layout.root)}"
    record = new_record(
        job, name=layout.root.name, scheduler=scheduler, handle=handle, command=command
    )
    with Runner(SESSION, {backend: create_scheduler}) as runner:
        component = f"{layout.component}:train"
        request = runner.dryrun_component(component, [], backend, workspace="")
        write_record(layout, record)
        remember_outputs(layout.root.parent)
        runner.schedule(request)
    return handle


def _files(job: Job, *, name: str, outputs: str) -> dict[str, str]:
    bundle = (
        Path(job.origin.bundle) if job.origin.bundle else data_root() / "recipes" / job.recipe.name
    )
    files = render(job, name=name, outputs=outputs, search_path=[bundle / "templates"])
    return {"job.toml": to_toml(job), **files}


def _torchx_scheduler(scheduler: str) -> str:
    if scheduler not in SCHEDULERS:
        known = ", ".join(SCHEDULERS)
        raise LaunchError(f"--scheduler {scheduler}: not supported yet; use one of: {known}")
    return SCHEDULERS[scheduler]


def check_name(name: str) -> None:
    """Raises LaunchError for a name that no directory or no scheduler's job could have."""
    if not NAME_PATTERN.fullmatch(name):
        rule = "lower-case letters, digits, '_', '.' and '-', at most 63, a letter or digit first"
        raise LaunchError(f"--name {name}: not a run name; use {rule}")


def default_name(job: Job) -> str:
    """The recipe's name with the time, to the second."""
    recipe = re.sub(r"[^a-z0-9_.-]", "-", job.recipe.name.lower())[:40]
    return f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"


def _make_directory(outputs: Path, name: str, is_chosen: bool) -> RunLayout:
    """The new run directory; a name that was not chosen gets a number where it is taken."""
    for number in range(1, 100):
        root = outputs / (f"{name}-{number}" if number > 1 else name)
        try:
            root.mkdir(parents=True)
        except FileExistsError as error:
            if is_chosen:
                cure = f"choose another --name, or go on with it: titan-recipes resume {name}"
                raise LaunchError(f"{root}: exists already; {cure}") from error
        except OSError as error:
            raise LaunchError(f"{root}: can't be made: {error.strerror}; see --outputs") from error
        else:
            return RunLayout(root)
    raise LaunchError(f"{outputs / name}: exists a hundred times; choose a --name")
