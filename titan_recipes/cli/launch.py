"""`launch` and `render`: resolve a recipe, then start and follow it, or only write its files."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from titan_recipes.config.resolve import Resolution

JOB_OPTIONS = (
    click.option("--plan", default="", help="Parallel plan; default: the recipe's default_plan."),
    click.option(
        "--scheduler",
        type=click.Choice(["local", "docker", "slurm", "kubernetes"]),
        help="Where it runs; default: the cluster profile's, else local.",
    ),
    click.option(
        "--cluster", help="Cluster profile, by name or path; default: the one named default."
    ),
    click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting."
    ),
    click.option(
        "--outputs",
        default="",
        help="Folder of the run directories; default: the cluster profile's, "
        "$TITAN_RECIPES_OUTPUTS, ./outputs.",
    ),
    click.option("--name", help="Name of the run; default: the recipe's with the time."),
)
"""What `launch` and `render` share; `_resolve` takes all but --name, and the recipe."""


def _job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(JOB_OPTIONS):
        command = option(command)
    return command


def _resolve(
    recipe: str,
    plan: str,
    scheduler: str | None,
    cluster: str | None,
    overrides: tuple[str, ...],
    outputs: str,
) -> tuple["Resolution", str, str]:
    """(resolution, scheduler, outputs folder) of the options."""
    from titan_recipes.bundle.find import find_bundle
    from titan_recipes.config.cluster import find_cluster

    cluster_name, profile = find_cluster(cluster)
    resolution = find_bundle(recipe).resolve(
        plan, overrides=overrides, cluster=profile, cluster_name=cluster_name
    )
    scheduler = scheduler or profile.scheduler
    of_profile = "" if scheduler == "kubernetes" else profile.outputs  # there a path in the pods
    outputs = outputs or of_profile or os.environ.get("TITAN_RECIPES_OUTPUTS") or "outputs"
    return resolution, scheduler, outputs


def _show(files: Mapping[str, str]) -> None:
    """Print files, each under its name."""
    click.echo("\n".join(f"# ---- {path}\n{text}" for path, text in files.items()))


def _tell(notes: Iterable[str]) -> None:
    """Say what was clipped, each once."""
    for note in dict.fromkeys(notes):
        click.echo(f"note: {note}", err=True)


@click.command(
    epilog="""\b
