"""The command line: parse, call, print. No logic, and nothing imported before it is used.

Each command lives in a module of its own kind and is imported when it is called; the group knows
only its name and one line of help, so that `list` does not pay for what `launch` needs.
"""

import difflib
import importlib
import os
import sys
from typing import Any, NoReturn

import click

from titan_recipes import __version__
from titan_recipes.errors import ConfigError, TitanRecipesError

COMMANDS: dict[str, tuple[str, str]] = {
    "list": ("recipes:list_recipes", "List the recipes there are."),
    "show": ("recipes:show", "Show a recipe: what it is, its plans, its values."),
    "validate": ("recipes:validate", "Check a recipe and its plans, without any hardware."),
    "simulate": ("simulate:simulate", "Say what memory and traffic a rank will have, on this CPU."),
    "doctor": ("doctor:doctor", "Check this machine: GPUs, driver, memory, folders."),
    "launch": ("launch:launch", "Run a recipe and follow it to its end."),
    "render": ("launch:render", "Write the files of a launch, submit nothing."),
    "runs": ("followup:runs", "List the runs."),
    "status": ("followup:status", "Say how a run stands."),
    "logs": ("followup:logs", "Print a run's log, -f to follow it."),
    "cancel": ("followup:cancel", "Stop a run, with a checkpoint."),
    "resume": ("followup:resume", "Continue a stopped or failed run."),
    "report": ("followup:report", "Write a run's report as one HTML page."),
    "fork": ("forks:fork", "Copy a recipe, to edit it."),
    "diff": ("forks:diff", "Show what a fork changed."),
    "upgrade": ("forks:upgrade", "Bring its origin's changes into a fork."),
    "import": ("convert:import_torchtitan", "Turn a torchtitan TOML into a recipe."),
    "schema": ("convert:schema", "Print the JSON Schema of the TOML files."),
    "generate": ("generate:generate", "Have a checkpoint continue a text."),
    "data": ("trainer_verbs:data", "Prepare token shards."),
    "checkpoint": ("trainer_verbs:checkpoint", "List, verify, import or export checkpoints."),
    "cluster": ("cluster:cluster", "Write or check the profile of a cluster."),
    "image": ("image:image", "Build the container image, or say what one is."),
    "assets": ("assets:assets", "Fetch a recipe's tokenizer and weights."),
}
"""Command -> where it is in this package, and its line in the group's help."""


class Program(click.Group):
    """The command group: imports lazily, turns our exception tree into `error: ...` lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(f"titan_recipes.cli.{module}"), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f'did you mean "{near[0]}"?' if near else "see --help for those there are"
            ctx.fail(f'no command "{args[0]}"; {hint}')
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table: no module is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in COMMANDS.items()])

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            _check_working_directory()
            return super().main(*args, **kwargs)
        except TitanRecipesError as error:
            fail(error)


def _check_working_directory() -> None:
    """Raises TitanRecipesError where the shell stands in a folder that was removed."""
    try:
        os.getcwd()
    except OSError as error:
        raise TitanRecipesError("the working directory is gone; cd to one that exists") from error


def fail(error: TitanRecipesError) -> NoReturn:
    """Print an error of the user's, each problem on a line, and exit with its code."""
    lines = error.problems if isinstance(error, ConfigError) else (error,)
    for line in lines:
        click.echo(f"error: {line}", err=True)
    sys.exit(error.exit_code)


EPILOG = """\b
Examples:
  titan-recipes list
  titan-recipes launch llama3_debug
  titan-recipes fork llama3_8b my_8b"""


@click.group(cls=Program, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="titan-recipes")
def main() -> None:
    """Versioned LLM training recipes: checked offline, launched anywhere, resumed by themselves.

    A recipe says what to train, its plans how to split it over GPUs.
    """
