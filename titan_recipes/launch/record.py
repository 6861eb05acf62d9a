"""The run record: run.json in the run directory, the only memory that a run has.

There is no database: a run directory on a shared file system is seen by every shell and node.
run.json is replaced atomically, and one process writes it at a time: the launcher, complete, before
it schedules; from then on only the node entry point (node 0), until its process is gone; then
whoever resumes. What a run is doing follows from it and from what runs (`state.run_status`).

The folders that runs were ever launched into are in an append-only list in the user's state
directory, so that any shell finds them.
"""

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from titan_recipes.config.data_root import data_root
from titan_recipes.config.home import user_folder
from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout, replace_file
from titan_recipes.errors import LaunchError

RUN_DIR_FLAG = "--run-dir"  # of the node entry point, by which its process is found
Outcome = Literal["running", "done", "stopped", "failed"]
PACKAGES = (
    "titan-recipes",
    "torch",
    "torchao",
    "torchx",
    "numpy",
    "datasets",
    "tiktoken",
    "tokenizers",
    "safetensors",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of the ranks, as node 0's entry point saw it."""

    number: int
    """1, 2, ... over the whole run; attempts/<number>/ holds what the ranks left."""
    started: str
    """ISO 8601, UTC."""
    host: str
    """Host name of node 0."""
    pid: int
    """Process id of the node entry point on that host."""
    pid_start: int
    """When that process started, in clock ticks after boot: tells a recycled pid apart."""
    ended: str = ""
    """ISO 8601, UTC; "" = not known to have ended."""
    exit_code: int = -1
    """Exit code of the run contract; -1 = none (still running, or lost)."""
    outcome: Outcome = "running"
    """"done" = trained to the last step; "stopped" = was asked to stop and has more to do."""
    cause: str = ""
    """Why it stopped or failed, in one line."""
    rank: int = -1
    """The rank that failed first; -1 = none in particular."""
    step_from: int = 0
    """Newest committed checkpoint when it began; 0 = none."""
    step_to: int = 0
    """Newest committed checkpoint when it ended; 0 = none."""
    resumed: bool = False
    """A person asked for this attempt: failures before it no longer count."""
    final: bool = False
    """Nothing follows it by itself: done, stopped, or not to be retried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """run.json."""

    name: str
    """The run's name: its directory's."""
    recipe: str
    """`name@version`."""
    digest: str
    """sha256 over the bundle's sorted files."""
    plan: str
    """Name of the plan."""
    cluster: str
    """Name of the cluster profile; "" = none."""
    scheduler: str
    """What runs it: "local", "docker", "slurm", "kubernetes", or a torchx scheduler's own name."""
    handle: str
    """torchx's app handle, `scheduler://session/app_id`; "" = unknown."""
    command: tuple[str, ...]
    """The command line that launched it, as typed."""
    created: str
    """ISO 8601, UTC."""
    host: str = ""
    """Host name of the machine that launched it; "" = unknown."""
    cwd: str = ""
    """The directory it was launched in: relative paths in the job start there."""
    versions: dict[str, str] = field(default_factory=dict[str, str])
    """Python and the packages that matter, as installed where the record was made."""
    git_revision: str = ""
    """Commit of the repository that holds the bundle, "-dirty" where it was changed; "" = none."""
    image: str = ""
    """Container image; "" = the launcher's own Python."""
    predicted: dict[str, float] = field(default_factory=dict[str, float])
    """What the plan expects: tokens_per_second_per_gpu, peak_memory_gib."""
    measured: dict[str, float] = field(default_factory=dict[str, float])
    """What the last attempt that ended reached, under the same names."""
    attempts: tuple[Attempt, ...] = ()
    """Oldest first."""

    def with_attempt(self, attempt: Attempt) -> "RunRecord":
        """The record with this attempt added, or put in place of the one of its number."""
        others = tuple(a for a in self.attempts if a.number != attempt.number)
        return replace(self, attempts=(*others, attempt))


def now() -> str:
    """This moment as run.json writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_record(
    job: Job,
    *,
    name: str,
    scheduler: str,
    handle: str,
    command: Sequence[str],
    image: str = "",
) -> RunRecord:
    """The record of a run that has not started yet, with what this Python has installed."""
    expect = job.expect
    predicted = {
        "tokens_per_second_per_gpu": expect.tokens_per_second_per_gpu,
        "peak_memory_gib": expect.peak_memory_gib,
    }
    return RunRecord(
        name=name,
        recipe=job.recipe_id,
        digest=job.origin.digest,
        plan=job.origin.plan,
        cluster=job.origin.cluster,
        scheduler=scheduler,
        handle=handle,
        command=tuple(command),
        created=now(),
        host=socket.gethostname(),
        cwd=os.getcwd(),
        versions=installed_versions(),
        git_revision=git_revision(
            Path(job.origin.bundle) if job.origin.bundle else data_root() / "recipes"
        ),
        image=image,
        predicted={key: value for key, value in predicted.items() if value},
    )


def installed_versions() -> dict[str, str]:
    """Python and the packages that shape a run, as installed; nothing is imported for it."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def git_revision(folder: Path) -> str:
    """Commit of the repository that holds a folder, "-dirty" where it was changed; "" = none.

    A repository that only surrounds it, as one does a virtual environment in it, does not count.
    """
    if not _git(folder, "ls-files", "--", "."):
        return ""
    # --exclude: the commit itself, never a tag's name
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *words: str) -> str:
    """What git prints in a folder; "" where it fails."""
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def read_record(layout: RunLayout) -> RunRecord:
    """Read run.json. Raises LaunchError where it is missing or can't be read."""
    try:
        text = layout.record.read_text(encoding="utf-8")
        return _checked(_record_type().validate_json(text, strict=True))
    except FileNotFoundError as error:
        raise LaunchError(f"{layout.root}: not a run directory; it has no run.json") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = "".join(f"{part}." for part in first["loc"]).removesuffix(".")
        said = f"{what}: {first['msg']}" if what else first["msg"]
        raise LaunchError(f"{layout.record}: not a run record: {said}") from error
    except (OSError, ValueError) as error:
        raise LaunchError(f"{layout.record}: not a run record: {error}") from error


