"""`titan-recipes launch`: resolve a recipe, start it, follow it to its end."""

import os
import sys
from pathlib import Path

import click

EPILOG = """\b
Examples:
  titan-recipes launch llama3_debug
  titan-recipes launch llama3_debug --plan cpu1 --set training.steps=50 --name first_try
  titan-recipes launch llama3_8b --dry-run
  titan-recipes launch ./my_8b --detach"""


@click.command(epilog=EPILOG)
@click.argument("recipe")
@click.option("--plan", default="", help="Parallel plan; default: the recipe's default_plan.")
@click.option(
    "--scheduler",
    type=click.Choice(["local", "docker", "slurm", "kubernetes"]),
    help="Where it runs; default: the cluster profile's, else local.",
)
@click.option("--cluster", help="Cluster profile, by name or path; default: the one named default.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting.")
@click.option(
    "--outputs",
    default="",
    help="Folder of the run directories; default: the cluster profile's, "
    "$TITAN_RECIPES_OUTPUTS, ./outputs.",
)
@click.option("--name", default="", help="Name of the run; default: the recipe's with the time.")
@click.option("--detach", is_flag=True, help="Start it and return, instead of following it.")
@click.option("--dry-run", is_flag=True, help="Print the files of the launch; submit nothing.")
def launch(
    recipe: str,
    plan: str,
    scheduler: str | None,
    cluster: str | None,
    overrides: tuple[str, ...],
    outputs: str,
    name: str,
    detach: bool,
    dry_run: bool,
) -> None:
    """Run RECIPE (a name, name@version, or a directory) and follow it to its end.

    Ctrl-C stops the run with a checkpoint; `titan-recipes resume` continues it.
    """
    from titan_recipes.bundle.find import find_bundle
    from titan_recipes.config.cluster import find_cluster
    from titan_recipes.launch.submit import preview

    cluster_name, profile = find_cluster(cluster)
    resolution = find_bundle(recipe).resolve(
        plan, overrides=overrides, cluster=profile, cluster_name=cluster_name
    )
    scheduler = scheduler or profile.scheduler
    outputs = outputs or profile.outputs or os.environ.get("TITAN_RECIPES_OUTPUTS") or "outputs"
    for note in resolution.notes:
        click.echo(f"note: {note}", err=True)
    if dry_run:
        files = preview(resolution.job, outputs=outputs, name=name, scheduler=scheduler)
        click.echo("\n".join(f"# ---- {path}\n{text}" for path, text in files.items()))
        return

    from titan_recipes.launch.follow import follow
    from titan_recipes.launch.runs import open_run
    from titan_recipes.launch.submit import launch as start

    started = start(
        resolution.job,
        outputs=Path(outputs),
        command=("titan-recipes", *sys.argv[1:]),
        name=name,
        scheduler=scheduler,
    )
    for note in started.notes:
        click.echo(note)
    run = started.layout.root
    click.echo(f"{run.name}: {resolution.job.recipe_id} in {run}")
    if detach:
        click.echo(f"follow it with: titan-recipes logs -f {run.name}")
        return
    sys.exit(follow(open_run(run)))
