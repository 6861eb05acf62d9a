"""`data` and `checkpoint`: verbs of the trainer's, run as `python -m titan_recipes.trainer.<verb>`.

The launcher never imports the trainer; where its extra is missing, the cure says what to install.
"""

import importlib.util
import subprocess
import sys
from typing import NoReturn

import click

from titan_recipes.bundle.find import find_bundle
from titan_recipes.cli.recipes import json_option, recipe_argument, set_option
from titan_recipes.errors import LaunchError


def run_trainer(verb: str, arguments: list[str], needs: tuple[str, ...]) -> NoReturn:
    """Run a verb of the trainer and exit with its code. `needs`: modules it can't do without."""
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        cure = 'pip install "titan-recipes[trainer]"'
        raise LaunchError(f"this needs {', '.join(missing)}, not installed here; {cure}")
    command = [sys.executable, "-P", "-m", f"titan_recipes.trainer.{verb}", *arguments]
    sys.exit(subprocess.run(command, check=False).returncode)


@click.group()
def data() -> None:
    """Text becomes token shards once, and training reads only those."""


@data.command(
    epilog="""\b
Examples:
  titan-recipes data prepare llama3_debug
  titan-recipes data prepare llama3_8b --set training.dataset=text \\
      --set training.dataset_path='/data/*.jsonl'"""
)
@recipe_argument
@click.option("--plan", default="", help="The plan; default: the recipe's own default.")
@set_option
def prepare(recipe: str, plan: str, overrides: tuple[str, ...]) -> None:
    """Tokenize what a recipe reads, in parallel; started again, it goes on where it stopped."""
    from titan_recipes.config.job import encode

    bundle = find_bundle(recipe)
    job = bundle.resolve(plan, overrides=overrides).job
    run_trainer("data", ["prepare", "--job", encode(job)], ("numpy", "pyarrow", "tiktoken"))


@click.group()
def checkpoint() -> None:
    """Look at a run's checkpoints."""


def _look(verb: str, directory: str, as_json: bool) -> NoReturn:
    run_trainer("checkpoint", [verb, directory, *(["--json"] if as_json else [])], ())


@checkpoint.command("list", epilog="Example: titan-recipes checkpoint list outputs/my_run")
@click.argument("directory")
@json_option
def list_checkpoints(directory: str, as_json: bool) -> None:
    """List the checkpoints of a run directory, with sizes; contents are not read."""
    _look("list", directory, as_json)


@checkpoint.command(epilog="Example: titan-recipes checkpoint verify outputs/my_run")
@click.argument("directory")
@json_option
def verify(directory: str, as_json: bool) -> None:
    """Read every byte, compare it to its checksum, and name the bad files; exits 3 if there are."""
    _look("verify", directory, as_json)
