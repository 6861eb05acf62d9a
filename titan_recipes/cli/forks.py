"""`fork`, `diff` and `upgrade`: copy a recipe, see what you changed, follow its origin."""

import click

from titan_recipes.bundle import fork as forks
from titan_recipes.bundle.find import find_bundle
from titan_recipes.bundle.merge import Prefer
from titan_recipes.errors import BundleError


@click.command(
    epilog="""\b
Examples:
  titan-recipes fork llama3_8b my_8b         # into ./recipes/my_8b
  titan-recipes fork llama3_8b ~/recipes/my_8b"""
)
@click.argument("recipe")
@click.argument("new_name_or_path")
def fork(recipe: str, new_name_or_path: str) -> None:
    """Copy a recipe to ./recipes/NEW_NAME, or to a path, to edit it."""
    made = forks.fork(find_bundle(recipe), new_name_or_path)
    click.echo(f"forked {recipe} to {made.where()}")
    click.echo(f"next: edit it, then `titan-recipes validate {new_name_or_path}`")


@click.command(
    epilog="""\b
Examples:
  titan-recipes diff my_8b
  titan-recipes diff my_8b --keys"""
)
@click.argument("recipe")
@click.option("--keys", is_flag=True, help="Only the summary by key.")
def diff(recipe: str, keys: bool) -> None:
    """Show what a fork changed against its origin as it was forked."""
    bundle = find_bundle(recipe)
    changes, text = forks.compare(bundle)
    for change in changes:
        click.echo(change)
    if not changes:
        click.echo("no setting differs")
    if text and not keys:
        click.echo(f"\n{text}", nl=False)


@click.command(
    epilog="""\b
Examples:
  titan-recipes upgrade my_8b --dry-run
  titan-recipes upgrade my_8b
  titan-recipes upgrade my_8b --prefer mine"""
)
@click.argument("recipe")
@click.option("--dry-run", is_flag=True, help="Show what would change, write nothing.")
@click.option("--prefer", type=click.Choice(["mine", "origin"]), help="Who wins a conflict.")
def upgrade(recipe: str, dry_run: bool, prefer: Prefer | None) -> None:
    """Bring into a fork what its origin changed since; nothing is written while sides conflict."""
    bundle = find_bundle(recipe)
    result = forks.upgrade(bundle, prefer=prefer or "", dry_run=dry_run)
    merged = result.merged
    origin = forks.forked_from(bundle).name
    for change in merged.taken:
        click.echo(f"{'would take' if not result.written else 'took'} {change}")
    if merged.conflicts:
        lines = "\n".join(f"  {conflict}" for conflict in merged.conflicts)
        cure = "settle each in your files, or choose with --prefer mine|origin; nothing was written"
        raise BundleError(f"both sides changed:\n{lines}\n{cure}")
    if result.written:
        click.echo(f"{bundle.where()} follows {origin}@{result.after} (was {result.before})")
        click.echo("recipe.version is still your own; raise it if others use this fork")
    elif not dry_run:
        click.echo(f"{bundle.where()} is up to date with {origin}@{result.after}")