Examples:
  titan-recipes launch llama3_debug
  titan-recipes launch llama3_debug --plan cpu1 --set training.steps=50 --name first_try
  titan-recipes launch llama3_8b --dry-run
  titan-recipes launch ./my_8b --detach
  titan-recipes launch llama3_8b --cluster lab --scheduler slurm --after first_try
  titan-recipes launch llama3_1b gemma_2b --cluster lab --array debug.seed=0,1,2"""
)
@click.argument("recipes", metavar="RECIPE...", nargs=-1, required=True)
@_job_options
@click.option(
    "--array",
    "arrays",
    multiple=True,
    metavar="KEY=V1,V2,...",
    help="A SLURM job array: a run for each value, recipe and, if repeated, combination.",
)
@click.option("--detach", is_flag=True, help="Start it and return, instead of following it.")
@click.option(
    "--after",
    multiple=True,
    metavar="RUN",
    help="Wait until RUN, a run under SLURM, has succeeded. May be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Print the files of the launch; submit nothing.")
def launch(
    recipes: Sequence[str],
    name: str | None,
    arrays: tuple[str, ...],
    detach: bool,
    dry_run: bool,
    after: tuple[str, ...],
    **options: Any,
) -> None:
    """Run RECIPE (a name, name@version, or a directory) and follow it to its end.

    Ctrl-C stops a local or docker run with a checkpoint, which `titan-recipes resume` continues; a
    run under SLURM or on Kubernetes goes on by itself.
    """
    if arrays or len(recipes) > 1:
        _launch_array(recipes, arrays, name, after, dry_run, options)
        return
    from titan_recipes.launch.submit import preview

    resolution, scheduler, outputs = _resolve(recipes[0], **options)
    _tell(resolution.notes)
    job = resolution.job
    if dry_run:
        files = preview(job, outputs=outputs, name=name, scheduler=scheduler)
        _show(files)
        return

    from titan_recipes.launch.follow import follow
    from titan_recipes.launch.runs import find_run, open_run
    from titan_recipes.launch.submit import launch as start
    from titan_recipes.launch.text import command

    started = start(
        job,
        outputs=Path(outputs),
        command=("titan-recipes", *sys.argv[1:]),
        name=name,
        scheduler=scheduler,
        where_of=resolution.where_of,
        after=[find_run(run) for run in after],
    )
    for note in started.notes:
        click.echo(note)
    run = open_run(started.layout.root)
    click.echo(f"{run.name}: {job.recipe_id} in {started.layout.root}")
    if detach:
        click.echo(f"follow it with: {command('titan-recipes', f'logs -f {run.word}')}")
        return
    sys.exit(follow(run))


def _launch_array(
    recipes: Sequence[str],
    arrays: Sequence[str],
    name: str | None,
    after: Sequence[str],
    dry_run: bool,
    options: dict[str, Any],
) -> None:
    """Submit recipes times values as one array, and return."""
    from titan_recipes.errors import LaunchError
    from titan_recipes.launch.array import combinations, launch_array, preview_array
    from titan_recipes.launch.runs import find_run, open_run
    from titan_recipes.launch.text import command

    overrides = options.pop("overrides")
    resolved = [
        _resolve(recipe, **options, overrides=(*overrides, *values))
        for recipe in recipes
        for values in combinations(arrays)
    ]
    _tell(note for resolution, _, _ in resolved for note in resolution.notes)
    jobs = [resolution.job for resolution, _, _ in resolved]
    _, scheduler, outputs = resolved[0]
    if scheduler != "slurm":
        cure = "launch the runs one by one, or name a SLURM cluster"
        raise LaunchError(f"--array: --scheduler {scheduler} has no job arrays; {cure}")
    if dry_run:
        files = preview_array(jobs, outputs=outputs, name=name)
        _show(files)
        return
    layouts = launch_array(
        jobs,
        [resolution.where_of for resolution, _, _ in resolved],
        outputs=Path(outputs),
        command=("titan-recipes", *sys.argv[1:]),
        name=name,
        after=[find_run(run) for run in after],
    )
    for layout, job in zip(layouts, jobs, strict=True):
        changed = " ".join(job.origin.overrides[len(overrides) :])
        click.echo(f"{layout.root.name}: {job.recipe_id} {changed}".rstrip())
    first = open_run(layouts[0].root).word
    click.echo(f"follow one with: {command('titan-recipes', f'logs -f {first}')}")


@click.command(
    epilog="""\b
Examples:
  titan-recipes render llama3_8b -o rendered
  titan-recipes render llama3_debug --plan cpu1 --set training.steps=50 -o rendered"""
)
@click.argument("recipe")
@_job_options
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to write into; files that exist are refused.",
)
def render(name: str | None, output: Path, **options: Any) -> None:
    """Write the files that `launch` would submit for RECIPE, and nothing else; works offline."""
    from titan_recipes.bundle.fork import write_files
    from titan_recipes.errors import LaunchError
    from titan_recipes.launch.submit import preview

    resolution, scheduler, outputs = _resolve(**options)
    _tell(resolution.notes)
    files = preview(resolution.job, outputs=outputs, name=name, scheduler=scheduler)
    if existing := [path for path in files if os.path.lexists(output / path)]:
        raise LaunchError(f"{output}: has {', '.join(existing)} already; choose another folder")
    try:
        write_files(output, {path: text.encode() for path, text in files.items()})
    except OSError as error:
        raise LaunchError(f"{output}: can't be written: {error.strerror}") from error
    for path in files:
        click.echo(f"wrote {output / path}")
