"""`import` and `schema`: the ways in and out of our TOML."""

from pathlib import Path

import click

from titan_recipes.cli.tables import json_option, print_json, print_table
from titan_recipes.errors import ConfigError


@click.command(
    "import",
    epilog="""\b
Examples:
  titan-recipes import llama3_8b.toml
  titan-recipes import train_configs/llama3_8b.toml -o recipes --name my_8b""",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    default="recipes",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Directory to make the recipe in.",
)
@click.option("--name", default="", help="The recipe's name; default: the file's.")
@json_option
def import_torchtitan(file: Path, output: Path, name: str, as_json: bool) -> None:
    """Turn a torchtitan TOML (v0.1.0 or v0.2.2) into a recipe, and say what became of each key."""
    from titan_recipes.bundle import import_torchtitan as torchtitan

    bundle, rows = torchtitan.import_torchtitan(file, output, name)
    if as_json:
        keys = [{"key": r.key, "fate": r.fate, "detail": r.detail} for r in rows]
        print_json({"path": str(bundle.path), "keys": keys})
        return
    print_table(("KEY", "FATE", "DETAIL"), [(r.key, r.fate, r.detail) for r in rows])
    click.echo(f"\nmade {bundle.where()}")
    try:
        bundle.resolve(torchtitan.PLAN)
    except ConfigError as error:
        click.echo("it does not validate yet:")
        for problem in error.problems:
            click.echo(f"  {problem}")
    else:
        click.echo(f"next: `titan-recipes validate {bundle.where()}`")


@click.command(
    epilog="""\b
Examples:
  titan-recipes schema > recipe.schema.json
  titan-recipes schema --section training"""
)
@click.option("--section", default="", help="Only this section.")
def schema(section: str) -> None:
    """Print the JSON Schema of a bundle's TOML, with which editors complete and check it."""
    from titan_recipes.bundle.json_schema import json_schema

    print_json(json_schema(section))
