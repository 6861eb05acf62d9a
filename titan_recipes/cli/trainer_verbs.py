"""`data` and `checkpoint`: verbs of the trainer's, run as `python -m titan_recipes.trainer.<verb>`.

The launcher never imports the trainer; where its extra is missing, the cure says what to install.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import click

from titan_recipes.bundle.find import find_bundle
from titan_recipes.cli.recipes import json_option, recipe_argument, set_option
from titan_recipes.config.data_root import install_command
from titan_recipes.config.home import expanded
from titan_recipes.errors import LaunchError


def run_trainer(verb: str, arguments: list[str], needs: tuple[str, ...]) -> NoReturn:
    """Run a verb of the trainer and exit with its code. `needs`: modules it can't do without."""
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        cure = install_command("trainer")
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
    job = _encoded(recipe, overrides, plan)
    run_trainer("data", ["prepare", "--job", job], ("numpy", "pyarrow", "tiktoken"))


@click.group()
def checkpoint() -> None:
    """Look at checkpoints; convert them from and to Hugging Face's format."""


def place_of(where: str) -> str:
    """The directory meant by itself, or else by a run's name."""
    if Path(where).is_dir():
        return where
    from titan_recipes.launch.runs import find_run

    return str(find_run(where).layout.root)


def _look(verb: str, where: str, as_json: bool) -> NoReturn:
    run_trainer("checkpoint", [verb, place_of(where), *(["--json"] if as_json else [])], ())


place_argument = click.argument("where", metavar="RUN_OR_DIRECTORY")


@checkpoint.command("list", epilog="Example: titan-recipes checkpoint list my_run")
@place_argument
@json_option
def list_checkpoints(where: str, as_json: bool) -> None:
    """List the checkpoints of a run or directory, with sizes; contents are not read."""
    _look("list", where, as_json)


@checkpoint.command(
    epilog="""\b
Examples:
  titan-recipes checkpoint verify my_run
  titan-recipes checkpoint verify outputs/my_run/checkpoints/step-00000060"""
)
@place_argument
@json_option
def verify(where: str, as_json: bool) -> None:
    """Read every byte, compare it to its checksum, and name the bad files; exits 3 if there are."""
    _look("verify", where, as_json)


@checkpoint.command(
    "import",
    epilog="""\b
Examples:
  titan-recipes checkpoint import llama3_8b --from ~/models/Llama-3.1-8B -o llama3_8b_start""",
)
@recipe_argument
@click.option("--from", "source", required=True, help="Folder of safetensors and config.json.")
@click.option("-o", "--output", required=True, help="Folder to make the checkpoint in.")
@set_option
def import_weights(recipe: str, source: str, output: str, overrides: tuple[str, ...]) -> None:
    """Turn Hugging Face weights into a checkpoint that runs of a recipe can begin from.

    Every number of config.json must be the recipe's, and every tensor the model's.
    """
    arguments = ["import", "--job", _encoded(recipe, overrides)]
    arguments += ["--from", str(expanded(source)), "-o", str(expanded(output))]
    run_trainer("checkpoint", arguments, ("torch", "safetensors"))


@checkpoint.command(
    epilog="""\b
Examples:
  titan-recipes checkpoint export my_run -o my_model --dtype bfloat16
  titan-recipes checkpoint export llama3_8b_start -o my_model --recipe llama3_8b"""
)
@place_argument
@click.option("-o", "--output", required=True, help="Folder to make.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Type of the weights; default: as they are.",
)
@click.option("--max-shard-size", default="5GB", show_default=True, help="Largest file.")
@click.option("--recipe", default="", help="The model's recipe, where no run says it.")
@set_option
def export(
    where: str,
    output: str,
    dtype: str | None,
    max_shard_size: str,
    recipe: str,
    overrides: tuple[str, ...],
) -> None:
    """Turn a checkpoint, or a run's newest good one, into a folder that transformers loads."""
    arguments = ["export", place_of(where), "-o", str(expanded(output))]
    arguments += ["--max-shard-size", max_shard_size, *(["--dtype", dtype] if dtype else [])]
    if recipe:
        arguments += ["--job", _encoded(recipe, overrides)]
    elif overrides:
        raise LaunchError("--set says how --recipe is resolved; a run's model is what it is")
    run_trainer("checkpoint", arguments, ("torch", "safetensors"))


def _encoded(recipe: str, overrides: tuple[str, ...], plan: str = "") -> str:
    """The recipe's job as one argument."""
    from titan_recipes.config.job import encode

    return encode(find_bundle(recipe).resolve(plan, overrides=overrides).job)
