"""`simulate`: one rank of a job of any size on this CPU, run as `python -m ...trainer.simulate`."""

import click

from titan_recipes.cli.recipes import json_option, recipe_argument, set_option
from titan_recipes.cli.trainer_verbs import run_trainer


@click.command(
    epilog="""\b
Examples:
  titan-recipes simulate llama3_8b
  titan-recipes simulate llama3_8b --plan h100x128 --set training.local_batch_size=4
  titan-recipes simulate llama3_405b --ranks first,last --json"""
)
@recipe_argument
@click.option("--plan", default="", help="The plan; default: the recipe's own default.")
@click.option("--cluster", help="Cluster profile, by name or path; default: the one named default.")
@set_option
@click.option(
    "--rank",
    "--ranks",
    "ranks",
    default="",
    metavar="RANKS",
    help='Ranks, separated by commas: numbers, "first", "last" (the first rank of the last '
    "pipeline stage). Default: first,last.",
)
@click.option("--traceback", is_flag=True, help="Where a step fails, print the whole traceback.")
@json_option
def simulate(
    recipe: str,
    plan: str,
    cluster: str | None,
    overrides: tuple[str, ...],
    ranks: str,
    traceback: bool,
    as_json: bool,
) -> None:
    """Say what memory a rank of RECIPE will need, and what it will send.

    The trainer builds that rank of the whole job here, on tensors without data, and trains a few
    steps. Takes seconds to minutes, under 1 GB of memory, and no GPU.
    """
    from titan_recipes.bundle.find import find_bundle
    from titan_recipes.config.cluster import find_cluster
    from titan_recipes.config.job import encode

    name, profile = find_cluster(cluster)
    resolution = find_bundle(recipe).resolve(
        plan, overrides=overrides, cluster=profile, cluster_name=name
    )
    arguments = ["--job", encode(resolution.job), "--ranks", ranks]
    arguments += ["--json"] if as_json else []
    arguments += ["--traceback"] if traceback else []
    run_trainer("simulate", arguments, ("torch",))