@cache
def _record_type() -> TypeAdapter[RunRecord]:
    return TypeAdapter(RunRecord)


def _checked(record: RunRecord) -> RunRecord:
    """The record. Raises ValueError for a time in it that is none, or that has no time zone."""
    ended = [attempt.ended for attempt in record.attempts if attempt.ended]
    for moment in (record.created, *(attempt.started for attempt in record.attempts), *ended):
        if datetime.fromisoformat(moment).tzinfo is None:
            raise ValueError(f"{moment} has no time zone")
    return record


def write_record(layout: RunLayout, record: RunRecord) -> None:
    """Replace run.json atomically. Only the one writer of the moment may call it."""
    replace_file(layout.record, json.dumps(asdict(record), indent=2) + "\n")


def process_start(pid: int) -> int | None:
    """Start time of a live process in clock ticks after boot; None where it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else int(fields[18])


def is_alive(attempt: Attempt) -> bool:
    """Whether the attempt's entry point runs on this host; for another host, whether it ended."""
    if attempt.host != socket.gethostname():
        return not attempt.final
    return process_start(attempt.pid) == attempt.pid_start


def known_outputs() -> list[Path]:
    """The folders that runs were launched into, in the order they were first used."""
    path = _outputs_list()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path else []
    except OSError:  # none yet, or not to be read: runs are found by --outputs still
        return []
    return [Path(line) for line in dict.fromkeys(lines) if line]


def remember_outputs(outputs: Path) -> None:
    """Add a folder to the list of those that hold runs; where that fails, warn in one line."""
    outputs = outputs.resolve()
    if outputs in known_outputs():
        return
    path = _outputs_list()
    if path is None:  # no home, as in a container: nothing is looked for from there
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{outputs}\n")
    except OSError as error:
        cure = f"find these runs with --outputs {outputs}"
        print(f"warning: {path}: can't be written: {error.strerror}; {cure}", file=sys.stderr)


def _outputs_list() -> Path | None:
    state = user_folder("XDG_STATE_HOME", ".local/state")
    return state / "titan-recipes" / "outputs" if state else None
