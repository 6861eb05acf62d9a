"""Where data lies: the bundle's directory, paths relative to it, and the cache of token shards."""

import os
from pathlib import Path

from titan_recipes.config.data_root import data_root
from titan_recipes.config.home import expanded
from titan_recipes.config.job import Job


def bundle_directory(job: Job) -> Path:
    """The directory of the job's recipe: its bundle, or the packaged recipe of that name."""
    if job.origin.bundle:
        return Path(job.origin.bundle)
    return data_root() / "recipes" / job.recipe.name


def below(directory: Path, text: str) -> Path:
    """The path that `text` means: absolute, below `~`, or relative to `directory`."""
    return directory / expanded(text)


def cache_directory(job: Job) -> Path:
    """Where token shards are kept: data.cache_dir, $TITAN_RECIPES_CACHE, ~/.cache/titan-recipes."""
    place = job.data.cache_dir or os.environ.get("TITAN_RECIPES_CACHE")
    return expanded(place or "~/.cache/titan-recipes")
