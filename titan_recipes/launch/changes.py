"""The job of a run that goes on: what of it may change, and which one a node takes."""

import dataclasses
import errno
import os
import tempfile
from collections.abc import Sequence
from typing import Any, cast

from titan_recipes.config.job import Job, decode, read_job, to_toml
from titan_recipes.config.layout import RunLayout, replace_file
from titan_recipes.config.resolve import with_overrides
from titan_recipes.errors import ConfigError, LaunchError, Problem

CHANGEABLE = ("training.steps", "checkpoint.", "metrics.")
"""What `resume --set` may change: the length of the training, and what is written down."""
FIXED = ("checkpoint.enable", "checkpoint.folder")
"""... but not these: the run would not find its checkpoints and start from step 0."""

FOLLOWING = ("derived.warmup_steps", "derived.decay_steps", "derived.schedule_steps")
"""What follows from training.steps."""


def change(job: Job, overrides: Sequence[str]) -> Job:
    """The job with what may change in a resumed run changed. Raises ConfigError."""
    problems: list[Problem] = []
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in FIXED:
            got = "can't change in a resumed run: it would not find its checkpoints"
            problems.append(Problem("--set", key, got, "launch a new run for it"))
        elif not key.startswith(CHANGEABLE):
            got = "can't change in a resumed run: it goes on with the training it began"
            cure = "training.steps, checkpoint.* and metrics.* may; launch a new run for others"
            problems.append(Problem("--set", key, got, cure))
    if problems:
        raise ConfigError(problems)
    return with_overrides(job, overrides) if overrides else job


def is_same_training(now: Job, launched: Job) -> bool:
    """Whether `now` is the job that was launched, or what a resume with `--set` made of it."""
    typed, before = now.origin.overrides, launched.origin.overrides
    return typed[: len(before)] == before and _fixed(now) == _fixed(launched)


def _fixed(job: Job) -> dict[str, Any]:
    """Dotted key -> value, of all that no resume changes."""
    fixed: dict[str, Any] = {}
    for section, table in dataclasses.asdict(job).items():
        for key, value in cast(dict[str, Any], table).items():
            name = f"{section}.{key}"
            if name in FIXED or not name.startswith((*CHANGEABLE, *FOLLOWING, "origin.overrides")):
                fixed[name] = value
    return fixed


def _placed_as(job: Job, other: Job) -> Job:
    """`other` where `job` runs."""
    origin = dataclasses.replace(other.origin, cluster=job.origin.cluster)
    return dataclasses.replace(other, site=job.site, env=job.env, origin=origin)


def adopt_job(layout: RunLayout, encoded: str, *, replaces: bool = False) -> Job:
    """The run's job: the argument's, written to job.toml, or the one that is there already.

    A scheduler that restarts a run brings the job it was launched with; what `resume --set` made of
    it since is in the directory. replaces: the launcher does not see the directory, and it is the
    argument that is newer. Raises ConfigError, or LaunchError where the directory holds another
    job, or can't be written.
    """
    job = decode(encoded) if encoded else read_job(layout.job)
    _check_writable(layout)
    if not encoded:
        return job
    if not layout.job.exists():
        replace_file(layout.job, to_toml(job))
        return job
    there = read_job(layout.job)
    if replaces and is_same_training(job, _placed_as(job, there)):
        replace_file(layout.job, to_toml(job))
        return job
    if there != job and not is_same_training(there, job):
        raise LaunchError(f"{layout.root}: holds a run of another job; give the run another --name")
    return there


def _check_writable(layout: RunLayout) -> None:
    """Make the directory where there is none. Raises LaunchError where nothing can be written."""
    try:
        layout.logs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=layout.root):
            pass
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise  # a file system that is away for a moment: worth another start
        got = f"can't be written by user {os.geteuid()}, group {os.getegid()}: {error.strerror}"
        cure = "see whose it is, and which users may write there"
        raise LaunchError(f"{layout.root}: {got}; {cure}") from error
