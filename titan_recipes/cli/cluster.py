"""`cluster init` and `cluster check`: a cluster's profile, by what the cluster says of itself."""

import sys
from pathlib import Path

import click

from titan_recipes.cli.tables import json_option, print_json
from titan_recipes.errors import TitanRecipesError


@click.group()
def cluster() -> None:
    """Write a cluster profile, or check one against the cluster: for SLURM, on a login node."""


@cluster.command(
    epilog="""\b
Examples:
  titan-recipes cluster init                  # the profile `default`: --cluster is not needed
  titan-recipes cluster init lab --partition gpu --outputs /shared/me/runs
  titan-recipes cluster init -o lab.toml"""
)
@click.argument("name", default="default")
@click.option("--partition", help="The partition; default: SLURM's own, or that with most GPUs.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write this file, in no known folder."
)
@click.option("--outputs", default="", help="Where run directories go: a folder all nodes see.")
@click.option("--force", is_flag=True, help="Overwrite the profile that is there.")
def init(name: str, partition: str | None, output: Path | None, outputs: str, force: bool) -> None:
    """Write a profile of this SLURM cluster.

    Partition, hardware, time limit and account are SLURM's own; comments list the other choices.
    """
    from titan_recipes.config.home import expanded
    from titan_recipes.launch import slurm_profile as profiles
    from titan_recipes.launch.slurm_ask import ask_site

    path = output or profiles.profile_path(name)
    profiles.check_free(path, force=force)
    site = ask_site()
    chosen = profiles.choose_partition(site, partition)
    folder = str(expanded(outputs).absolute()) if outputs else ""
    word = str(path) if output else name
    profiles.write_profile(path, profiles.profile_text(word, site, chosen, folder), force=force)
    click.echo(f"wrote {path}: partition {chosen.name} of {site.name or 'this cluster'}")
    click.echo(f"next: read it, then `titan-recipes cluster check {word}`")


@cluster.command(
    epilog="""\b
Examples:
  titan-recipes cluster check
  titan-recipes cluster check lab
  titan-recipes cluster check ./lab.toml --json"""
)
@click.argument("name", required=False, metavar="[NAME|PATH]")
@json_option
def check(name: str | None, as_json: bool) -> None:
    """Say what of a profile does not fit the cluster.

    With SLURM it is compared with what SLURM reports, then with what `sbatch --test-only` says.
    With Kubernetes the API server is asked for your rights, for what the profile names, and to take
    a small run without keeping it. Nothing is submitted. Exit 2 with problems; notes do not fail
    it.
    """
    from titan_recipes.config.cluster import find_cluster
    from titan_recipes.errors import ConfigError

    found, profile = find_cluster(name)
    if not found:
        raise TitanRecipesError("no profile named `default`; name one, or `cluster init` writes it")
    if profile.scheduler == "slurm":
        from titan_recipes.launch.slurm_ask import ask_site
        from titan_recipes.launch.slurm_check import check as compare

        report = compare(found, profile, ask_site())
    elif profile.scheduler == "kubernetes":
        from titan_recipes.launch.kubernetes_check import check as try_out

        report = try_out(found, profile)
    else:
        got = f'"{profile.scheduler}"; only "slurm" and "kubernetes" can be checked'
        raise TitanRecipesError(f"{found}: scheduler: {got}")
    if as_json:
        print_json(report.as_dict())
        sys.exit(2 if report.problems else 0)
    for note in report.notes:
        click.echo(f"note: {note}")
    if report.problems:
        raise ConfigError(report.problems)
    click.echo(f"{found}: fits {report.site}; {report.said}")
