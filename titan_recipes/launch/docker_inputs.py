"""The paths of this machine that a job's container has to see: what the job names, and its caches.

Each is mounted at its own path, so that a path means the same inside and outside. `~` does not: in
the container it is another folder, so `with_homes` writes it out beforehand.
"""

import dataclasses
import os
from collections.abc import Iterator
from glob import glob, has_magic
from itertools import chain
from pathlib import Path
from typing import Any

from titan_recipes.config.datasets import VALIDATION, asked_datasets
from titan_recipes.config.home import expanded
from titan_recipes.config.job import Job
from titan_recipes.launch.inputs import bundle_directory

PATH_KEYS = (
    "model.tokenizer_path",
    "model.hf_assets_path",
    "assets.tokenizer",
    "training.dataset_path",
    "validation.dataset_path",
    "checkpoint.initial_load_path",
    "data.cache_dir",
    "compile.cache_dir",
)
"""Every setting that holds a path outside the run directory; data.sources have theirs."""


def with_homes(job: Job) -> Job:
    """The job with `~` in its paths replaced by the home of whoever launches it."""
    for key in PATH_KEYS:
        section, name = key.split(".")
        job = _replaced(job, section, **{name: _with_home(getattr(getattr(job, section), name))})
    sources = (dataclasses.replace(s, path=_with_home(s.path)) for s in job.data.sources)
    return _replaced(job, "data", sources=tuple(sources))


def _with_home(path: str) -> str:
    return str(expanded(path)) if path.startswith("~") else path


def _replaced(job: Job, section: str, **values: Any) -> Job:
    return dataclasses.replace(
        job, **{section: dataclasses.replace(getattr(job, section), **values)}
    )


def read_folders(job: Job) -> list[Path]:
    """What the job reads, the outermost folders of it, absolute; of a packaged recipe nothing."""
    named = dict.fromkeys(map(_normal, chain(_tokenizers(job), _datasets(job), _initial(job))))
    found = dict.fromkeys(chain(named, *map(_link_targets, named)))
    return [path for path in found if not any(other in path.parents for other in found)]


def _normal(path: Path) -> Path:
    """Without `.` and `..`; links are kept, for the path to stay the one that is named."""
    return Path(os.path.normpath(path.absolute()))


def _in_bundle(job: Job, named: str) -> Path | None:
    """Where a path leads from the bundle; None = to a file of the package, which the image has."""
    path = expanded(named)
    return bundle_directory(job) / path if job.origin.bundle or path.is_absolute() else None


def _tokenizers(job: Job) -> Iterator[Path]:
    """The tokenizers' folders: what was published beside one is saved with a checkpoint."""
    for named in (job.model.tokenizer_path, job.model.hf_assets_path, job.assets.tokenizer):
        path = _in_bundle(job, named) if named else None
        if path is not None:
            folder = path if path.is_dir() else path.parent
            yield folder.parent if folder.name == "original" else folder


def _datasets(job: Job) -> Iterator[Path]:
    for asked in asked_datasets(job):
        if not asked.path or asked.dataset.removesuffix(VALIDATION) == "stdlib":
            continue
        here, there = expanded(asked.path).absolute(), _in_bundle(job, asked.path)
        if there is not None and (there.exists() or glob(str(there), recursive=True)):
            here = there
        if asked.dataset.removesuffix(VALIDATION) != "hub" or here.exists():  # else a repository
            yield _without_magic(here)


def _without_magic(path: Path) -> Path:
    """The folder that holds all that a glob may match; a path that is none as it is."""
    magic = [parent for parent in (path, *path.parents) if has_magic(parent.name)]
    return magic[-1].parent if magic else path


def _initial(job: Job) -> Iterator[Path]:
    if job.checkpoint.enable and job.checkpoint.initial_load_path:
        yield expanded(job.checkpoint.initial_load_path).absolute()


def _link_targets(folder: Path) -> Iterator[Path]:
    """Where the links in a folder lead: Hugging Face's cache holds nothing but links."""
    try:
        links = [path for path in folder.iterdir() if path.is_symlink()]
    except OSError:  # a file, or not there
        return
    for link in links:
        target = link.resolve()
        yield target if target.is_dir() else target.parent


def cache_folder(job: Job) -> Path | None:
    """Where token shards are kept on this machine, as the trainer finds it; None without a home."""
    named = job.data.cache_dir or os.environ.get("TITAN_RECIPES_CACHE") or "~/.cache/titan-recipes"
    path = expanded(named)
    return None if str(path).startswith("~") else _normal(path)
