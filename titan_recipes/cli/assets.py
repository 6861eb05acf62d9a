"""`assets`: fetch what a recipe needs and may not ship, its tokenizer and published weights."""

import fnmatch
import importlib.util
import os
from pathlib import Path
from typing import Any, NoReturn

import click

from titan_recipes.bundle.find import find_bundle
from titan_recipes.cli.recipes import recipe_argument
from titan_recipes.config.data_root import install_command
from titan_recipes.config.home import expanded
from titan_recipes.errors import TitanRecipesError

TOKENIZER = (
    "tokenizer*",
    "original/tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "config.json",
    "generation_config.json",
)
WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
"""The common format; the same weights in other formats stay where they are."""

_WHERE_TOKENIZERS_LIE = ("original/tokenizer.model", "tokenizer.model", "tokenizer.json")


@click.group(epilog="Example: titan-recipes assets pull llama3_8b --tokenizer-only")
def assets() -> None:
    """Fetch a recipe's tokenizer and weights from the Hugging Face repository that it names."""


@assets.command(
    epilog="""\b
Examples:
  titan-recipes assets pull llama3_8b --tokenizer-only
  titan-recipes assets pull llama3_8b -o ~/models/Llama-3.1-8B

HF_TOKEN is used where it is set; HF_ENDPOINT names a mirror."""
)
@recipe_argument
@click.option("--tokenizer-only", is_flag=True, help="No weights: some megabytes.")
@click.option(
    "-o", "--output", default="", help="Folder; default: where the recipe looks for its tokenizer."
)
def pull(recipe: str, tokenizer_only: bool, output: str) -> None:
    """Download what [assets] names; files that are there already are not fetched again."""
    bundle = find_bundle(recipe)
    named = bundle.resolve().job.assets
    if not named.hf_repo:
        raise TitanRecipesError(
            f"{bundle.where('recipe.toml')}: assets.hf_repo: not set; {bundle.name} comes with "
            "its tokenizer, or name the repository that publishes it"
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise TitanRecipesError(
            f"this needs huggingface_hub, not installed here; {install_command('trainer')}"
        )
    folder = expanded(output) if output else _home_of(named.tokenizer, named.hf_repo)
    patterns = TOKENIZER if tokenizer_only else (*TOKENIZER, *WEIGHTS)
    files = _download(named.hf_repo, folder, patterns)
    size = sum((folder / file).stat().st_size for file in files)
    click.echo(f"{len(files)} files of {named.hf_repo}, {size / 1e6:,.1f} MB, in {folder}")
    if output:
        click.echo(f"use them: --set 'assets.tokenizer=\"{folder.absolute()}\"'")


def _home_of(tokenizer: str, repo: str) -> Path:
    """The folder that puts the tokenizer's file where the recipe looks for it."""
    path = expanded(tokenizer)
    if not path.is_absolute():
        return expanded(f"~/.cache/titan-recipes/{repo.rpartition('/')[2]}")
    for name in _WHERE_TOKENIZERS_LIE:
        if path.as_posix().endswith(f"/{name}"):
            return path.parents[name.count("/")]
    return path


def _download(repo: str, folder: Path, patterns: tuple[str, ...]) -> list[str]:
    """Fetch the files that match; returns their names. Raises TitanRecipesError."""
    # Imported here, as it takes a second, and after --help.
    import huggingface_hub

    hub: Any = huggingface_hub
    try:
        # Asked first, because a download into a folder with anything in it falls back to that.
        listed = hub.HfApi().model_info(repo)
        names: list[str] = [entry.rfilename for entry in listed.siblings]
        wanted = [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
        if wanted:
            hub.snapshot_download(
                repo, revision=listed.sha, local_dir=folder, allow_patterns=wanted
            )
    except Exception as error:
        # The library lets its HTTP client's errors through, and has changed the client twice.
        _explain(repo, folder, error)
    if not wanted:
        found = ", ".join(sorted(names)[:8]) or "nothing"
        raise TitanRecipesError(f"{repo} has no such files; there is: {found}")
    return wanted


def _explain(repo: str, folder: Path, error: Exception) -> NoReturn:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    kinds = {cls.__name__ for cls in type(error).__mro__}
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if "GatedRepoError" in kinds:
        cure = f"accept its license at {endpoint}/{repo}, then set HF_TOKEN or run `hf auth login`"
        raise TitanRecipesError(f"{repo} is gated, and this account has no access; {cure}")
    if "RepositoryNotFoundError" in kinds:
        cure = "check assets.hf_repo; a private one needs HF_TOKEN"
        raise TitanRecipesError(f"{endpoint} has no repository {repo}; {cure}")
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        raise TitanRecipesError(f"{folder} can't be written: {error.strerror}")
    cure = "fetch it on a machine that has a network, and copy the folder"
    raise TitanRecipesError(f"{repo} can't be fetched from {endpoint}: {first}; {cure}") from error
