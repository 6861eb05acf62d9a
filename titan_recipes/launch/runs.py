"""Finding runs: every directory that holds a run.json below a folder of outputs.

Runs are looked for in `--outputs` where it is given; else in `$TITAN_RECIPES_OUTPUTS` or ./outputs
and in every folder that a run was ever launched into. The newest run is the one created last.
"""

import os
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from titan_recipes.config.home import expanded
from titan_recipes.config.job import Job, read_job
from titan_recipes.config.layout import RunLayout
from titan_recipes.config.load import did_you_mean
from titan_recipes.errors import ConfigError, LaunchError
from titan_recipes.launch.record import RunRecord, known_outputs, read_record


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory and its record, as read a moment ago."""

    layout: RunLayout
    record: RunRecord

    @property
    def name(self) -> str:
        """Its directory's name: no two in one folder have the same."""
        return self.layout.root.name

    @property
    def word(self) -> str:
        """What to type for it here: its name where that leads to it, else its path; quoted."""
        named = [
            folder for folder in folders(None) if os.path.exists(folder / self.name / "run.json")
        ]
        ours = self.layout.root.parent
        found = ours in named and (len(named) == 1 or ours == real(default_outputs()))
        return shlex.quote(self.name if found else str(self.layout.root))

    def job(self) -> Job | None:
        """The run's job; None where job.toml is missing or of a version this one can't read."""
        try:
            return read_job(self.layout.job)
        except ConfigError:
            return None


def default_outputs() -> Path:
    """$TITAN_RECIPES_OUTPUTS, else ./outputs."""
    return expanded(os.environ.get("TITAN_RECIPES_OUTPUTS") or "outputs")


def open_run(root: Path) -> Run:
    """The run in this directory. Raises LaunchError."""
    layout = RunLayout(expanded(root).resolve())
    return Run(layout, read_record(layout))


def folders(outputs: Path | None) -> list[Path]:
    """Where runs are looked for; a folder that is gone or given twice is left out."""
    listed = [outputs] if outputs else [default_outputs(), *known_outputs()]
    return [folder for folder in dict.fromkeys(map(real, listed)) if not is_gone(folder)]


def real(folder: Path) -> Path:
    """The folder's absolute path without links; unlike Path.resolve it fails for none."""
    return Path(os.path.realpath(expanded(folder)))


def is_gone(folder: Path) -> bool:
    """Whether there is no such folder; one that can't be looked at is there."""
    try:
        return not stat.S_ISDIR(folder.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def find_runs(outputs: Path | None = None) -> tuple[list[Run], list[str]]:
    """(runs, newest first; one line for each folder or run.json that can't be read).

    Raises LaunchError where there is no folder `outputs`.
    """
    if outputs and is_gone(real(outputs)):
        raise LaunchError(f"--outputs {outputs}: no such folder")
    runs: list[Run] = []
    broken: list[str] = []
    for folder in folders(outputs):
        try:
            names = os.listdir(folder)
        except OSError as error:
            broken.append(f"{folder}: can't be read: {error.strerror}")
            continue
        for name in names:
            try:
                if os.path.exists(folder / name / "run.json"):  # False where it can't be looked at
                    runs.append(open_run(folder / name))
            except LaunchError as error:
                broken.append(str(error))
    return sorted(runs, key=lambda run: run.record.created, reverse=True), broken


def find_run(name: str | None = None, outputs: Path | None = None) -> Run:
    """The run of that name or at that path; None = the newest. Raises LaunchError."""
    if name and (os.sep in name or name in (os.curdir, os.pardir)):
        return open_run(Path(name))
    runs, _ = find_runs(outputs)
    if name is None:
        if not runs:
            raise LaunchError(
                f"no runs in {_places(outputs)}; start one: titan-recipes launch RECIPE"
            )
        return runs[0]
    named = [run for run in runs if run.name == name]
    here = [run for run in named if run.layout.root.parent == real(default_outputs())]
    named = here or named
    if len(named) > 1:
        paths = ", ".join(str(run.layout.root) for run in named)
        raise LaunchError(f"{len(named)} runs are named {name!r}: {paths}; give the path of one")
    if named:
        return named[0]
    if Path(name, "run.json").is_file():
        return open_run(Path(name))
    raise LaunchError(f"no run {name!r} in {_places(outputs)}; {_hint(name, runs)}")


def _places(outputs: Path | None) -> str:
    listed = folders(outputs) or [outputs or default_outputs()]
    return ", ".join(str(folder) for folder in listed)


def _hint(name: str, runs: Sequence[Run]) -> str:
    if not runs:
        return "there are no runs; start one: titan-recipes launch RECIPE"
    newest = f"the newest is {runs[0].name}; titan-recipes runs lists all"
    return did_you_mean(name, [run.name for run in runs]) or newest
